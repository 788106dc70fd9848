"""Rows are committed in groups by a thread of their own; the loop does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from balancer.cells import Candidate
from balancer.config.schema import OutputConfig
from balancer.errors import BalancerError
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import Row


@dataclass(slots=True)
class Committer:
    """One commit at a time; rows that come meanwhile go with the next one.

    `turn` and `flush` return the candidates of accepted rows once these are durable.
    """

    log: ManifestLog
    output: OutputConfig
    clock: Callable[[], float]
    thread: Executor
    _rows: list[Row] = field(default_factory=list)
    _accepted: list[Candidate] = field(default_factory=list)
    _oldest_s: float = 0.0
    _commit: Future[None] | None = None
    _committing: tuple[list[Row], list[Candidate]] = field(default_factory=lambda: ([], []))

    def add(self, row: Row, accepted: Candidate | None = None) -> None:
        if not self._rows:
            self._oldest_s = self.clock()
        self._rows.append(row)
        if accepted is not None:
            self._accepted.append(accepted)

    def turn(self) -> list[Candidate]:
        """Begin a commit if one is due; what was acknowledged since the last turn. Raises the error of a
        commit that failed: its rows are kept, and go with the next one."""
        done = self._collect() if self._commit is not None and self._commit.done() else []
        if self._commit is None and self._is_due():
            self._begin()
        return done

    def flush(self) -> list[Candidate]:
        """Commit everything; returns what was acknowledged."""
        done = self._collect() if self._commit is not None else []
        if self._rows:
            self._begin()
            done += self._collect()
        return done

    def close(self) -> None:
        self.thread.shutdown()

    @property
    def idle(self) -> bool:
        """Nothing waits for a commit, and none is under way."""
        return self._commit is None and not self._rows

    def _is_due(self) -> bool:
        if not self._rows:
            return False
        waited_s = self.clock() - self._oldest_s
        return len(self._rows) >= self.output.commit_rows or waited_s >= self.output.commit_seconds

    def _begin(self) -> None:
        self._committing = (self._rows, self._accepted)
        self._rows, self._accepted = [], []
        self._commit = self.thread.submit(self.log.commit, self._committing[0])

    def _collect(self) -> list[Candidate]:
        assert self._commit is not None
        commit, self._commit = self._commit, None
        rows, accepted = self._committing
        self._committing = ([], [])
        try:
            commit.result()
        except BalancerError:
            self._rows, self._accepted = rows + self._rows, accepted + self._accepted
            self._oldest_s = self.clock()
            raise
        return accepted
