"""The package as Python code sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import balancer
from balancer.errors import UsageError
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import real, row, start

DIM, SEVERE = "basic/dim/0000", "burnt/dim/severe/0000"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two real images, the file of one of which is gone, and two generated ones."""
    rows = [real("a.png"), real("gone.png", "burnt"), row(DIM), row(SEVERE)]
    for one in rows:
        one["split"] = "train"
    folder = tmp_path / "run"
    log = start(open_storage(folder, create=True))
    for one in rows:
        if "gone" not in one["file_name"]:
            (folder / one["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(folder / one["file_name"], "PNG")
    log.commit(rows)
    log.close("short")
    return folder


@pytest.fixture
def manifest(run: Path) -> Manifest:
    return balancer.open_manifest(run)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_run_of_no_slots_is_refused(limit, tmp_path):
    with pytest.raises(UsageError, match="1 slot at least"):
        balancer.run("nothing.yaml", tmp_path / "run", limit=limit)


def test_the_version_is_that_of_the_package():
    assert balancer.__version__ == metadata.version("balancer")


def test_what_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        balancer.nothing  # noqa: B018


@pytest.mark.parametrize("name", balancer.__all__)
def test_no_import_of_a_module_takes_the_place_of_a_verb(name: str):
    modules = "balancer.cli.runs.run, balancer.report, balancer.export, balancer.manifest.status"
    code = f"import balancer, {modules}; assert type(balancer.{name}).__name__ == 'function'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_manifest_is_told_in_one_short_line(manifest: Manifest, run: Path):
    assert repr(manifest) == (
        f"Manifest('{run}', run_id='run-1', classes=2, facets=['lighting', 'burn_level'])"
    )


def test_a_notebook_shows_a_manifest_as_a_table_with_images(manifest: Manifest):
    page = manifest._repr_html_()
    assert "4 images (2 real, 2 synthetic)" in page
    assert page.count("<tr>") == 5
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert page.count("(cannot be read)") == 1
    for text in (SEVERE, "real/gone.png", "burnt", "severe"):
        assert text in page


def test_what_a_notebook_shows_has_no_markup_of_others(tmp_path: Path):
    hostile = "<script>\x1b&"
    log = start(open_storage(tmp_path, create=True))
    log.commit([row(f"{DIM}", id=hostile, file_name="images/none.png")])
    page = balancer.open_manifest(tmp_path)._repr_html_()
    assert "&lt;script&gt;\\x1b&amp;" in page
    assert set(re.findall(r"</?(\w+)", page)) == {"p", "table", "tr", "th", "td"}


def test_an_empty_run_is_shown_as_well(tmp_path: Path):
    start(open_storage(tmp_path, create=True))
    assert "no images" in balancer.open_manifest(tmp_path)._repr_html_()


def test_of_many_rows_a_notebook_shows_a_few(tmp_path: Path):
    log = start(open_storage(tmp_path, create=True))
    log.commit([real(f"{number}.png") for number in range(500)])
    assert balancer.open_manifest(tmp_path)._repr_html_().count("<tr>") == 11


@pytest.mark.parametrize("columns", [("class", "source"), (["class", "source"],), (("class",), "source")])
def test_columns_to_count_by_are_names_or_lists_of_them(manifest: Manifest, columns):
    assert manifest.count_by(*columns) == manifest.count_by("class", "source")


def test_a_single_name_is_one_column_wherever_several_may_be_named(manifest: Manifest):
    assert manifest.to_table("class") == manifest.to_table(["class"])
    assert manifest.dataset("class").schema.names == ["class"]
    assert [*manifest.sampler(by="class", split=None, seed=1)] == [
        *manifest.sampler(by=["class"], split=None, seed=1)
    ]
    assert manifest.to_torch(None, facets="lighting").facet_values.keys() == {"lighting"}


def test_the_status_of_a_run_is_what_the_command_prints(run: Path):
    status = balancer.run_status(run)
    assert (status["state"], status["accepted"]) == ("short", 2)


def test_a_report_is_written_where_it_belongs_or_where_it_is_wanted(run: Path, tmp_path: Path):
    assert balancer.write_report(run) == f"{run}/report.html"
    assert balancer.write_report(run, tmp_path / "page.html") == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_an_export_has_the_options_of_the_command(run: Path, tmp_path: Path):
    exported = balancer.export_run(run, "parquet", tmp_path / "rows", "source = 'synthetic'")
    assert exported.images == 2
    with pytest.raises(UsageError, match="option embed"):
        balancer.export_run(run, "folders", tmp_path / "other", embed=True)


def test_a_run_shows_its_progress_when_asked(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    shown = []
    monkeypatch.setattr("actors.run.run", lambda *given, reporter, **others: shown.append(reporter))
    config = tmp_path / "job.yaml"
    config.write_text("target: {per_class: 1}\nclasses: {a: {prompts: [a]}}\n")
    balancer.run(config, tmp_path / "out")
    balancer.run(config, tmp_path / "out", progress=True)
    assert shown[0] is None
    shown[1].note("a note")
    assert "a note" in capsys.readouterr().err
