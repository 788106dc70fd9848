"""Every code block of the README and the docs runs, on images of mixed kinds and sizes."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import click
import duckdb
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from balancer import open_manifest, plan
from balancer.cli import main
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.storage import open_storage
from tests.manifest_samples import real, row, start

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "SECURITY.md",
    *(
        f"docs/{name}.md"
        for name in "manifest cluster training tutorial columns exit_codes performance reliability".split()
    ),
)
RUN = ("query", "status", "fsck", "compact", "repair", "gc", "report", "export", "audit", "init")
"""Commands that are run. Of others, which need a model or a cluster, arguments are parsed."""

NOT_HERE = ("runs/pizza", "runs/flowers-trial", "data/pizza")

of_other_libraries = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        if page == "docs/training.md" and language == "python":
            text = text.split("## Results")[1]  # `test_tour` runs the program before it
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL), start=1):
            found.append(pytest.param(block, id=f"{page} {number}"))
    return found


def shell_lines() -> list[str]:
    whole = [block.values[0].replace("\\\n", " ") for block in blocks("sh")]
    return [line for block in whole for line in block.splitlines() if line.strip()]


def commands() -> list[Any]:
    lines = shell_lines()
    parts = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
    return [pytest.param(words[1:], id=" ".join(words)) for words in parts if words[:1] == ["balancer"]]


@pytest.fixture(autouse=True)
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has a finished run, runs/demo or runs/flowers, and a dataset, data/flowers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").mkdir()
    storage = open_storage(tmp_path / "runs" / "demo", create=True)
    samples = [
        (real("photo.jpg", split="train"), "JPEG", (64, 48)),
        (real("scan.png", "burnt", split="train"), "PNG", (30, 50)),
        (real("web.webp", "burnt", split="train"), "WEBP", (41, 41)),
        *((row(f"basic/dim/{n:04d}", split="train", score=0.95), "PNG", (32, 32)) for n in range(2)),
        *((row(f"burnt/dim/severe/{n:04d}", split="train"), "PNG", (32, 32)) for n in range(2)),
    ]
    committed = []
    for number, (one, kind, size) in enumerate(samples):
        data = io.BytesIO()
        Image.new("RGB", size, (10 * number, 90, 30)).save(data, kind)
        name = f"images/{number}.{ {'JPEG': 'jpg'}.get(kind, kind.lower()) }"
        storage.publish(name, data.getvalue())
        told = {"file_name": name, "width": size[0], "height": size[1], "num_bytes": len(data.getvalue())}
        committed.append(one | told | {"sha256": hashlib.sha256(data.getvalue()).hexdigest()})
    log = start(storage)
    log.commit(committed)
    log.close("complete")
    (tmp_path / "runs" / "flowers").symlink_to("demo")
    for class_name, colour in (("daisy", "white"), ("rose", "red"), ("tulip", "yellow")):
        folder = tmp_path / "data" / "flowers" / class_name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(folder / "000.jpg")


@of_other_libraries
@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, request: pytest.FixtureRequest) -> None:
    if "to_ray" in block:
        request.getfixturevalue("ray_session")
    names: dict[str, Any] = {"manifest": open_manifest("runs/demo"), "transform": None}
    exec(compile(block, "a documented block", "exec"), names)
    if "loader" in names:
        batch, labels = next(iter(names["loader"]))
        assert batch.shape[1:] == (3, 224, 224)
        assert len(batch) == len(labels) == 7
    if "pixels" in names:
        batch = next(iter(names["pixels"].iter_torch_batches(batch_size=256)))
        assert batch["image"].shape == (7, 224, 224, 3)


@pytest.mark.parametrize("block", blocks("sql"))
def test_sql_runs(block: str) -> None:
    assert duckdb.execute(block).fetchall()


@pytest.mark.parametrize("words", commands())
def test_commands_run_or_have_arguments_that_parse(words: list[str]) -> None:
    if words[0] in RUN and "s3://" not in " ".join(words) and not set(NOT_HERE) & set(words):
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return
    command = main.get_command(click.Context(main), words[0])
    assert command is not None
    command.make_context(words[0], list(words[1:]), resilient_parsing=False)


LIGHT = {"values": {name: {"prompts": [name]} for name in ("overcast", "sunny")}}
AROUND = {
    "classes": {"daisy": {"prompts": ["a daisy"]}},
    "facets": {"light": LIGHT},
    "target": {"per_class": 1},
}
"""The rest of a config of which a page shows a part."""


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_part_of_a_config(block: str) -> None:
    Config.model_validate({**AROUND, **yaml.safe_load(block)})


def test_scripts_and_programs_of_shell_blocks_are_there() -> None:
    programs = {words[0] for line in shell_lines() if (words := shlex.split(line, comments=True))}
    scripts = {program for program in programs if program.startswith("scripts/")}
    assert all((ROOT / script).is_file() for script in scripts)
    assert programs - scripts <= {*"balancer docker export kubectl pip python ray sbatch source".split()}


IDS = re.compile(r"\b[a-z_]+(?:/[a-z_]+)+/\d{4}-\d+\b")
DOCUMENTED = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "balancer" / "cells.py"]


def test_every_documented_id_of_an_image_is_in_the_plan_of_the_demo() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml")
    quotas = {item.cell.key: item.quota for item in plan(config).cells}
    named = {found for page in DOCUMENTED for found in IDS.findall(page.read_text())}
    assert named
    for image in named:
        slot, _, attempt = image.rpartition("-")
        cell, _, number = slot.rpartition("/")
        assert int(number) < quotas.get(cell, 0), image
        assert 1 <= int(attempt) <= config.attempts.max, image
