"""Which image each row of a table is about.

A file name counts in other forms than the file's own where there is no doubt: with backslashes, with accents
composed another way, in another case, relative to the table's folder, or behind the dataset's own path. What
was done is said, what matches nothing is a warning.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balancer.dataset.facet_table import Row, Table
from balancer.dataset.table_reader import table_key
from balancer.text.names import without_case
from balancer.text.quantities import counted

Index = Mapping[str, Sequence[str]]
"""Files by a form of their names."""

_OTHER_FORMS = {
    "slashes": "with backslashes",
    "absolute": "with the dataset's own path before them",
    "case": "in another case than the files'",
}


@dataclass(slots=True)
class Joined:
    """`rows` by file, as the listing names it. `unknown` are names in tables of which there is no file."""

    rows: dict[str, Row] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def join(tables: Iterable[Table], root: Path, files: Iterable[str]) -> Joined:
    """`files` are all that the dataset has, unreadable ones included."""
    joined = Joined()
    exact, loose = _indexes(files)
    for table in tables:
        _join(table, root, exact, loose, joined)
    return joined


def _join(table: Table, root: Path, exact: Index, loose: Index, joined: Joined) -> None:
    joined.remarks += table.remarks
    joined.warnings += table.warnings
    forms: defaultdict[str, int] = defaultdict(int)
    found: dict[str, Sequence[str]] = {}
    for key in table.rows:
        for form, name in _forms(key, table.folder, root):
            if name in exact:
                found[key] = exact[name]
            elif len(alike := loose.get(without_case(name), ())) == 1:
                found[key], form = exact[alike[0]], "case"
            else:
                continue
            forms[form] += 1
            break
    for form, what in _OTHER_FORMS.items():
        if forms[form]:
            joined.remarks.append(f"{table.path}: {_file_names(forms[form])} written {what}")
    found |= _behind_a_folder(table, root, [key for key in table.rows if key not in found], exact, joined)
    _take(table, found, joined)


def _indexes(files: Iterable[str]) -> tuple[Index, Index]:
    """Files by the `table_key` of their names, and these by what they have in common in any case."""
    exact: defaultdict[str, list[str]] = defaultdict(list)
    for name in files:
        exact[table_key(name)].append(name)
    loose: defaultdict[str, list[str]] = defaultdict(list)
    for key in exact:
        loose[without_case(key)].append(key)
    return exact, loose


def _forms(key: str, folder: str, root: Path) -> Iterator[tuple[str, str]]:
    """What a name in a table can stand for, the likeliest first; how it is written, and the file's name."""
    if folder and not posixpath.isabs(key):
        yield "own", table_key(f"{folder}/{key}")
    yield "own", key
    slashed = table_key(key.replace("\\", "/"))
    if slashed != key:
        if folder:
            yield "slashes", table_key(f"{folder}/{slashed}")
        yield "slashes", slashed
    for top in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
        if slashed.startswith(prefix := table_key(top) + "/"):
            yield "absolute", slashed.removeprefix(prefix)


def _behind_a_folder(
    table: Table, root: Path, keys: Sequence[str], exact: Index, joined: Joined
) -> dict[str, Sequence[str]]:
    """Files that stand behind one folder in the table, such as where the dataset was before.

    A folder of the dataset's name is that for certain. Of others there must be one only, and it is a warning.
    """
    behind: defaultdict[str, dict[str, Sequence[str]]] = defaultdict(dict)
    for key in keys:
        parts = table_key(key.replace("\\", "/")).split("/")
        for cut in range(1, len(parts) - 1):
            if (name := "/".join(parts[cut:])) in exact:
                behind["/".join(parts[:cut]) + "/"][key] = exact[name]
                break
    own = table_key(os.path.basename(os.path.realpath(root)))
    named = [prefix for prefix in behind if prefix.split("/")[-2] == own]
    if len(named) == 1:
        found = behind[named[0]]
        joined.remarks.append(f"{table.path}: {_file_names(len(found))} beginning with {named[0]}")
        return found
    if len(behind) == 1:
        [(prefix, found)] = behind.items()
        joined.warnings.append(
            f"{table.path}: {_file_names(len(found))} beginning with {prefix}, which is taken for this "
            "dataset"
        )
        return found
    return {}


def _take(table: Table, found: Mapping[str, Sequence[str]], joined: Joined) -> None:
    contradicted = [key for key in table.contradicted if key in found]
    for key, row in table.rows.items():
        for name in found.get(key, ()):
            if not _same(joined.rows.setdefault(name, row), row):
                contradicted.append(key)
    unknown = [key for key in table.rows if key not in found]
    joined.unknown += unknown
    if unknown:
        joined.warnings.append(_unknown_rows(table, unknown, bool(found)))
    if contradicted:
        count = len(dict.fromkeys(contradicted))
        joined.warnings.append(
            f"{table.path}: several rows of {counted(count, 'file')} say different things, such as "
            f"{contradicted[0]}; the first row counts"
        )


def _same(one: Row, other: Row) -> bool:
    return one == other or {**one, "file_name": ""} == {**other, "file_name": ""}


def _unknown_rows(table: Table, unknown: Sequence[str], others: bool) -> str:
    rows = counted(len(table.rows), "row")
    if others:
        return f"{table.path}: {len(unknown)} of {rows} name no image, such as {unknown[0]}"
    shape = "write class/0001.jpg, relative to the dataset"
    return f"{table.path}: {rows}, none of which names an image: there is no file {unknown[0]} ({shape})"


def _file_names(count: int) -> str:
    return counted(count, "file name")
