"""Workers that go wrong, and their specs, in a module that the processes of actors can import."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.models.simulated import Fault
from actors.models.writer import Writer
from actors.specs import SimulatedGeneratorSpec, SimulatedVerifierSpec, Workers, WorkerSpec, WriterSpec
from balancer.errors import WeightsError
from balancer.storage import LocalStorage

Change = Callable[[Workers], Workers]


def with_faults(kind: str, *faults: Fault) -> Change:
    """Simulated generators or verifiers that go wrong at set calls."""

    def change(usual: Workers) -> Workers:
        spec = getattr(usual, kind)
        assert isinstance(spec, SimulatedGeneratorSpec | SimulatedVerifierSpec)
        return dataclasses.replace(usual, **{kind: dataclasses.replace(spec, faults=faults)})

    return change


def with_worker(kind: str, spec: type, **settings: Any) -> Change:
    """A worker around the usual one of a kind."""
    return lambda usual: dataclasses.replace(usual, **{kind: spec(getattr(usual, kind), **settings)})


def first_time(marker: str) -> bool:
    try:
        Path(marker).open("x").close()
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class DyingWriterSpec:
    usual: WriterSpec
    struck: str
    when: str

    def load(self) -> DyingWriter:
        return DyingWriter(self)


class DyingWriter(Writer):
    """Is gone at its first call, before or after the files are written."""

    def __init__(self, spec: DyingWriterSpec) -> None:
        super().__init__(spec.usual.storage_uri, spec.usual.image_format)
        self.spec = spec

    def write(self, *arguments: Any) -> Any:
        dies = first_time(self.spec.struck)
        if dies and self.spec.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        written = super().write(*arguments)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return written


class SyncFails:
    """A disk that writes and cannot sync, from the third time on."""

    syncs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, fd: int) -> None:
        self.syncs += 1
        if self.syncs > 2:
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(fd)


@dataclass(frozen=True)
class UnsyncedWriterSpec:
    usual: WriterSpec

    def load(self) -> Writer:
        writer = self.usual.load()
        writer._storage = LocalStorage(self.usual.storage_uri, SyncFails())
        return writer


@dataclass(frozen=True)
class PoisonedSpec:
    usual: WorkerSpec
    struck: str

    def load(self) -> Poisoned:
        return Poisoned(self.usual.load(), self.struck)


class Poisoned:
    """Once a CUDA error struck, every later call of the same process fails as well."""

    def __init__(self, worker: Any, struck: str) -> None:
        self.worker, self.struck = worker, struck

    def __getattr__(self, name: str) -> Any:
        if name in ("begin", "measure"):
            self.fail_if_poisoned()
        return getattr(self.worker, name)

    def fail_if_poisoned(self) -> None:
        if first_time(self.struck):
            Path(self.struck).write_text(str(os.getpid()))
        if Path(self.struck).read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@dataclass(frozen=True)
class EchoSpec:
    broken_starts: str = ""
    error: str = ""

    def load(self) -> Echo:
        if self.error == "weights":
            raise WeightsError("no such model", hint="name another")
        if self.broken_starts and _count_up(self.broken_starts) <= 2:
            raise RuntimeError("the disk was still spinning up")
        return Echo()


class Echo:
    """Does as it is told."""

    def describe(self) -> dict[str, str]:
        return {"device": "none"}

    def echo(self, value: Any) -> Any:
        return value

    def two(self, value: int) -> tuple[int, int]:
        return value, value + 1

    def fail(self) -> None:
        raise ValueError("bad luck")

    def hang(self) -> None:
        time.sleep(1000)

    def pid(self) -> int:
        return os.getpid()


def _count_up(path: str) -> int:
    with open(path, "a+") as file:
        file.write("x")
        file.flush()
        return os.path.getsize(path)
