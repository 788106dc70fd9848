"""A file of the user's in the place of a package is named before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import balancer
from balancer.cli import main
from balancer.errors import UnavailableError
from balancer.process.shadowed import refuse_shadowed

HOME = Path(balancer.__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(HOME), *sys.path])


@pytest.mark.parametrize(
    "name", ["actors.py", "balancer.py", "torch.py", "numpy/__init__.py", "actors/__init__.py"]
)
def test_a_module_in_the_working_folder_that_hides_a_package_is_named(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UnavailableError) as caught:
        refuse_shadowed()
    shown = tmp_path / name.removesuffix("/__init__.py")
    package = shown.stem
    assert caught.value.message == (
        f"{shown} would be imported instead of the package `{package}`, which a run needs"
    )
    assert caught.value.hint == "rename it, or work in another folder"


def test_a_module_beside_the_script_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "actors.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "script"), *sys.path])
    with pytest.raises(UnavailableError, match=r"script/actors\.py would be imported"):
        refuse_shadowed()


@pytest.mark.parametrize("name", ["actors.txt", "torch/readme.md", "datasets.py", "test.py", "config.py"])
def test_what_hides_no_package_is_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    refuse_shadowed()


def test_the_packages_themselves_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    import numpy

    for folder in (HOME, Path(numpy.__file__).parents[1]):
        monkeypatch.chdir(folder)
        refuse_shadowed()


@pytest.mark.parametrize("command", ["run", "plan", "calibrate", "doctor", "reproduce"])
def test_a_command_that_needs_actors_says_so_in_one_line(tmp_path: Path, command: str):
    (tmp_path / "actors.py").write_text("raise SystemExit('imported')")
    result = CliRunner().invoke(main, [command, "config.yaml"])
    assert result.exit_code == 4
    assert result.stderr.startswith(f"error: {tmp_path / 'actors.py'} would be imported")
    assert result.stderr.count("\n") == 2


def test_a_script_beside_such_a_file_is_told(tmp_path: Path):
    (tmp_path / "actors.py").touch()
    (tmp_path / "script.py").write_text("import balancer\nbalancer.run('config.yaml', 'run')\n")
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    result = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert f"{tmp_path / 'actors.py'} would be imported instead of" in result.stderr
