"""One run of the embedded models that grows: 50, 60 and 55 images a class while three real images are
exchanged, and then a class more."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import yaml

import balancer
from actors.run import Reporter, run
from balancer.config.load import load_config
from balancer.dataset.sample import write_dataset
from balancer.manifest import check_run
from balancer.storage import open_storage
from benchmarking.record import keep_option, save

DEMO = Path(balancer.__file__).resolve().parent.parent / "configs" / "demo.yaml"
LATER = "progression"
"""The class that comes last."""


@click.command("growing")
@keep_option
def command() -> None:
    """Compare the run after each step with the plan that a new run would have."""
    with tempfile.TemporaryDirectory() as folder:
        save("growing", {"steps": list(_steps(Path(folder)))})


def _steps(folder: Path) -> list[dict[str, Any]]:
    for name, seed in (("sample", 0), ("others", 1)):
        write_dataset(folder / name, seed=seed)
    shutil.move(folder / "sample" / "holdout" / LATER, folder / LATER)
    few = [name for name in _classes() if name != LATER]
    steps = [_step(folder, 50, few)]
    _exchange(folder)
    steps += [_step(folder, 60, few), _step(folder, 55, few)]
    shutil.move(folder / LATER, folder / "sample" / "holdout" / LATER)
    return [*steps, _step(folder, 55, _classes())]


def _classes() -> list[str]:
    return list(yaml.safe_load(DEMO.read_text())["classes"])


def _exchange(folder: Path) -> None:
    """One real image goes, one comes, and one becomes another."""
    train, others = folder / "sample" / "train" / "basic", folder / "others" / "train" / "basic"
    first, second, *_ = sorted(train.iterdir())
    new, other, *_ = sorted(others.iterdir())
    first.unlink()
    shutil.copy(other, second)
    shutil.copy(new, train / "new.png")


def _step(folder: Path, per_class: int, classes: list[str]) -> dict[str, Any]:
    document = yaml.safe_load(DEMO.read_text())
    document["classes"] = {name: document["classes"][name] for name in classes}
    document["dataset"] = {name: str(folder / "sample" / split) for name, split in _SPLITS.items()}
    document["target"]["per_class"] = per_class
    document["budget"]["max_candidates"] = None
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    config = load_config(path)
    before = _accepted(folder / "run")
    notes: list[str] = []
    began = time.perf_counter()
    result = run(config, folder / "run", confirmed=True, reporter=Reporter(note=notes.append))
    after = _accepted(folder / "run")
    rows = balancer.open_manifest(folder / "run").to_table(["class", "cell"]).to_pylist()
    planned = {cell.cell.key: cell.quota for cell in balancer.plan(config).cells if cell.quota}
    return {
        "per_class": per_class,
        "classes": len(classes),
        "seconds": round(time.perf_counter() - began, 1),
        "state": result.state,
        "wanted": result.wanted,
        "accepted": result.accepted,
        "kept": len(before & after),
        "new": len(after - before),
        "left": len(before - after),
        "changes": [note for note in notes if note.startswith(("dataset:", "plan:"))],
        "images_per_class": sorted(set(Counter(row["class"] for row in rows).values())),
        "cells_off_plan": len(planned.items() ^ Counter(row["cell"] for row in rows if row["cell"]).items()),
        "problems_of_fsck": len(check_run(open_storage(folder / "run", create=False)).problems),
    }


_SPLITS = {"path": "train", "holdout": "holdout"}


def _accepted(out: Path) -> set[str]:
    if not out.exists():
        return set()
    return set(balancer.open_manifest(out).to_table(["id"], "source = 'synthetic'")["id"].to_pylist())
