"""A path with a home that the system does not know is one line, wherever a user may write it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.errors import UsageError
from balancer.manifest.snapshot.build import compact
from balancer.storage import open_storage
from balancer.storage.user_paths import expanded

LOST = "~no_such_user/x"


def test_a_home_is_expanded_and_nothing_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == Path("/home/me/x")
    assert expanded("a/~") == Path("a/~")


def test_a_path_whose_home_is_not_known_is_refused_by_name():
    with pytest.raises(UsageError, match="DEST: ~no_such_user/x: the home folder ~no_such_user is not known"):
        expanded(LOST, "DEST")


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", LOST],
        ["init", LOST],
        ["init", "sample", "--out", LOST],
        ["convert", "configs/demo.yaml", "--out", LOST],
        ["sample", LOST],
        ["plan", LOST],
        ["plan", "configs/demo.yaml", "--set", f"dataset.path={LOST}"],
        ["plan", "configs/demo.yaml", "--set", f"generation.model={LOST}"],
        ["plan", "configs/demo.yaml", "--set", f"verification.model={LOST}"],
        ["run", "configs/demo.yaml", "--out", LOST],
        ["status", LOST],
        ["report", LOST],
        ["export", LOST, "hf", "out"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_home_that_is_not_known(arguments, project, monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(project / "configs")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert "the home folder ~no_such_user is not known" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.exit_code == 2
    assert not any(name.startswith("~") for name in os.listdir(tmp_path))


def test_a_cache_whose_home_is_not_known_is_one_line(monkeypatch):
    monkeypatch.setenv("BALANCER_CACHE", LOST)
    result = CliRunner().invoke(main, ["audit", "sample"])
    assert "BALANCER_CACHE: ~no_such_user/x" in " ".join(result.stderr.split())
    assert result.exit_code == 2


ODD = os.fsdecode(b"/odd\xff\xfe")
"""The system has such names; a library that wants UTF-8 must not be given them as text."""


def test_a_cache_whose_name_is_not_utf8_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("BALANCER_CACHE", f"{tmp_path}{ODD}")
    assert CliRunner().invoke(main, ["audit", "sample"]).exit_code == 0
    assert any(name.startswith("sample-") for name in os.listdir(f"{tmp_path}{ODD}"))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_run_and_an_export_may_have_names_that_are_not_utf8(project, tmp_path, form):
    run, out = f"{tmp_path}{ODD}", f"{tmp_path}{ODD}.out"
    shutil.copytree(project / "tests/data/earlier_run/run", run)
    compact(open_storage(run, create=False), rebuild=True)
    for _ in range(2):  # into a new file, and over it
        result = CliRunner().invoke(main, ["export", run, form, out])
        assert result.exit_code == 0, result.stderr
