"""A server on this machine alone, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from balancer.errors import BalancerError, UnavailableError
from balancer.process.signals import Stopped, StopSignal
from balancer.web.door import App, Door

_LOGGER = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
USUAL_PORT = 8765
"""The same each time, because a browser keeps what was not saved by address and port."""

LAST_ANSWERS_S = 1
"""Streams of events never end by themselves."""


@dataclass(frozen=True, slots=True)
class Address:
    """A socket that listens on this machine, and the secret with which its pages begin."""

    socket: socket.socket
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/{self.token}/"


@contextlib.contextmanager
def listening(port: int | None) -> Iterator[Address]:
    """Listen on a port, by default `USUAL_PORT` or any that is free. UnavailableError for one that is not."""
    with contextlib.ExitStack() as opened:
        for wanted in (USUAL_PORT, 0) if port is None else (port,):
            bound = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((LOOPBACK, wanted))
                bound.listen()
            except OSError as error:
                problem = f"port {wanted} cannot be used: {(error.strerror or str(error)).lower()}"
                continue
            yield Address(bound, bound.getsockname()[1], secrets.token_urlsafe(32))
            return
    raise UnavailableError(problem, hint="choose another with --port, or leave it out")


def serve(
    address: Address, app: App, stop: StopSignal, while_serving: Callable[[], None] = lambda: None
) -> None:
    """Answer until `stop` has a signal; SIGINT, which is how one ends a server, is no interruption.

    `while_serving` is called about every second, on a thread of its own, one call at a time.
    """
    # Uvicorn would print a traceback for what an answer already says.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        Door(app, address.token, address.port),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=200,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    stop.only_note()
    asyncio.run(_until_stopped(_Server(config, stop), address, while_serving))
    if stop.number != signal.SIGINT:
        raise Stopped


async def _until_stopped(server: _Server, address: Address, work: Callable[[], None]) -> None:
    working = asyncio.create_task(_repeated(work))
    try:
        await server.serve(sockets=[address.socket])
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def _repeated(work: Callable[[], None]) -> None:
    told = ""
    while True:
        await asyncio.sleep(1)
        try:
            await asyncio.to_thread(work)
            told = ""
        except BalancerError as error:
            if error.message != told:
                _LOGGER.warning("%s; it is tried again", error.message)
            told = error.message


class _Server(uvicorn.Server):
    """Leaves signals to the command, which has its handlers already."""

    def __init__(self, config: uvicorn.Config, stop: StopSignal) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self._stop.number is not None
        return await super().on_tick(counter)
