"""A log that grows, read again without reading again what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from balancer.errors import ManifestError
from balancer.manifest.log.reader import Chain, joined, read_chain, with_id
from balancer.manifest.log.view import LogView, build_view
from balancer.manifest.row_values import Known
from balancer.manifest.runfile import RunInfo, read_run
from balancer.storage import Storage


@dataclass(slots=True)
class LogFollower:
    """`read` gives the log as it is now. Only fragments that are new are fetched."""

    storage: Storage
    columns: Sequence[str]
    _begun: RunInfo | None = None
    _chain: Chain | None = None

    def read(self) -> tuple[RunInfo, LogView]:
        """The run under its latest plan revision, and its log; errors as `read_log`."""
        info = read_run(self.storage)
        if self._begun is None or self._begun.run_id != info.run_id or self._chain is None:
            self._chain = self._read(info)
        else:
            self._chain = self._read_on(info, self._chain)
        self._begun = info
        view = build_view([entry.stamp for entry in self._chain.entries], self._chain.table)
        return info.under(view.rules), view

    def _read(self, info: RunInfo, after: tuple[int, str] = (0, "")) -> Chain:
        known = Known.of(info)
        return read_chain(self.storage, info.schema(), info.run_id, self.columns, after, known)

    def _read_on(self, info: RunInfo, before: Chain) -> Chain:
        if before.last is None:
            return self._read(info)
        try:
            new = self._read(info, (before.last.stamp.seq, before.last.known_as))
        except ManifestError:  # repaired since, or damaged: reading it all says which
            return self._read(info)
        if not new.entries:
            return before
        tables: list[pa.Table] = [before.table, new.table]
        table = joined(tables, info.schema(), with_id(self.columns))
        return Chain(None, (*before.entries, *new.entries), table)
