"""What the index of the compacted copy says: which fragments it stands for, and which files hold their rows.

`manifest/data/_index.json` is published last, in one step: before, the copy that was there holds, or none.
Readers take the rows of the files it names, and those of the fragments that came later from the log; a later
verdict takes the place of the row that was compacted. Without an index everything is in the log.

Everything in it carries a checksum: the index its own, each file the sha256 of all its bytes (which `fsck`
looks at) and of its footer (which readers look at each time they open it). The pages of a file have theirs,
which readers look at as well. So a reader that looks at a few columns of a few files verifies just these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from balancer.cells import CLASS_PROPERTY
from balancer.errors import ManifestError, first_problem
from balancer.manifest.layout import DATA_DIR, INDEX_FILE, MAX_SEQ
from balancer.manifest.rules import Revision
from balancer.manifest.runfile import RunInfo
from balancer.storage import MissingFileError, Storage
from balancer.text.json_reading import read_json
from balancer.text.safetext import shortened

FORMAT = 1

STATUS = "status"

LEAST_PARTS = 64
ROWS_IN_PART = 16_384
"""Up to so many parts whatever they hold, and more if they hold so many rows on average."""

ROW_BYTES = 1024
"""About what a row takes in memory besides its embedding."""

BLOCK_ROWS = 16_384

FILE_BYTES = 64 << 20
BUFFER_BYTES = 1 << 30
"""Rows are held back in memory until a file is full, or all memory for them is; by then one of n parts has
about twice an n-th of it. Each file takes a reader about 0.5 ms, whatever it holds."""

MAX_FILE_BYTES = 1 << 32
"""A file of a copy is closed at FILE_BYTES; the rows of one block can make it larger."""

MAX_INDEX_BYTES = 1_000_000_000
"""About 500 bytes a file, and files have up to 64 MB: over 100 TB of rows."""

_LONGEST_NAME = 255

Count = Annotated[int, Field(ge=0, le=10**12)]
AtLeastOne = Annotated[int, Field(ge=1, le=10**12)]

RECALIBRATE = "the log has everything: `balancer compact RUN --rebuild` makes the copy anew"


class DamagedCopyError(ManifestError):
    """The compacted copy is not what was written. No row is lost, as they all are in the log."""

    def __init__(self, path: str, rule: str, detail: str) -> None:
        super().__init__(f"{path}: {rule}: {detail}", hint=RECALIBRATE)
        self.path = path
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows are dealt to files; the same layout of the same log gives the same files.

    All rows of a part have the same values in the columns `folders`, which named folders in earlier versions.
    `rows_in_file` at most are in a file, and as many as `rows_at_once` in memory before the largest part is
    written, although it could still grow. `rows_in_block` are dealt at a time, approximately.
    """

    folders: tuple[str, ...]
    rows_in_file: AtLeastOne
    rows_at_once: AtLeastOne
    rows_in_block: AtLeastOne

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that have one value in all rows of a file."""
        return (*self.folders, STATUS)


@dataclass(frozen=True, slots=True)
class DataFile:
    """`path` is relative to the run folder; `values` are those of the layout's columns, None for null.
    `footer_bytes` are the last ones, Parquet's own metadata."""

    path: str
    rows: Count
    num_bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
    sha256: str
    footer_bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
    footer_sha256: str
    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """The copy has the rows of fragments 1 to `covers`, of which the last has `sha256`. `revision` is the
    plan revision that these fragments say is in effect, None for that of run.json."""

    run_id: str
    covers: Annotated[int, Field(ge=0, le=MAX_SEQ)]
    sha256: str
    rows: Count
    layout: Layout
    files: tuple[DataFile, ...]
    revision: Revision | None = None


_INDEX = TypeAdapter(Index)


def choose_layout(info: RunInfo, rows: int) -> Layout:
    """Parts by class and facets as long as these have enough rows each; files are sorted by the others."""
    names = (CLASS_PROPERTY, *info.facets)
    depth, most = 0, max(LEAST_PARTS, rows // ROWS_IN_PART)
    while depth < len(names) and _combinations(info, names[: depth + 1]) <= most:
        depth += 1
    row_bytes = 2 * info.embedding_dim + ROW_BYTES
    return Layout(
        folders=names[:depth],
        rows_in_file=max(FILE_BYTES // row_bytes, 1),
        rows_at_once=max(BUFFER_BYTES // row_bytes, 1),
        rows_in_block=BLOCK_ROWS,
    )


def _combinations(info: RunInfo, names: tuple[str, ...]) -> int:
    return len({tuple(cell[name] for name in names) for cell in info.plan})


def data_path(copy: str, number: int) -> str:
    """A file of a copy. Its path has no value of a row: most readers take values from paths like
    `class=burnt` instead of those in the column, and guess their types."""
    return f"{DATA_DIR}/{copy}/{number:05d}.parquet"


def read_index(storage: Storage, run_id: str) -> Index | None:
    """None if there is none; DamagedCopyError if it is damaged, or not of this run."""
    try:
        data = storage.read(INDEX_FILE, MAX_INDEX_BYTES)
    except MissingFileError:
        return None
    try:
        index = _parsed(read_json(data))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCopyError(INDEX_FILE, "index of the compacted copy is readable", str(error)) from error
    if index.run_id != run_id:
        detail = f"it is of run {index.run_id!r}"
        raise DamagedCopyError(INDEX_FILE, "compacted copy belongs to the run", detail)
    return index


def encode_index(index: Index) -> bytes:
    document = {"format": FORMAT, **dataclasses.asdict(index)}
    if index.revision is None:  # earlier versions know no such field
        del document["revision"]
    return _json({**document, "checksum": _checksum(document)})


def _parsed(document: dict[str, Any]) -> Index:
    checksum = document.pop("checksum")
    number = document["format"]
    if number > FORMAT:
        raise ManifestError(
            f"{INDEX_FILE}: format {number} is newer than {FORMAT}, the newest this version reads",
            hint="upgrade balancer",
        )
    if checksum != _checksum(document):
        raise ValueError("its bytes are not those that were written")
    try:
        index = _INDEX.validate_python(document)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    for file in index.files:
        if not _is_inside(file.path):
            raise ValueError(f"{shortened(file.path)!r} is not the path of a file below {DATA_DIR}")
        if len(file.values) != len(index.layout.columns):
            raise ValueError(
                f"{file.path} has {len(file.values)} values of {len(index.layout.columns)} columns"
            )
        if file.footer_bytes > file.num_bytes:
            raise ValueError(
                f"{file.path} has a footer of {file.footer_bytes:,} of its {file.num_bytes:,} bytes"
            )
    return index


def _is_inside(path: str) -> bool:
    parts = path.removeprefix(f"{DATA_DIR}/").split("/")
    return (
        path.startswith(f"{DATA_DIR}/")
        and "\0" not in path
        and not any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in parts)
    )


def check_folders(index: Index, info: RunInfo) -> None:
    """DamagedCopyError if the layout is not by the class and facets of the run."""
    names = (CLASS_PROPERTY, *info.facets)
    if (folders := index.layout.folders) != names[: len(folders)]:
        detail = f"it is laid out by {', '.join(folders)}, the run has {', '.join(names)}"
        raise DamagedCopyError(INDEX_FILE, "compacted copy belongs to the run", detail)


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(document)).hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode()
