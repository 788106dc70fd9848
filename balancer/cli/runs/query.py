"""`balancer query`: rows or counts of a manifest, as a table, JSON, CSV, Parquet or Arrow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.errors import UsageError
from balancer.text.quantities import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import ManifestRows

FORMATS = ("table", "json", "csv", "parquet", "arrow")
BINARY = ("parquet", "arrow")
TERMINAL_ROWS = 200


@click.command(name="query")
@click.argument("run", metavar="RUN")
@click.argument("condition", metavar="[FILTER]", default="")
@click.option("--count-by", metavar="A,B", help="Count rows by these columns instead of listing them.")
@click.option("--columns", metavar="A,B", help="The columns to show, in this order.")
@click.option("--all", "everything", is_flag=True, help="Include rejected candidates.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="By default the suffix of --output, or a table."
)
@click.option("--output", metavar="FILE", help="Write to a file instead of standard output.")
def command(
    run: str,
    condition: str,
    count_by: str | None,
    columns: str | None,
    everything: bool,
    form: str | None,
    output: str | None,
) -> None:
    """Select rows of the manifest in RUN: the real and the accepted images.

    FILTER is a SQL condition, such as "class = 'burnt' and score >= 0.8". In CSV, text that a spreadsheet
    would run as a formula (it begins with = + - @ or a tab) gets a leading apostrophe; JSON, Parquet and
    Arrow keep it unchanged.
    """
    from balancer.manifest.query.rows import open_rows
    from balancer.storage import open_storage

    form = form or _guess_format(output)
    _check_destination(form, output)
    rows = open_rows(open_storage(run, create=False))
    by = _names("--count-by", count_by, rows.schema.names)
    shown = _names("--columns", columns, rows.schema.names)
    table = _select(rows, condition, by, shown, everything)
    if form == "table":
        _print_table(table, by is None and shown is None, rows.run.facets, exact=by is not None)
    else:
        _emit(_rendered(table, form, keep_embedding=columns is not None), output)
    if not table.num_rows and "status" in condition and not everything:
        console.note("no rows; --all includes rejected candidates")


def _select(
    rows: ManifestRows,
    condition: str,
    count_by: list[str] | None,
    columns: list[str] | None,
    everything: bool,
) -> pa.Table:
    status: Any = "all" if everything else "accepted"
    if count_by is None:
        return rows.to_table(columns, condition, status)
    if columns is not None:
        raise UsageError("--columns and --count-by cannot be combined", hint="give one of them")
    return rows.count_by(*count_by, filter=condition, status=status)


def _names(option: str, listed: str | None, known: list[str]) -> list[str] | None:
    """Split a comma-separated list; a name with a comma goes in double quotes, unless it is the only one."""
    if listed is None or listed in known:
        return None if listed is None else [listed]
    import csv

    names = [name.strip() for line in csv.reader([listed], skipinitialspace=True) for name in line]
    if not any(names):
        raise UsageError(f"{option} names no column", hint=f"the columns are {', '.join(known)}")
    return [name for name in names if name]


def _guess_format(output: str | None) -> str:
    suffix = os.path.splitext(output or "")[1][1:].lower()
    return suffix if suffix in FORMATS else "table"


def _check_destination(form: str, output: str | None) -> None:
    if form == "table" and output is not None:
        raise UsageError(
            f"a table cannot be written to {output}", hint="add --format json, csv, parquet or arrow"
        )
    if _guess_format(output) not in ("table", form):
        raise UsageError(
            f"--format {form} does not match the name {output}",
            hint="omit --format, or change the file's suffix",
        )
    if form in BINARY and output is None and console.is_terminal():
        raise UsageError(
            f"{form} is binary and would garble the terminal", hint="add --output FILE, or use a pipe"
        )


def _print_table(table: pa.Table, choose: bool, facets: list[str], exact: bool) -> None:
    """On a terminal the first rows only, to a pipe all of them. With `exact` numbers keep all their digits,
    because rounding could make different values look the same."""
    from balancer.manifest.formats import json_rows

    title = counted(table.num_rows, "row")
    if choose:
        table = table.select(["id", "class", *facets, "source", "status", "reason", "score", "file_name"])
        table, same = _without_constants(table)
        title += f", all of them with {same}" if same else ""
    shown = table.slice(0, TERMINAL_ROWS) if console.is_terminal() else table
    rows = [[_cell(value, exact) for value in row.values()] for row in json_rows(shown)]
    console.table(title, table.column_names, rows, one_line=True)
    if shown.num_rows < table.num_rows:
        console.note(
            f"the first {shown.num_rows} of {counted(table.num_rows, 'row')}; --format csv gives all"
        )


def _without_constants(table: pa.Table) -> tuple[pa.Table, str]:
    """The columns in which rows differ, and the other columns' values as text, without nulls."""
    if table.num_rows < 2:
        return table, ""
    from balancer.manifest.formats import json_rows

    constant = [name for name in table.column_names if len(table[name].unique()) == 1]
    [values] = json_rows(table.select(constant).slice(0, 1))
    same = ", ".join(f"{name} {_cell(value)}" for name, value in values.items() if value is not None)
    return table.drop_columns(constant), same


def _cell(value: object, exact: bool = False) -> str | int | float | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return value if exact else round(value, 4)
    return value if value is None or isinstance(value, int | str) else str(value)


def _rendered(table: pa.Table, form: str, keep_embedding: bool) -> bytes:
    from balancer.manifest import formats
    from balancer.manifest.columns import EMBEDDING

    if form == "parquet":
        return formats.parquet_bytes(table)
    if form == "arrow":
        return formats.arrow_bytes(table)
    if EMBEDDING in table.column_names and not keep_embedding:
        table = table.drop_columns([EMBEDDING])  # a thousand numbers a row
    if form == "csv":
        return formats.csv_text(table).encode()
    return f"{console.json_text(formats.json_rows(table))}\n".encode()


def _emit(data: bytes, output: str | None) -> None:
    if output is None:
        console.emit(data)
        return
    from balancer.storage import write_outside_runs

    write_outside_runs(output, data, "--output")
    console.note(f"wrote {output}")
