"""docs/performance.md, drawn from the results under benchmarks/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import jinja2

from benchmarking.record import RESULTS

PAGE = RESULTS.parent / "docs" / "performance.md"


@click.command("page")
def command() -> None:
    """Write docs/performance.md."""
    PAGE.write_text(page())
    click.echo(PAGE)


def page() -> str:
    """Its text, for the results as they are."""
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("performance.md.j2").render({"sdxl": None} | results)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
