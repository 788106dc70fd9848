"""Rows on their way into the log: committed in groups, by a thread of their own, while the loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from balancer.config.schema import OutputConfig
from balancer.errors import BalancerError
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import Row
from balancer.scheduling.schedule import Outcome


@dataclass(slots=True)
class Committer:
    """One commit at a time; rows that come meanwhile go with the next one.

    Outcomes belong to accepted rows: `turn` and `flush` return them once these are durable.
    """

    log: ManifestLog
    output: OutputConfig
    clock: Callable[[], float]
    thread: Executor
    _rows: list[Row] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)
    _oldest_s: float = 0.0
    _commit: Future[None] | None = None
    _committing: tuple[list[Row], list[Outcome]] = field(default_factory=lambda: ([], []))

    def add(self, row: Row, outcome: Outcome | None = None) -> None:
        if not self._rows:
            self._oldest_s = self.clock()
        self._rows.append(row)
        if outcome is not None:
            self._outcomes.append(outcome)

    def turn(self) -> list[Outcome]:
        """Begin a commit if one is due; what was acknowledged since the last turn. Raises the error of a
        commit that failed: its rows are kept, and go with the next one."""
        done = self._collect() if self._commit is not None and self._commit.done() else []
        if self._commit is None and self._is_due():
            self._begin()
        return done

    def flush(self) -> list[Outcome]:
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
        self._committing = (self._rows, self._outcomes)
        self._rows, self._outcomes = [], []
        self._commit = self.thread.submit(self.log.commit, self._committing[0])

    def _collect(self) -> list[Outcome]:
        assert self._commit is not None
        commit, self._commit = self._commit, None
        rows, outcomes = self._committing
        self._committing = ([], [])
        try:
            commit.result()
        except BalancerError:
            self._rows, self._outcomes = rows + self._rows, outcomes + self._outcomes
            self._oldest_s = self.clock()
            raise
        return outcomes
