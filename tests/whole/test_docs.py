"""The site of docs/: it builds without a warning, and its reference pages say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import balancer
import columns_page
from balancer import errors
from balancer.cli import COMMANDS, main
from balancer.manifest.columns import COLUMNS
from balancer.manifest.schema import manifest_schema
from docs.conf import DOCS, PAGES_OF, ROOT, for_the_site

LACKING = [name for name in ("sphinx", "myst_parser", "sphinx_click", "furo") if find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(
    bool(LACKING), reason=f"not installed: {', '.join(LACKING)}; pip install -c constraints.txt -e '.[docs]'"
)


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    options = ["-W", "--keep-going", "-q", "-j", "1", "-b", "html", "-d", f"{out}-doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out


@needs_sphinx
def test_the_site_builds_without_a_warning_and_has_every_page(site):
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")]
    assert len(pages) > 12
    assert [page for page in pages if not (site / page).is_file()] == []


@needs_sphinx
def test_the_site_shows_every_command_under_its_name(site):
    titles = re.findall(r"<h3>([\w-]+)<", (site / "commands.html").read_text())
    assert sorted(titles) == sorted(COMMANDS)


@needs_sphinx
def test_the_site_shows_every_verb(site):
    shown = (site / "python.html").read_text()
    assert [verb for verb in balancer.__all__ if f'id="balancer.{verb}"' not in shown] == []


@needs_sphinx
def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = [
        (page.name, found)
        for page in site.rglob("*.html")
        for found in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text()
        )
    ]
    assert loaded == []


BROKEN = {
    "[nothing](nothing.md)": "'nothing.md'",
    "[no section](index.md#no-section)": "no-section",
    "[no file](../nothing.py)": "../nothing.py",
    "[no folder](../nothing/)": "../nothing/",
    "```{eval-rst}\n.. autofunction:: balancer.no_verb\n```": "'no_verb'",
}


@needs_sphinx
def test_broken_references_and_a_page_left_out_fail_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "conf.py").write_text((DOCS / "conf.py").read_text())
    (docs / "index.md").write_text("\n\n".join(["# Start", *BROKEN]))
    (docs / "left_out.md").write_text("# Left out\n")
    done = build(docs, tmp_path / "out")
    assert done.returncode != 0
    assert [warning for warning in [*BROKEN.values(), "left_out.md"] if warning not in done.stderr] == []


def test_links_lead_to_pages_files_or_nowhere():
    assert for_the_site("[a](training.md#splits)", DOCS) == "[a](/training.md#splits)"
    assert for_the_site("![a](docs/accepted.png)", ROOT) == "![a](/accepted.png)"
    assert for_the_site("[a](../SECURITY.md)", DOCS) == "[a](/project/security.md)"
    assert for_the_site("[a](LICENSE)", ROOT) == "[a](/../LICENSE)"
    assert for_the_site("[`a`](../balancer/config)", DOCS) == "`a`"
    assert for_the_site("[a](nothing.md)", DOCS) == "[a](nothing.md)"
    assert (
        for_the_site("[a](https://example.org/a.md) [b](#b)", DOCS) == "[a](https://example.org/a.md) [b](#b)"
    )


def test_every_document_at_the_top_has_a_page():
    assert set(PAGES_OF) == {*ROOT.glob("*.md")}
    for document, page in PAGES_OF.items():
        assert f"{{include}} ../../{document.name}\n" in (DOCS / page).read_text()


def test_the_start_page_links_every_page():
    linked = {
        (DOCS / path).resolve() for path in re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text())
    }
    assert linked == {*DOCS.glob("*.md"), *PAGES_OF} - {DOCS / "index.md"}


def test_every_command_has_its_own_name():
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in COMMANDS}
    assert {name: command.name for name, command in commands.items()} == dict(
        zip(COMMANDS, COMMANDS, strict=True)
    )


def test_the_page_of_columns_shows_the_schema_as_it_is():
    assert columns_page.PAGE.read_text() == columns_page.page()


def test_every_column_is_explained_and_no_other():
    names = manifest_schema({"class": 2, columns_page.FACET: 2}, embedding_dim=1).names
    assert [column.name for column in COLUMNS if column.meaning] == names


def test_the_page_of_exit_codes_names_every_error_with_its_code():
    table = (DOCS / "exit_codes.md").read_text().split("## From Python")[1]
    shown = re.findall(r"^\| ((?:– )*)`(\w+)` \| ([\d, ]+) \|", table, re.MULTILINE)
    assert [(name, depth.count("–")) for depth, name, _ in shown] == list(kinds(errors.BalancerError))
    for _, name, codes in shown:
        expected = "129, 130, 143" if name == "InterruptedRun" else str(getattr(errors, name).exit_code)
        assert codes == expected


def kinds(error, depth=0):
    yield error.__name__, depth
    for kind in error.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind, depth + 1)


def test_the_page_of_exit_codes_and_the_help_have_the_same_codes():
    listed = " ".join((main.help or "").split("Exit codes")[1].split())
    shown = re.findall(r"(?:: |, )((?:\d+, )*\d+) [a-z]", listed)
    page = (DOCS / "exit_codes.md").read_text().split("## From Python")[0]
    assert {*re.findall(r"^\| ([\d, ]+) \| ", page, re.MULTILINE)} == {*shown, "141"}
