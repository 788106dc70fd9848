"""A manifest in a notebook: a table of a few of its images."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from balancer.errors import BalancerError
from balancer.manifest.image_files import ImageFiles
from balancer.report.sheets import evenly_spaced, thumbnail_uri
from balancer.text.quantities import counted
from balancer.text.safetext import printable

if TYPE_CHECKING:
    from balancer.manifest.query.rows import ManifestRows

ROWS = 10
"""Each row reads and decodes an image while the user waits for the cell."""


def manifest_html(manifest: ManifestRows) -> str:
    """A table of accepted images from all over the run, with thumbnails; text from rows is escaped.

    ManifestError if the manifest cannot be read. A row whose image cannot be read says so.
    """
    columns = ["id", "class", *manifest.run.facets, "source", "score"]
    ordered = manifest.to_table([*columns, "file_name"]).sort_by("id")  # ids begin with cells
    rows = [ordered.slice(place, 1).to_pylist()[0] for place in evenly_spaced(ordered.num_rows, ROWS)]
    files = ImageFiles.of(manifest.uri, manifest.run)
    lines = [
        f"<p>{_text(manifest.uri)}: {_counts(manifest)}</p>",
        f"<table><tr><th></th>{''.join(f'<th>{_text(name)}</th>' for name in columns)}</tr>",
        *(_row(row, columns, files) for row in rows),
        "</table>",
    ]
    return "\n".join(lines)


def _counts(manifest: ManifestRows) -> str:
    by_source = {row["source"]: row["count"] for row in manifest.count_by("source").to_pylist()}
    listed = ", ".join(f"{count} {_text(source)}" for source, count in by_source.items())
    return f"{counted(sum(by_source.values()), 'image')} ({listed})" if by_source else "no images"


def _row(row: dict[str, Any], columns: list[str], files: ImageFiles) -> str:
    cells = "".join(f"<td>{_text(_shown(row[name]))}</td>" for name in columns)
    return f"<tr><td>{''.join(_image(row, files))}</td>{cells}</tr>"


def _image(row: dict[str, Any], files: ImageFiles) -> Iterator[str]:
    try:
        yield f'<img src="{thumbnail_uri(files.read(row["file_name"], row["source"]))}">'
    except BalancerError:
        yield "(cannot be read)"


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else value


def _text(value: object) -> str:
    return escape(printable(str(value)))
