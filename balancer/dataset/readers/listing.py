"""What a reader says of a dataset: its images with their classes, and what it passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.dataset.facet_table import Table
    from balancer.dataset.joining import Joined


@dataclass(slots=True)
class DatasetListing:
    """Names are relative to the dataset, with slashes. `files` maps images to their classes, `labels` to
    these before `dataset.labels`, and `splits` to their splits, as folders write them. `classes` include
    those without images. `outside` are images of no class, `left_out` those that `include` and `exclude`
    leave out, `left_out_folders` folders that are left out unread, `tables` metadata tables in the folders,
    `faults` (name, reason) pairs, `system` folders of operating systems, `hidden` pictures and folders of
    pictures whose names begin with a dot. `ignored_files` counts the other files in class folders.
    `split_source` says where splits come from. Layouts whose classes are in a table give `read_tables` and
    `joined`. In `packed` layouts images are inside files. `unmatched` are warnings about settings that match
    nothing, which a hold-out need not match."""

    root: Path
    layout: str
    reason: str
    classes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    split_source: str = "column `split` of the metadata table"
    faults: list[tuple[str, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    left_out_folders: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    ignored_files: int = 0
    read_tables: list[Table] = field(default_factory=list)
    joined: Joined | None = None
    packed: bool = False
    remarks: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _added: set[str] = field(default_factory=set)
    """Tables add their classes once an image."""

    def add_class(self, name: str) -> None:
        if name not in self._added:
            self._added.add(name)
            self.classes.append(name)

    def every_name(self) -> list[str]:
        """All files that rows of a table may name."""
        return [*self.files, *self.outside, *self.left_out, *dict(self.faults)]
