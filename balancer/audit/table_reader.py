"""Reading a table of facet values, in a process of its own: it was written by strangers.

What comes of it is told line by line, as JSON: `[key, row]` for each row with a file name, values as text;
at the end the number of all rows, or an object with the reason why the table cannot be used.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

from balancer.regular_files import TooLargeError, open_regular

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 500_000_000
MAX_ROWS = 2_000_000
MAX_COLUMNS = 1_000
MAX_LINE_CHARS = 1_000_000
MAX_ANSWER_BYTES = 1_000_000_000
"""All values together; a small file can hold one value many times."""

MAX_NAME_CHARS = 4096
"""As long as a path can be."""

BATCH_ROWS = 10_000

SHOWN_COLUMNS, SHOWN_CHARS = 10, 40
"""Of a table without file names: enough to see which table it is."""

Row = Mapping[str, object]


def answer_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """What the table at `path` holds, or why it cannot be used."""
    try:
        yield from _answers(path)
    except OSError as error:
        yield _reason(f"cannot be read: {error.strerror or error}")
    except MemoryError:
        yield _reason("cannot be read: it needs more memory than a table may take")
    except (ValueError, csv.Error, RecursionError) as error:
        yield _reason(f"is damaged: {_one_line(str(error))}")


def table_key(file_name: str) -> str:
    """Some systems store accented names decomposed, and tables come from other systems."""
    return unicodedata.normalize("NFC", posixpath.normpath(file_name))


class _TooMuchError(OSError):
    """More than a table may hold; `strerror` names the number and the limit."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


def _answers(path: str | os.PathLike[str]) -> Iterator[bytes]:
    number = size = named = 0
    first: Row = {}
    with open_regular(path, follow_links=False) as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise TooLargeError(path, num_bytes, MAX_BYTES)
        for number, row in enumerate(READERS[_suffix(path)](file), start=1):
            _check_shape(row, number)
            first = first or row
            text = _text_values(row)
            if 0 < len(name := text.get("file_name", "")) <= MAX_NAME_CHARS:
                named += 1
                line = json.dumps([table_key(name), text]).encode()
                size += len(line)
                if size > MAX_ANSWER_BYTES:
                    raise _TooMuchError(
                        f"its values are more than {MAX_ANSWER_BYTES // 1_000_000} megabytes of text"
                    )
                yield line
    if number and not named and any(_text_values(first)):
        yield _reason(f"has no column `file_name`; the columns are {_shown(first)}")
    else:
        yield str(number).encode()


def _check_shape(row: Row, number: int) -> None:
    if number > MAX_ROWS:
        raise _TooMuchError(f"more than {MAX_ROWS:,} rows, the most that a table may have")
    if len(row) > MAX_COLUMNS:
        raise _TooMuchError(f"row {number} has {len(row):,} columns, over the limit of {MAX_COLUMNS:,}")


def _reason(text: str) -> bytes:
    return json.dumps({"reason": f"the metadata table {text}"}).encode()


def _shown(row: Row) -> str:
    """Names of columns: if it is no table but a secret, not much of it."""
    names = [_one_line(str(name)[:SHOWN_CHARS]) for name in row if name]
    return ", ".join(names[:SHOWN_COLUMNS]) + (", …" if len(names) > SHOWN_COLUMNS else "")


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:200])


def _suffix(path: str | os.PathLike[str]) -> str:
    return posixpath.splitext(os.fspath(path))[1].lower()


def _parquet_rows(file: BinaryIO) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        if table.metadata.num_rows > MAX_ROWS:
            raise _TooMuchError(f"{table.metadata.num_rows:,} rows, over the limit of {MAX_ROWS:,}")
        plain = [column.name for column in table.schema_arrow if _is_plain(column.type)]
        for batch in table.iter_batches(BATCH_ROWS, columns=plain, use_threads=False):
            yield from batch.to_pylist()
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _is_plain(column_type: pa.DataType) -> bool:
    """Whether values are text or numbers: a picture inside the table need not be read."""
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer, types.is_floating)
    return any(test(column_type) for test in tests)


def _csv_rows(file: BinaryIO) -> Iterator[Row]:
    reader = csv.DictReader(_lines(io.TextIOWrapper(file, "utf-8-sig", newline="")))
    names = reader.fieldnames or ()
    if len(names) > MAX_COLUMNS:  # before rows are filled up to so many
        _check_shape(dict.fromkeys(map(str, range(len(names)))), 1)
    yield from reader


def _json_rows(file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(io.TextIOWrapper(file, "utf-8-sig")), start=1):
        row = json.loads(line) if line.strip() else {}
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        yield row


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise _TooMuchError(f"line {number} has more than {MAX_LINE_CHARS:,} characters")
        yield line


def _text_values(row: Row) -> dict[str, str]:
    plain = {key: str(value).strip() for key, value in row.items() if isinstance(value, str | int | float)}
    return {key: text for key, text in plain.items() if key and text}


READERS = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _json_rows}
