"""Join the rows of metadata tables to image files.

A file name may be written with backslashes, in another Unicode form, in another case, relative to the
table's folder, or behind the dataset's own path, if there is only one match. The audit remarks on such rows
and warns about rows that match nothing.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balancer.dataset.facet_table import Table, TableRow
from balancer.dataset.readers.table_values import table_key
from balancer.text.names import without_case
from balancer.text.quantities import counted

NameIndex = Mapping[str, Sequence[str]]
"""Files by a normalised form of their names."""

_OTHER_FORMS = {
    "slashes": "with backslashes",
    "absolute": "with the dataset's own path before them",
    "case": "in another case than the files'",
}


@dataclass(slots=True)
class Joined:
    """`rows` by file, as the listing names it. `unknown` are names in tables without a file."""

    rows: dict[str, TableRow] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def join(tables: Sequence[Table], root: Path, files: Iterable[str], left_out: Iterable[str] = ()) -> Joined:
    """`files` are all files of the dataset, including unreadable ones. What is in one of the folders
    `left_out`, which nobody looks into, is not unknown."""
    joined = Joined()
    if not tables:
        return joined
    exact, loose = _indexes(files)
    passed = tuple(f"{table_key(folder)}/" for folder in left_out)
    for table in tables:
        _join(table, root, exact, loose, passed, joined)
    return joined


def _join(
    table: Table, root: Path, exact: NameIndex, loose: NameIndex, passed: tuple[str, ...], joined: Joined
) -> None:
    joined.remarks += table.remarks
    joined.warnings += table.warnings
    forms: defaultdict[str, int] = defaultdict(int)
    matched: dict[str, Sequence[str]] = {}
    for key in table.rows:
        for form, name in _forms(key, table.folder, root):
            if name in exact:
                matched[key] = exact[name]
            elif len(alike := loose.get(without_case(name), ())) == 1:
                matched[key], form = exact[alike[0]], "case"
            elif name.startswith(passed):
                matched[key] = ()
            else:
                continue
            forms[form] += 1
            break
    for form, description in _OTHER_FORMS.items():
        if forms[form]:
            joined.remarks.append(f"{table.path}: {_file_names(forms[form])} written {description}")
    matched |= _match_behind_prefix(
        table, root, [key for key in table.rows if key not in matched], exact, joined
    )
    _assign_rows(table, matched, joined)


def _indexes(files: Iterable[str]) -> tuple[NameIndex, NameIndex]:
    """Files by the `table_key` of their names, and these keys by their form without case."""
    exact: defaultdict[str, list[str]] = defaultdict(list)
    for name in files:
        exact[table_key(name)].append(name)
    loose: defaultdict[str, list[str]] = defaultdict(list)
    for key in exact:
        loose[without_case(key)].append(key)
    return exact, loose


def _forms(key: str, folder: str, root: Path) -> Iterator[tuple[str, str]]:
    """(form, file name) for everything a name in a table can mean, the likeliest first."""
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


def _match_behind_prefix(
    table: Table, root: Path, keys: Sequence[str], exact: NameIndex, joined: Joined
) -> dict[str, Sequence[str]]:
    """Match file names that the table writes behind a folder, such as the dataset's former place.

    A folder with the dataset's name is certain. Any other folder counts only if it is the only one, with a
    warning.
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
        matched = behind[named[0]]
        joined.remarks.append(f"{table.path}: {_file_names(len(matched))} beginning with {named[0]}")
        return matched
    if len(behind) == 1:
        [(prefix, matched)] = behind.items()
        joined.warnings.append(
            f"{table.path}: {_file_names(len(matched))} beginning with {prefix}, taken for this dataset"
        )
        return matched
    return {}


def _assign_rows(table: Table, matched: Mapping[str, Sequence[str]], joined: Joined) -> None:
    contradicted = [key for key in table.contradicted if key in matched]
    for key, row in table.rows.items():
        for name in matched.get(key, ()):
            if not _same(joined.rows.setdefault(name, row), row):
                contradicted.append(key)
    unknown = [key for key in table.rows if key not in matched]
    joined.unknown += unknown
    if unknown:
        joined.warnings.append(_unknown_rows(table, unknown, bool(matched)))
    if contradicted:
        count = len(dict.fromkeys(contradicted))
        joined.warnings.append(
            f"{table.path}: rows of {counted(count, 'file')} contradict each other, such as "
            f"{contradicted[0]}; the first row counts"
        )


def _same(one: TableRow, other: TableRow) -> bool:
    return one == other or {**one, "file_name": ""} == {**other, "file_name": ""}


def _unknown_rows(table: Table, unknown: Sequence[str], others: bool) -> str:
    rows = counted(len(table.rows), "row")
    if others:
        name = "names" if len(unknown) == 1 else "name"
        return f"{table.path}: {len(unknown)} of {rows} {name} no image, such as {unknown[0]}"
    advice = "write class/0001.jpg, relative to the dataset"
    return f"{table.path}: {rows}, none of which names an image: there is no file {unknown[0]} ({advice})"


def _file_names(count: int) -> str:
    return counted(count, "file name")
