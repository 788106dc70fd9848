"""Requests of the object store library, given up when an answer takes too long or too much memory.

The library reads an error's body and a page of a listing whole before it says anything of them, and follows
empty pages without end; it has no limit for either. Only what is asynchronous in it can be cancelled, so
requests run on an event loop, whichever thread waits for them. What an answer takes shows in the memory of
the process: other threads may have taken it, which is why such a request is made again before it is given up.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from balancer.storage.failures import BadAnswerError

T = TypeVar("T")

MAX_GROWTH_BYTES = 500_000_000
"""What the process may grow by during one request; a page of a thousand names takes a few million."""

_LOOK_EVERY_S = 0.05


def wait_for(request: Callable[[], Awaitable[T]], limit_s: float) -> T:
    """What `request` answers; BadAnswerError if that takes longer than `limit_s`. For any thread."""
    future = asyncio.run_coroutine_threadsafe(_in_time(request, limit_s), _LOOP.running())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C comes here, and the request goes on there
        raise


async def in_memory(request: Awaitable[T], max_growth_bytes: int = MAX_GROWTH_BYTES) -> T:
    """What `request` answers; BadAnswerError if the process grows by more than that many bytes meanwhile."""
    task, before = asyncio.ensure_future(request), _memory_bytes()
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
            if _memory_bytes() - before > max_growth_bytes:
                raise BadAnswerError(
                    f"while it was read, the process grew by more than {max_growth_bytes / 1e6:g} megabytes",
                    passing=True,
                )
        return task.result()
    finally:
        task.cancel()


async def _in_time(request: Callable[[], Awaitable[T]], limit_s: float) -> T:
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await request()
    except TimeoutError:
        if not limit.expired():
            raise
        raise BadAnswerError(f"it took longer than {limit_s:g} seconds", passing=True) from None


def _memory_bytes() -> int:
    """0 where the system does not say: there, time is the only limit."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class _Loop:
    """One event loop for the process, on a thread of its own: a caller's thread may run another already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="object-store", daemon=True).start()
            return self._loop


_LOOP = _Loop()
os.register_at_fork(after_in_child=_LOOP.__init__)  # type: ignore[misc]  # threads do not come along
