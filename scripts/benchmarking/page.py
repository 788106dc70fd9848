"""Generate the pages under docs/ that show figures from the results under benchmarks/."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import click
import jinja2

from benchmarking.record import RESULTS

PAGES = {
    name: RESULTS.parent / "docs" / f"{name}.md"
    for name in ("adaptation", "gate", "gpu", "models", "performance", "reliability")
}
"""Each has its template beside this file."""

UNMEASURED = ("gate", "gate_product", "review", "sdxl")
"""Results that may be missing."""


@click.command("page")
def command() -> None:
    """Write the pages of docs/ that show figures."""
    for name, path in PAGES.items():
        path.write_text(page(name))
        click.echo(path)


def _multiple(sizes: dict[str, str]) -> str:
    """The sizes that a family makes, by the widths that were tried."""
    made = [int(width) for width, result in sizes.items() if result == "made"]
    if len(made) == 1:
        return f"{made[0]} x {made[0]} of those tried"
    return f"multiples of {math.gcd(*made)}; others refused"


def page(name: str) -> str:
    """The text of a page, for the results as they are."""
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["multiple"] = _multiple
    text = environment.get_template(f"{name}.md.j2").render(dict.fromkeys(UNMEASURED) | results)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
