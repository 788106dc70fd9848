"""Adapters trained on a few images of the sample dataset, and a run with one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import balancer
from actors.adapt import adapt
from actors.reproduce import reproduce, rows_to_reproduce
from actors.run import Reporter, run
from actors.specs import Workers
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.sample import write_dataset
from balancer.errors import UsageError, WeightsError
from balancer.manifest.runfile import read_run
from balancer.runs.reproduction import Outcome
from balancer.storage import open_storage

pytestmark = [
    pytest.mark.usefixtures("all_here"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:"
        r"DeprecationWarning:diffusers\.schedulers"
    ),
]

SETTINGS = (
    "dataset.holdout=null",
    "generation.steps=4",
    "generation.batch_size=4",
    "adaptation={rank: 4, steps: 6, batch_size: 2, checkpoint_every: 2, learning_rate: 0.002}",
    "target={classes: {basic: 12, burnt: 12, combined: keep, mixed: keep, progression: keep, segment: keep}}",
    "budget.max_candidates=4",
    "actors={generators: 1, device: cpu}",
    "verification.unjudged=[class, lighting, burn_level, off_domain]",
    "verification.typicality=never",
    "verification.heads=never",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Ten images of each of two classes."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder / "sample", seed=3)
    for path in (folder / "sample" / "train").glob("*/*.png"):
        if int(path.stem) > 10:
            path.unlink()
    return folder / "sample" / "train"


def configure(project: Path, dataset: Path, *settings: str) -> Config:
    return load_config(project / "configs/demo.yaml", [f"dataset.path={dataset}", *SETTINGS, *settings])


@pytest.fixture(scope="module")
def trained(project, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapters") / "out"
    notes: list[str] = []
    return adapt(configure(project, dataset), out, reporter=Reporter(note=notes.append)), out, notes


def test_a_training_leaves_weights_their_list_and_a_page_with_samples(trained):
    adapted, out, notes = trained
    [adapter] = adapted.adapters
    assert adapter.images == {"basic": 10, "burnt": 10}
    assert len(adapter.losses) == adapter.steps == 6
    assert sum("step" in note and "loss" in note for note in notes) == 3
    assert json.loads((out / "adapters.json").read_text())["adapters"][0]["sha256"] == adapter.sha256
    page = (out / "adapters.html").read_text()
    assert page.count("data:image/jpeg") == 24
    assert "<polyline" in page
    assert not list((out / "checkpoints").iterdir())
    assert adapted.left_out == {"combined": 0, "mixed": 0, "progression": 0, "segment": 0}


def test_the_same_command_again_trains_nothing(trained, project, dataset):
    adapted, out, _ = trained
    notes: list[str] = []
    assert adapt(configure(project, dataset), out, reporter=Reporter(note=notes.append)) == adapted
    assert "1 of 1 adapter is there already" in notes
    with pytest.raises(UsageError, match="holds 1 adapter of other images, settings or versions"):
        adapt(configure(project, dataset, "adaptation.rank=2"), out)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(trained, project, dataset, tmp_path):
    adapted, _, _ = trained
    out = tmp_path / "out"
    given = [f"--set={setting}" for setting in (f"dataset.path={dataset}", *SETTINGS)]
    command = [sys.executable, "-m", "balancer", "adapt", "configs/demo.yaml", "--out", str(out), *given]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.DEVNULL) as process:
        while not list(out.glob("checkpoints/[!.]*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (out / "adapters.json").exists()
    notes: list[str] = []
    again = adapt(configure(project, dataset), out, reporter=Reporter(note=notes.append))
    assert [note for note in notes if note.endswith("dataset: going on from a checkpoint")]
    assert again.adapters == adapted.adapters


def test_a_training_that_diverges_ends_with_the_setting_to_lower(project, dataset, tmp_path):
    fast = (
        "adaptation={rank: 2, steps: 20, batch_size: 2, layers: all, checkpoint_every: 20, learning_rate: 1}"
    )
    with pytest.raises(
        UsageError, match=r"dataset: the training diverged: at step [0-9]+ the loss is"
    ) as caught:
        adapt(configure(project, dataset, fast), tmp_path / "out")
    assert "adaptation.learning_rate" in (caught.value.hint or "")
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def make(config: Config, out: Path) -> list[str]:
    notes: list[str] = []
    run(config, out, reporter=Reporter(note=notes.append))
    return notes


def with_adapter(project: Path, dataset: Path, out: Path, *settings: str) -> Config:
    loras = f"generation.loras=[{{model: {out / 'dataset.safetensors'}}}]"
    return configure(project, dataset, loras, *settings)


def test_a_run_names_its_adapter_by_its_hash_and_is_reproduced_identically(
    trained, project, dataset, tmp_path
):
    adapted, out, _ = trained
    notes = make(with_adapter(project, dataset, out), tmp_path / "run")
    assert not [note for note in notes if "stale" in note]
    [adapter] = adapted.adapters
    models = read_run(open_storage(tmp_path / "run", create=False)).models
    assert models["LoRA 1"]["sha256"] == adapter.sha256
    manifest = balancer.open_manifest(tmp_path / "run")
    rows = rows_to_reproduce(manifest, None)
    assert rows
    assert {each for row in rows for each in row["loras"]} == {f"{adapter.sha256}=1.0"}
    assert {one.outcome for one in reproduce(manifest, rows)} == {Outcome.IDENTICAL}


def test_an_adapter_that_is_replaced_while_the_actors_start_is_refused(trained, project, dataset, tmp_path):
    data = bytearray((trained[1] / "dataset.safetensors").read_bytes())
    path = tmp_path / "dataset.safetensors"
    path.write_bytes(data)
    data[-4] ^= 1  # the last bit of its last number

    def meanwhile(workers: Workers) -> Workers:
        path.write_bytes(data)
        return workers

    with pytest.raises(WeightsError, match="has changed since the run was started"):
        run(with_adapter(project, dataset, tmp_path), tmp_path / "run", change_workers=meanwhile)


def changed(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "changed")
    return tmp_path / "changed"


def test_an_adapter_of_images_that_have_changed_is_stale_and_said_to_be(trained, project, dataset, tmp_path):
    other = changed(dataset, tmp_path)
    (other / "basic" / "0001.png").unlink()
    notes = make(with_adapter(project, other, trained[1], "budget.max_candidates=1"), tmp_path / "run")
    [line] = [note for note in notes if "stale" in note]
    assert "is stale, its training images have changed since (1 gone)" in line


def test_an_adapter_that_has_seen_a_test_image_is_refused(trained, project, dataset, tmp_path):
    splits = "dataset.splits={train: 0.8, test: 0.2}"
    config: Any = with_adapter(project, dataset, trained[1], splits)
    with pytest.raises(
        UsageError, match="was trained on 4 images of validation, test or hold-out as they are now"
    ):
        make(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
