"""Read an untrusted table of facet values, in a separate process.

The answer is JSON lines: `[key, row]` for each row with a file name, values as text; objects with the
`columns`, a `remark` or a `warning`; at the end the number of all rows, or an object with the `reason` why
the table cannot be used.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, BinaryIO

from balancer.dataset.readers.table_values import is_plain, plain_values, table_key
from balancer.storage.regular_files import TooLargeError, open_regular
from balancer.text.formulas import as_written
from balancer.text.json_reading import read_json
from balancer.text.names import MAX_COMPOSED_CHARS, composed, without_case
from balancer.text.quantities import counted, size
from balancer.text.safetext import is_harmless

if TYPE_CHECKING:
    pass

MAX_BYTES = 500_000_000
MAX_ROWS = 2_000_000
MAX_COLUMNS = 1_000
"""Over all rows: each line of JSON can have different keys."""

MAX_CELLS = 50_000_000
"""Rows times columns; the two limits alone would allow two billion."""

MAX_LINE_CHARS = 1_000_000
MAX_ANSWER_BYTES = 1_000_000_000
"""All values together; a small compressed file can repeat one value many times."""

MAX_NAME_CHARS = MAX_COMPOSED_CHARS
"""The maximum length of a path."""

BATCH_ROWS = 10_000

SHOWN_COLUMNS, SHOWN_CHARS = 10, 40
"""Columns and characters shown of a table without file names: enough to recognise it."""

FILE_NAME = "file_name"
OWN_COLUMNS = (FILE_NAME, "class", "split")
"""Columns that the audit knows, in any case."""

ColumnNames = Mapping[str, Sequence[str]]
"""The headers that each of OWN_COLUMNS may have, the likeliest first."""

OWN_NAMES: ColumnNames = {name: (name,) for name in OWN_COLUMNS}

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
EXPORT_COLUMNS = frozenset({"source", "run_id"})
"""Columns of every table that `balancer export` writes."""

MAX_TWINS = 5
"""Pairs of columns with one name that are reported."""

RawRow = Sequence[tuple[str, object]]
"""(header as written, value) pairs. Two headers can have the same normal form."""


def read_table_answer(
    path: str | os.PathLike[str], names: ColumnNames = OWN_NAMES, packed: bool = False
) -> Iterator[bytes]:
    """The lines about the table at `path`: its rows, or the reason why it cannot be used. A `packed` file
    holds the images themselves."""
    try:
        yield from _answers(path, _Columns(names), packed)
    except OSError as error:
        yield _reason(f"cannot be read: {error.strerror or error}")
    except MemoryError:
        yield _reason("cannot be read: it needs more memory than the limit for tables")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        yield _reason(f"is not UTF-8: a byte is 0x{byte:02x}; save the table as UTF-8")
    except (ValueError, csv.Error, RecursionError) as error:
        yield _reason(f"is damaged: {_one_line(str(error))}")


class _TooMuchError(OSError):
    """A table over a limit; `strerror` names the number and the limit."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


@dataclass(slots=True)
class _Columns:
    """The columns of one table by normal form, and pairs of headers with the same normal form."""

    own: ColumnNames
    headers: dict[str, str] = field(default_factory=dict)
    twins: dict[tuple[str, str], None] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _own_headers: dict[str, str] = field(default_factory=dict)

    def name(self, header: str) -> str:
        """The name of a column; a header like one of OWN_COLUMNS that another column stands for is marked."""
        name = composed(header)
        plain = without_case(name)
        own = self._own_headers.get(plain)
        return own or (f"{name} (column)" if plain in OWN_COLUMNS else name)

    def choose_own(self, headers: Iterable[str]) -> bool:
        """Choose the headers of OWN_COLUMNS; False if none is for file names."""
        plain = [without_case(header) for header in headers]
        choices = {
            own: [choice for choice in map(without_case, names) if choice in plain]
            for own, names in self.own.items()
        }
        self._own_headers = {
            (choices[own] or [*map(without_case, names)])[0]: own for own, names in self.own.items()
        }
        return bool(choices[FILE_NAME])

    def text_values(self, row: RawRow) -> dict[str, str]:
        """The non-empty values by column. Of two headers with one name the first counts, in every row."""
        texts: dict[str, str] = {}
        passed: set[str] = set()
        if not self._own_headers:
            self.choose_own(header for header, _ in row)
        for header, value in row:
            if (name := self._names.get(header)) is None:
                name = self._names[header] = self.name(header)
            first = self.headers.setdefault(name, header)
            if first != header or name in passed:
                self.twins[first, header] = None
                continue
            passed.add(name)
            if name and (text := _text(value)):
                texts[name] = text
        return texts

    def notes(self) -> Iterator[bytes]:
        names = [name[:MAX_NAME_CHARS] for name in self.headers if name]
        yield json.dumps({"columns": names}).encode()
        for first, second in list(self.twins)[:MAX_TWINS]:
            yield _note(
                "warning",
                f"the columns {_quoted(first)} and {_quoted(second)} have one name; only the first is read",
            )


def _answers(path: str | os.PathLike[str], columns: _Columns, packed: bool) -> Iterator[bytes]:
    number = answer_bytes = named = cells = 0
    first: RawRow = ()
    for number, row in enumerate(_rows(path, columns, packed), start=1):
        if isinstance(row, bytes):
            yield row
            continue
        cells += len(row)
        _check_shape(row, number, cells)
        if not row:
            continue
        first = first or row
        text = columns.text_values(row)
        _check_columns(columns, number)
        if 0 < len(name := text.get(FILE_NAME, "")) <= MAX_NAME_CHARS:
            named += 1
            line = json.dumps([table_key(name), text]).encode()
            answer_bytes += len(line)
            if answer_bytes > MAX_ANSWER_BYTES:
                raise _TooMuchError(f"its values are more than {size(MAX_ANSWER_BYTES)} of text")
            yield line
    yield from columns.notes()
    if number and not named and _Columns(columns.own).text_values(first):
        wanted = " or ".join(f"`{name}`" for name in columns.own[FILE_NAME])
        yield _reason(f"has no column {wanted}; the columns are {_shown(first)}")
    else:
        yield str(number).encode()


def _rows(path: str | os.PathLike[str], columns: _Columns, packed: bool) -> Iterator[RawRow | bytes]:
    """The rows of a table, of annotations (a COCO file, the folder of a Pascal VOC dataset), or of a file
    that holds images."""
    from balancer.dataset.readers.annotation_files import BOXES, coco_rows, voc_rows
    from balancer.dataset.readers.packed_files import packed_rows

    if packed:
        yield from packed_rows(path)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        yield from voc_rows(os.fspath(path), BOXES in columns.own)
        return
    with open_regular(path, follow_links=False) as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise TooLargeError(path, num_bytes, MAX_BYTES)
        if (suffix := _suffix(path)) == ".json":
            yield from coco_rows(file, BOXES in columns.own)
        else:
            yield from READERS[suffix](file, columns)


def _check_shape(row: RawRow, number: int, cells: int) -> None:
    if number > MAX_ROWS:
        raise _TooMuchError(f"more than {MAX_ROWS:,} rows, blank ones included, the limit")
    if len(row) > MAX_COLUMNS:
        raise _TooMuchError(f"row {number} has {len(row):,} columns, over the limit of {MAX_COLUMNS:,}")
    if cells > MAX_CELLS:
        raise _TooMuchError(
            f"its rows up to row {number:,} have more than {MAX_CELLS:,} values, empty ones included, the"
            " limit; remove columns"
        )


def _check_columns(columns: _Columns, number: int) -> None:
    if len(columns.headers) > MAX_COLUMNS:
        raise _TooMuchError(
            f"its rows up to row {number} have {len(columns.headers):,} columns in all, over the limit of"
            f" {MAX_COLUMNS:,}"
        )


def _reason(text: str) -> bytes:
    return _note("reason", f"the file {text}")


def _note(kind: str, text: str) -> bytes:
    return json.dumps({kind: text}).encode()


def _quoted(header: str) -> str:
    return repr(_one_line(header[:SHOWN_CHARS]))


def _shown(row: RawRow) -> str:
    """The first column names, shortened: the file could be a secret instead of a table."""
    names = [_one_line(name[:SHOWN_CHARS]) for name, _ in row if name]
    return ", ".join(names[:SHOWN_COLUMNS]) + (", …" if len(names) > SHOWN_COLUMNS else "")


def _one_line(text: str) -> str:
    return "".join(char if is_harmless(text, place) else "?" for place, char in enumerate(text[:200]))


def _suffix(path: str | os.PathLike[str]) -> str:
    return posixpath.splitext(os.fspath(path))[1].lower()


def _parquet_rows(file: BinaryIO, _: _Columns) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        if table.metadata.num_rows > MAX_ROWS:
            raise _TooMuchError(f"{table.metadata.num_rows:,} rows, over the limit of {MAX_ROWS:,}")
        plain = [place for place, column in enumerate(table.schema_arrow) if is_plain(column.type)]
        names = [table.schema_arrow.names[place] for place in plain]
        if (cells := table.metadata.num_rows * len(names)) > MAX_CELLS:
            raise _TooMuchError(f"{cells:,} values in rows and columns, over the limit of {MAX_CELLS:,}")
        for batch in table.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            columns = [plain_values(column) for column in batch.columns]
            yield from (
                [*zip(batch.schema.names, values, strict=True)] for values in zip(*columns, strict=True)
            )
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _csv_rows(file: BinaryIO, columns: _Columns) -> Iterator[RawRow | bytes]:
    lines = _lines(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    first = next(lines, "")
    separator = _separator(first, columns)
    reader = csv.reader(_chained(first, lines), delimiter=separator)
    try:
        headers = next(reader, [])
        if len(headers) > MAX_COLUMNS:  # before rows are padded to that length
            _check_shape([(header, "") for header in headers], 1, 0)
        if separator != ",":
            yield _note("remark", f"its columns are separated by {SEPARATORS[separator]}")
        is_export = {*headers} >= EXPORT_COLUMNS
        headers = [*map(as_written, headers)] if is_export else headers
        short, long = _OtherLength("fewer", len(headers)), _OtherLength("more", len(headers))
        for row in reader:  # blank lines count too: they take as much time
            if row and len(row) != len(headers):
                (short if len(row) < len(headers) else long).count(reader.line_num)
            fields = [*map(as_written, row)] if is_export else row
            yield [*itertools.zip_longest(headers, fields[: len(headers)], fillvalue="")] if row else ()
        if short.rows:
            yield _note("remark", f"{short}: missing fields count as empty")
        if long.rows:
            yield _note("warning", f"{long}: fields without a header are ignored")
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


@dataclass(slots=True)
class _OtherLength:
    """Counts CSV rows with `comparison` ("fewer" or "more") fields than the header."""

    comparison: str
    headers: int
    rows: int = 0
    first_line: int = 0

    def count(self, line: int) -> None:
        self.rows += 1
        self.first_line = self.first_line or line

    def __str__(self) -> str:
        fields = f"{self.comparison} fields than the header's {self.headers}"
        return f"{counted(self.rows, 'row')} with {fields}, first in line {self.first_line}"


def _separator(header_line: str, columns: _Columns) -> str:
    """The first separator under which the header has a column of file names; else a comma."""
    for separator in SEPARATORS:
        headers = next(csv.reader([header_line], delimiter=separator), [])
        if _Columns(columns.own).choose_own(headers):
            return separator
    return ","


def _chained(first: str, lines: Iterable[str]) -> Iterator[str]:
    yield first
    yield from lines


def _json_rows(file: BinaryIO, _: _Columns) -> Iterator[RawRow]:
    for number, line in enumerate(_lines(io.TextIOWrapper(file, "utf-8-sig")), start=1):
        if not line.strip():
            yield ()
            continue
        try:
            row = read_json(line, pairs_hook=tuple)
        except ValueError as error:
            raise ValueError(f"line {number}: {getattr(error.__cause__, 'msg', error)}") from error
        if not isinstance(row, tuple):
            raise ValueError(f"line {number} is not an object")
        yield row


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    try:
        while line := file.readline(MAX_LINE_CHARS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARS:
                raise _TooMuchError(f"line {number} has more than {MAX_LINE_CHARS:,} characters")
            yield line
    finally:
        file.detach()  # the caller closes the file below


def _text(value: object) -> str:
    """A value as a config would write it; empty for a missing one."""
    if isinstance(value, str):
        return composed(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _digits(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    return str(value) if isinstance(value, int) else ""


def _decimal(value: Decimal) -> str:
    """`2.5`, not `2.50`, as a float is written: the places of a column are not those of a value."""
    if not value.is_finite():
        return ""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _digits(value: float) -> str:
    """`1`, not `1.0`: a column of integers with gaps is often stored as floats."""
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)


READERS = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _json_rows}
