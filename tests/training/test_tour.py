"""docs/training.md: its program runs, and its figures are those that come out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from balancer.dataset.sample import write_dataset
from balancer.export import FORMATS

SEED_TOLERANCE = 0.1
"""Of a net that another version of torch, or another CPU, trains a little differently."""


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "docs" / "training.md").read_text()


@pytest.fixture(scope="module")
def program(page: str) -> str:
    before_results = page.split("## Results")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", before_results, re.DOTALL))


def test_the_program_is_under_40_lines(program):
    assert len([line for line in program.splitlines() if line.strip()]) < 40


def test_the_program_runs_and_gives_the_figures_of_the_page(
    page, program, reference_run, tmp_path, monkeypatch, capsys
):
    write_dataset(tmp_path / "data" / "sample")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(reference_run)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # threads that wait for busy cores take many times as long
    exec(compile(program, "docs/training.md", "exec"), {"__name__": "tour"})
    printed = re.findall(r"^(.*), (before|after): ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    found = {(classifier, arm): float(figure) for classifier, arm, figure in printed}
    stated = dict(re.findall(r"^\| ([a-z][^|]*) \| ([\d.]+ \| [\d.]+) \|$", page, re.MULTILINE))
    assert len(found) == 4
    for name, classifier in (
        ("linear head", "linear head on stored embeddings"),
        ("conv net", "small convolutional net"),
    ):
        before, after = map(float, stated[classifier].split(" | "))
        assert found[name, "before"] == pytest.approx(before, abs=0.001)
        assert found[name, "after"] == pytest.approx(after, abs=SEED_TOLERANCE)
        assert found[name, "after"] > found[name, "before"] + 0.3


def test_the_page_names_every_export_format(page):
    table = page.split("| format |")[1].split("\n\n")[0]
    named = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == set(FORMATS)
