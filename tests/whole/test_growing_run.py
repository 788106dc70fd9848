"""A run of the embedded models that grows: other targets, and real images that are exchanged."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

import balancer
from actors.run import Reporter, run
from balancer.config.load import load_config
from balancer.dataset.sample import write_dataset
from balancer.errors import UsageError
from balancer.manifest import check_run
from balancer.manifest.rows import utc_now
from balancer.manifest.status import read_status
from balancer.planning.plan import Plan
from balancer.storage import open_storage

KEPT = {"basic": 3, "burnt": 2}
"""Real images at first; the others come in later."""


@pytest.fixture
def dataset(tmp_path):
    """A folder of few images, and one with the rest of the sample."""
    write_dataset(tmp_path / "sample", seed=0)
    whole, few = tmp_path / "sample" / "train", tmp_path / "few"
    for name, count in KEPT.items():
        (few / name).mkdir(parents=True)
        for path in sorted((whole / name).glob("*.png"))[:count]:
            shutil.copy(path, few / name / path.name)
    return whole, few


def test_targets_go_up_and_down_while_three_real_images_are_exchanged(
    dataset, project, tmp_path, ray_session, monkeypatch
):
    whole, few = dataset
    notes: list[str] = []

    def go(per_class: int, confirmed: bool = False) -> Plan:
        settings = [f"dataset.path={few}", f"target.per_class={per_class}", "actors.device=cpu"]
        config = load_config(project / "configs/demo.yaml", settings)
        result = run(config, tmp_path / "run", reporter=Reporter(note=notes.append), confirmed=confirmed)
        assert (result.state, result.accepted) == ("complete", result.wanted)
        return balancer.plan(config)

    go(5)
    basic, burnt = (sorted((few / name).iterdir()) for name in KEPT)
    others = sorted((whole / "basic").glob("*.png"))
    basic[0].unlink()
    shutil.copy(others[10], few / "basic" / "new.png")
    shutil.copy(others[11], basic[1])
    go(6)
    assert "dataset: +1 -1 ~1" in notes
    before = read_ids(tmp_path / "run")
    with pytest.raises(UsageError, match="accepted images would leave"):
        go(4)
    plan = go(4, confirmed=True)

    assert read_ids(tmp_path / "run") < before
    manifest = balancer.open_manifest(tmp_path / "run")
    rows = manifest.to_table(["id", "class", "cell", "source"]).to_pylist()
    assert Counter(row["class"] for row in rows) == dict.fromkeys(plan.targets, 4)
    assert Counter(row["cell"] for row in rows if row["cell"]) == {
        cell.cell.key: cell.quota for cell in plan.cells
    }
    real = {row["id"] for row in rows if row["source"] == "real"}
    assert real == {f"real/{path.parent.name}/{path.name}" for path in [*few.glob("*/*.png")]}
    storage = open_storage(tmp_path / "run", create=False)
    assert check_run(storage).problems == ()
    assert read_status(storage, utc_now())["revision"] == 3
    assert burnt[0].name in {path.name for path in (few / "burnt").iterdir()}


def read_ids(out):
    return set(balancer.open_manifest(out).to_table(["id"], "source = 'synthetic'")["id"].to_pylist())
