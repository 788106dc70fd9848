"""The wheel holds all the commands need: it works where the source tree is not."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def environment(project, tmp_path_factory):
    """The interpreter of an environment with the wheel in it, and of this one only the dependencies."""
    root = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project, capture_output=True, check=True, text=True
    )
    for name in tracked.stdout.split("\0"):
        if name.startswith(("balancer/", "actors/")) or name in {"pyproject.toml", "README.md", "LICENSE"}:
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, root / "source"]
    subprocess.run(build, check=True)
    [wheel] = root.glob("balancer-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    [packages] = (root / "venv" / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", packages, wheel], check=True)
    # Files ending in .pth count in an environment's own folder only: the project's editable install does not.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return root / "venv" / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=kept, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_runs(environment, project, tmp_path):
    code = "import actors, balancer; print(balancer.__file__); print(actors.__file__)"
    places = run(environment, tmp_path, "-c", code).split()
    assert len(places) == 2
    assert all(Path(place).is_relative_to(environment.parents[1]) for place in places)


def test_the_wheel_samples_a_dataset_makes_its_config_and_plans(environment, tmp_path):
    run(environment, tmp_path, "-m", "balancer", "sample", "photos")
    run(environment, tmp_path, "-m", "balancer", "init", "photos/train", "--out", "config.yaml")
    assert "images" in run(environment, tmp_path, "-m", "balancer", "plan", "config.yaml")


def test_the_wheel_has_the_pages_and_the_files_that_they_load(environment, tmp_path):
    code = """
import sys
from importlib.resources import files
from balancer.text.templates import templates
import balancer.review.server, balancer.watch.server
for package, page in (("review", "review.html.j2"), ("watch", "watch.html.j2")):
    pages = f"balancer.{package}.pages"
    text = templates(pages).loader.get_source(None, page)[0]
    names = [name for name in ("review.css", "review.js", "watch.css", "watch.js") if name in text]
    print([len(files(pages).joinpath(name).read_bytes()) > 100 for name in names])
print([files("balancer.web").joinpath(name).is_file() for name in ("page.css", "icon.svg")])
"""
    assert run(environment, tmp_path, "-c", code).split("\n") == ["[True, True]"] * 3 + [""]
