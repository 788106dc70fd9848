"""The text of a condition or a query: names as the run spells them, and what is wrong with it, in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from balancer.errors import UsageError
from balancer.text.names import composed

if TYPE_CHECKING:
    import duckdb

    from balancer.manifest.runfile import RunInfo

_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[^\s'"(),=<>!+*/%;]+""")
_EXAMPLE = "a condition looks like: class = 'burnt' and score >= 0.8"


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def as_spelled(condition: str, run: RunInfo) -> str:
    """A condition with the names of the run as the run has them: accents can be typed in two ways. Anything
    else in it, such as the id of an image, stays as it is."""
    if condition.isascii():
        return condition
    facets = {composed(name): name for name in run.facets}
    values = {composed(name): name for name in _names_of_values(run)}

    def spelled(match: re.Match[str]) -> str:
        token = match[0]
        if token[0] == "'":
            known = values.get(composed(token[1:-1].replace("''", "'")))
            return token if known is None else "'" + known.replace("'", "''") + "'"
        if token[0] == '"':
            known = facets.get(composed(token[1:-1].replace('""', '"')))
            return token if known is None else quoted(known)
        return facets.get(composed(token), token)

    return _TOKEN.sub(spelled, condition)


def _names_of_values(run: RunInfo) -> Iterator[str]:
    yield from run.config["classes"]
    for facet in run.config["facets"].values():
        yield from facet["values"]


def explained(error: duckdb.Error, text: str, columns: Sequence[str]) -> UsageError:
    import duckdb

    first_line = str(error).partition("\n")[0].partition(": ")[2]
    hint = _hint_to_quote(text, columns)
    if not hint and (unknown := re.match(r'Referenced column "(.+?)" not found', first_line)):
        return no_column(unknown[1], columns, quoted=f'"{unknown[1]}"' in text)
    if isinstance(error, duckdb.ParserException):
        return UsageError(f"{text!r} is not valid SQL: {first_line}", hint=hint or _EXAMPLE)
    return UsageError(f"{text!r} cannot be evaluated: {first_line}", hint=hint or _EXAMPLE)


def _hint_to_quote(text: str, columns: Sequence[str]) -> str:
    """Where a condition names a column that SQL reads as something else; empty if there is none."""
    bare = [match[0] for match in _TOKEN.finditer(text) if match[0][0] not in "'\""]
    named = [name for name in columns if name in bare]
    reserved = _reserved_words() if named else set()
    found = [name for name in named if name.lower() in reserved or not name.isidentifier()]
    return f"this column goes in double quotes: {quoted(found[0])}" if found else ""


def _reserved_words() -> set[str]:
    """Those that cannot be the name of a column without quotes."""
    import duckdb

    query = (
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    )
    with duckdb.connect(":memory:") as database:
        return {str(word) for (word,) in database.execute(query).fetchall()}


def no_column(name: str, columns: Sequence[str], quoted: bool = False) -> UsageError:
    if quoted:
        return UsageError(f'no column "{name}"', hint=f"text goes in single quotes: '{name}'")
    near = difflib.get_close_matches(name, columns, n=1)
    question = f", did you mean {near[0]!r}?" if near else ""
    return UsageError(f"no column {name!r}{question}", hint=f"the columns are {', '.join(columns)}")
