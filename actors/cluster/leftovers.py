"""No process of a Ray on this machine outlives the driver that started it by more than a few seconds.

Ray's own daemons end with the driver, however that ends. Its agents take a minute to notice, and an actor may
not notice at all. So a process with a session of its own, which signals to the driver's job do not reach,
waits for the driver to end, and then ends whatever has the mark of the driver's Ray in its environment.

Started as a program it is that process; it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

MARK = "BALANCER_RAY"
"""Processes that Ray starts inherit it, and theirs do as well."""

KEPT_READABLE = "SPT_NOENV"
"""With it, a Ray process that gives itself a title does not write that over its environment in /proc."""

GRACE_S = 2.0
"""How long processes have to end by themselves."""

LATEST_S = 30.0
LOOK_S = 0.5


@contextlib.contextmanager
def ended_with_this_process() -> Iterator[Callable[[], None]]:
    """What is started in this block ends with this process, or when the returned function is called."""
    if sys.platform != "linux":  # the mark is looked for in /proc
        yield lambda: None
        return
    mark = secrets.token_hex(16)
    stop = _watch(mark)
    before = os.environ.get(KEPT_READABLE)
    os.environ |= {MARK: mark, KEPT_READABLE: "1"}
    try:
        yield stop
    except BaseException:
        stop()
        raise
    finally:  # other children of this process are none of ours
        del os.environ[MARK], os.environ[KEPT_READABLE]
        if before is not None:
            os.environ[KEPT_READABLE] = before


def _watch(mark: str) -> Callable[[], None]:
    waits_on, held_open = os.pipe()
    try:
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=waits_on,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError:  # no process to spare: Ray's own ways have to do
        os.close(held_open)
        return lambda: None
    finally:
        os.close(waits_on)
    threading.Thread(target=watcher.wait, daemon=True).start()  # collects it, whenever it ends
    return functools.cache(lambda: os.close(held_open))


def main() -> None:
    """Wait until the driver closes stdin, or is gone, though a child that it forked may hold stdin open."""
    driver = os.getppid()
    while os.getppid() == driver and not select.select([0], [], [], LOOK_S)[0]:
        pass
    began = time.monotonic()
    while (marked := list(_marked(sys.argv[1]))) and time.monotonic() - began < LATEST_S:
        if time.monotonic() - began >= GRACE_S:
            for pid in marked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S / 5)


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if name.isdigit() and wanted in _read(f"/proc/{name}/environ").split(b"\0"):
                yield int(name)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    main()
