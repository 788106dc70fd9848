"""What a run can have written into a row: a log with a valid checksum may still say anything.

Looked at wherever rows are read, column by column and only those that are read, so that whoever takes a row
need not doubt its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.columns import COLUMNS, names_where
from balancer.manifest.log.fragment import BrokenFragmentError
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC, VOID
from balancer.manifest.runfile import RunInfo
from balancer.text.safetext import shortened

POSSIBLE = "rows have values that a run can write"
HAS_ID = "every row has an id"
MEMBERSHIP = "known status and source"
PLANNED = "cells are planned"
HAS_IMAGE = "accepted rows have an image"

RANGES: Mapping[str, tuple[int, int]] = {
    column.name: column.limits for column in COLUMNS if column.limits is not None
}

YEARS = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""Microseconds since 1970 of the years 1 to 9999, outside of which Python has no dates."""

FORMS: Mapping[str, tuple[str, str]] = {
    column.name: column.form for column in COLUMNS if column.form is not None
}

MAX_PATH_BYTES = 4096
"""Of a file name: what Linux opens, and four times as long as a key of S3."""

MAX_NAME_BYTES = 10_000
"""Of a class or facet value: a fragment has each once, and any number of rows may name it. Those of a config
have up to 100 characters."""

OF_ALL = names_where(lambda column: column.required == "all")
OF_CANDIDATES = names_where(lambda column: column.required == "synthetic")
OF_FILES = names_where(lambda column: column.required == "files")
"""Columns without which a row, that of a candidate, and one that names a file are nothing."""

WORDS: Mapping[str, Collection[str]] = {
    "source": (REAL, SYNTHETIC),
    "status": (ACCEPTED, REJECTED, VOID),
}

Condition = Callable[[], pa.ChunkedArray]
Wrong = tuple[str, str]
"""The rule that a row breaks, and how."""


@dataclass(frozen=True, slots=True)
class Known:
    """What run.json and later plan revisions name: classes, and of each planned cell the properties it is
    judged on. `types` are those of the columns of the manifest."""

    classes: frozenset[str]
    cells: Mapping[str, frozenset[str]]
    types: Mapping[str, pa.DataType]

    @classmethod
    def of(cls, info: RunInfo) -> Known:
        names = (CLASS_PROPERTY, *info.facets)
        revisions = (info, *info.later.values())
        cells = {
            cell["cell"]: frozenset(name for name in names if cell.get(name) is not None)
            for revision in revisions
            for cell in revision.plan
        }
        classes = frozenset(name for each in revisions for name in each.config["classes"])
        return cls(classes, cells, {column.name: column.type for column in info.schema()})


def check_values(rows: pa.Table, path: str, known: Known | None = None) -> None:
    """BrokenFragmentError if a row of this fragment has a value that no run can have written. Without `known`
    names are not looked at."""
    for rule, detail in wrong_values(rows, known):
        raise BrokenFragmentError(path, rule, detail)


def check_together(fragments: Sequence[tuple[str, pa.Table]], known: Known | None = None) -> None:
    """As `check_values`, of many small fragments: one by one only to find the first that is wrong."""
    if not fragments:
        return
    bare = [table.replace_schema_metadata() for _, table in fragments]
    if next(wrong_values(pa.concat_tables(bare), known), None) is not None:
        for path, table in fragments:
            check_values(table, path, known)


def wrong_values(rows: pa.Table, known: Known | None = None) -> Iterator[Wrong]:
    """The first row that is wrong in each column."""
    if not rows.num_rows:
        return
    names = frozenset(rows.column_names)
    yield from _lacking(rows, names)
    for name in names & RANGES.keys():
        yield from _out_of_range(rows, name, rows[name], RANGES[name])
    if "generated_at" in names:
        yield from _out_of_range(rows, "generated_at", rows["generated_at"].cast(pa.int64()), YEARS)
    if "file_name" in names:
        yield from _too_long(rows)
    if long := [name for name in rows.column_names if _longest_in_dictionary(rows[name]) > MAX_NAME_BYTES]:
        yield POSSIBLE, f"a row has a {long[0]} of more than {MAX_NAME_BYTES:,} bytes"
        return  # other checks would copy it for every row
    for name in names & FORMS.keys():
        yield from _misshapen(rows, name)
    for name in names & WORDS.keys():
        yield from _unknown(rows, name, WORDS[name], MEMBERSHIP, "none of those there are")
    if known is not None:
        yield from _unnamed(rows, names, known)


def _lacking(rows: pa.Table, names: Collection[str]) -> Iterator[Wrong]:
    if "id" in names and rows["id"].null_count:
        yield HAS_ID, f"row {rows['id'].is_null().index(True).as_py() + 1} of its rows has none"
    for name in OF_ALL:
        if name in names and _has_null(rows[name]):
            yield _null(rows, name, rows[name].is_null())
    if "source" in names:
        yield from _null_where(rows, names, OF_CANDIDATES, lambda: pc.equal(rows["source"], SYNTHETIC))
    if "file_name" in names:
        yield from _null_where(rows, names, OF_FILES, rows["file_name"].is_valid)
    if "status" in names:
        accepted = _null_where(rows, names, ("file_name",), lambda: pc.equal(rows["status"], ACCEPTED))
        yield from ((HAS_IMAGE, detail) for _, detail in accepted)


def _null_where(
    rows: pa.Table, names: Collection[str], columns: Collection[str], need: Condition
) -> Iterator[Wrong]:
    for name in columns:
        if name in names and rows[name].null_count:
            lacking = pc.and_(need(), rows[name].is_null()).fill_null(False)
            if pc.any(lacking).as_py():
                yield _null(rows, name, lacking)


def _has_null(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return True
    return pa.types.is_dictionary(column.type) and any(chunk.dictionary.null_count for chunk in column.chunks)


def _null(rows: pa.Table, name: str, where: pa.ChunkedArray) -> Wrong:
    return (MEMBERSHIP if name in WORDS else POSSIBLE), f"{_row(rows, where)} has no {name}"


def _out_of_range(
    rows: pa.Table, name: str, column: pa.ChunkedArray, limits: tuple[int, int]
) -> Iterator[Wrong]:
    found = pc.min_max(column)
    least, most = found["min"].as_py(), found["max"].as_py()
    low, high = limits
    if least is None or (least >= low and most <= high):
        return
    wrong = least if least < low else most
    row = _row(rows, pc.equal(column, wrong))
    if name == "generated_at":
        yield POSSIBLE, f"{row} has a {name} outside the years 1 to 9999"
    else:
        yield POSSIBLE, f"{row} has {name} {wrong:,}, not {low:,} to {high:,}"


def _too_long(rows: pa.Table) -> Iterator[Wrong]:
    lengths = pc.binary_length(rows["file_name"])
    if (longest := pc.max(lengths).as_py() or 0) > MAX_PATH_BYTES:
        row = _row(rows, pc.equal(lengths, longest))
        yield POSSIBLE, f"{row} has a file_name of {longest:,} bytes, the limit is {MAX_PATH_BYTES:,}"


def _longest_in_dictionary(column: pa.ChunkedArray) -> int:
    if not pa.types.is_dictionary(column.type):
        return 0
    return max(
        (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks), default=0
    )


def _misshapen(rows: pa.Table, name: str) -> Iterator[Wrong]:
    form, words = FORMS[name]
    fits = pc.match_substring_regex(rows[name], form)
    if not pc.all(fits, min_count=0).as_py():
        wrong = pc.invert(fits)
        yield POSSIBLE, f"{_row(rows, wrong)} has {name} {_value(rows, name, wrong)}, not {words}"


def _unknown(
    rows: pa.Table, name: str, allowed: Collection[str], rule: str, otherwise: str
) -> Iterator[Wrong]:
    found = {value for value in _values(rows[name]) if value is not None}
    if odd := found.difference(allowed):
        wrong = pc.equal(_plain(rows[name]), min(odd))
        yield rule, f"{_row(rows, wrong)} has {name} {shortened(repr(min(odd)))}, {otherwise}"


def _unnamed(rows: pa.Table, names: Collection[str], known: Known) -> Iterator[Wrong]:
    if CLASS_PROPERTY in names:
        lacks = "which run.json lacks"
        yield from _unknown(rows, CLASS_PROPERTY, known.classes, POSSIBLE, lacks)
    if "cell" in names:
        yield from _unknown(rows, "cell", known.cells.keys(), PLANNED, "which the plan lacks")
    if {"scores", "cell", "source"} <= set(names):
        yield from _unscored(rows, known)


def _unscored(rows: pa.Table, known: Known) -> Iterator[Wrong]:
    """Candidates without a score of a property of their cell."""
    is_scored = pc.and_(pc.equal(rows["source"], SYNTHETIC), rows["scores"].is_valid())
    for place, field in enumerate(rows.schema.field("scores").type):
        lacking = pc.and_(is_scored, pc.is_null(pc.struct_field(rows["scores"], [place])))
        cells = pc.unique(rows["cell"].filter(lacking)).to_pylist()
        wrong = [cell for cell in cells if field.name in known.cells.get(cell, ())]
        if wrong:
            row = _row(rows, pc.and_(lacking, pc.equal(rows["cell"], wrong[0])))
            yield POSSIBLE, f"{row} has no score for {shortened(field.name)}"


def _values(column: pa.ChunkedArray) -> list[str | None]:
    if not pa.types.is_dictionary(column.type):
        return list(pc.unique(column).to_pylist())
    return [value for chunk in column.chunks for value in chunk.dictionary.to_pylist()]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _row(rows: pa.Table, where: pa.ChunkedArray) -> str:
    at = where.index(True).as_py()
    row_id = rows["id"][at].as_py() if at >= 0 and "id" in rows.column_names else None
    return "a row" if row_id is None else f"row {shortened(repr(row_id))}"


def _value(rows: pa.Table, name: str, where: pa.ChunkedArray) -> str:
    return shortened(repr(rows[name][where.index(True).as_py()].as_py()))
