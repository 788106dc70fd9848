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
from balancer.runs.rejudge import rejudge
from balancer.storage import open_storage
from tests.evaluation.here import evaluated
from tests.whole import test_run

pytestmark = pytest.mark.usefixtures("all_here")

dataset, make_config = test_run.dataset, test_run.make_config  # fixtures

KEPT = {"basic": 3, "burnt": 2}
"""Real images at first; the others come in later."""


@pytest.fixture
def pizzas(tmp_path):
    """A folder of few images, and one with the rest of the sample."""
    write_dataset(tmp_path / "sample", seed=0)
    whole, few = tmp_path / "sample" / "train", tmp_path / "few"
    for name, count in KEPT.items():
        (few / name).mkdir(parents=True)
        for path in sorted((whole / name).glob("*.png"))[:count]:
            shutil.copy(path, few / name / path.name)
    return whole, few


def test_targets_go_up_and_down_while_three_real_images_are_exchanged(pizzas, project, tmp_path):
    whole, few = pizzas
    notes: list[str] = []

    def go(per_class: int, confirmed: bool = False) -> Plan:
        settings = [f"dataset.path={few}", f"target.per_class={per_class}", "actors.device=cpu"]
        # With so few labelled images the share is near the usual limit, on one CPU above it.
        settings.append("verification.max_challenge_accepted=0.05")
        config = load_config(project / "configs/demo.yaml", settings)
        result = run(config, tmp_path / "run", confirmed=confirmed, reporter=Reporter(note=notes.append))
        assert (result.state, result.accepted) == ("complete", result.wanted)
        return balancer.plan(config)

    go(5)
    basic = sorted((few / "basic").iterdir())
    others = sorted((whole / "basic").glob("*.png"))
    basic[0].unlink()
    shutil.copy(others[10], few / "basic" / "new.png")
    shutil.copy(others[11], basic[1])
    go(6, confirmed=True)  # other shares of so few images move some between cells
    assert "dataset: +1 -1 ~1" in notes
    with pytest.raises(UsageError, match="accepted images would leave"):
        go(4)
    plan = go(4, confirmed=True)

    manifest = balancer.open_manifest(tmp_path / "run")
    rows = manifest.to_table(["id", "class", "cell", "source"]).to_pylist()
    assert Counter(row["class"] for row in rows) == dict.fromkeys(plan.targets, 4)
    assert Counter(row["cell"] for row in rows if row["cell"]) == {
        cell.cell.key: cell.quota for cell in plan.cells
    }
    real = {row["id"] for row in rows if row["source"] == "real"}
    assert real == {f"real/{path.parent.name}/{path.name}" for path in [*few.glob("*/*.png")]}
    surplus = manifest.to_table(["file_name"], "reason = 'surplus'", status="rejected")
    assert all((tmp_path / "run" / name).is_file() for name in surplus["file_name"].to_pylist())
    assert surplus.num_rows >= 12
    storage = open_storage(tmp_path / "run", create=False)
    assert check_run(storage).problems == ()
    assert read_status(storage, utc_now())["revision"] == 3


def read_ids(out):
    return set(balancer.open_manifest(out).to_table(["id"], "source = 'synthetic'")["id"].to_pylist())


# ---- images of another run, on simulated actors --------------------------------------------------


def test_accepted_images_of_another_run_are_taken_over_with_where_they_come_from(make_config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    notes: list[str] = []
    run(make_config(), first)
    made = len(read_ids(first))
    config = make_config(seed=6, target={"per_class": test_run.PER_CLASS + 2})
    result = run(config, second, reuse=first, reporter=Reporter(note=notes.append))
    offered = f"{made} of {made} images of the other run that were offered for open slots"
    assert f"took over {offered}; 0 fit no open cell" in notes
    assert result.accepted + result.short == test_run.WANTED + 4

    rows = balancer.open_manifest(second).to_table(filter="origin_id is not null").to_pylist()
    assert {row["origin_id"] for row in rows} == read_ids(first)
    assert check_run(open_storage(second, create=False)).problems == ()
    assert not rejudge(open_storage(second, create=False)).pending
    with pytest.raises(UsageError, match="--reuse names the run itself"):
        run(config, second, reuse=second)


# ---- what a start can do without Ray, and what it notices ----------------------------------------


def test_a_lowered_target_is_committed_without_starting_ray(make_config, tmp_path, monkeypatch):
    config = make_config()
    run(config, tmp_path / "run")
    before = read_ids(tmp_path / "run")
    lowered = make_config(target={"per_class": test_run.PER_CLASS - 4})
    with monkeypatch.context() as patched:
        patched.setattr("actors.run.connected", lambda *_: pytest.fail("Ray was started"))
        patched.setattr("actors.run.refuse_silent", lambda _: pytest.fail("Ray was looked for"))
        with pytest.raises(UsageError, match="accepted images would leave"):
            run(lowered, tmp_path / "run")
        notes: list[str] = []
        result = run(lowered, tmp_path / "run", confirmed=True, reporter=Reporter(note=notes.append))
        assert (result.state, result.wanted, result.accepted) == ("complete", 13, 13)
        assert "the plan has changed, and nothing is left to generate" in notes
        assert any("nothing left to do" in note for note in again(lowered, tmp_path / "run"))
    assert read_ids(tmp_path / "run") < before
    assert check_run(open_storage(tmp_path / "run", create=False)).problems == ()
    assert run(config, tmp_path / "run").accepted == len(before)


def again(config, out):
    notes: list[str] = []
    run(config, out, reporter=Reporter(note=notes.append))
    return notes


def test_a_changed_hold_out_is_noticed_though_nothing_is_left_to_generate(dataset, make_config, tmp_path):
    holdout = tmp_path / "holdout" / "cat"
    holdout.mkdir(parents=True)
    shutil.copy(dataset / "cat" / "1.png", holdout)
    config = make_config(dataset={"path": str(dataset), "holdout": str(tmp_path / "holdout")})
    run(config, tmp_path / "run")
    assert any("nothing left to do" in note for note in again(config, tmp_path / "run"))
    shutil.copy(dataset / "cat" / "2.png", holdout)
    assert any("the hold-out has other images by now" in note for note in again(config, tmp_path / "run"))
    rows = balancer.open_manifest(tmp_path / "run").to_table(["id"], "nearest_id is not null").to_pylist()
    assert [row["id"] for row in rows if row["id"].startswith("real/")] == [
        "real/cat/1.png",
        "real/cat/2.png",
    ]
    assert any("nothing left to do" in note for note in again(config, tmp_path / "run"))


def with_hold_out(tmp_path, dataset, make_config, **settings):
    """A config of simulated actors, whose hold-out is a folder that holds one of the real images."""
    holdout = tmp_path / "holdout" / "cat"
    holdout.mkdir(parents=True, exist_ok=True)
    shutil.copy(dataset / "cat" / "1.png", holdout)
    data = {"path": str(dataset), "holdout": str(tmp_path / "holdout")}
    return holdout, make_config(dataset=data, actors={"kind": "simulated"}, **settings)


def test_a_hold_out_is_compared_though_the_start_that_saw_it_was_killed(
    dataset, make_config, tmp_path, monkeypatch
):
    holdout, config = with_hold_out(tmp_path, dataset, make_config)
    run(config, tmp_path / "run")
    shutil.copy(dataset / "cat" / "2.png", holdout)
    with monkeypatch.context() as patched:
        patched.setattr("actors.run.set_aside_copies", lambda *_: 1 / 0)  # nothing says how that start ended
        with pytest.raises(ZeroDivisionError):
            run(config, tmp_path / "run")
    lowered = with_hold_out(tmp_path, dataset, make_config, target={"per_class": test_run.PER_CLASS - 4})[1]
    run(lowered, tmp_path / "run", confirmed=True)
    rows = balancer.open_manifest(tmp_path / "run").to_table(["id"], "nearest_id is not null").to_pylist()
    assert "real/cat/2.png" in {row["id"] for row in rows}


def test_a_start_that_comes_second_leaves_the_run_as_the_first_one_ended_it(
    make_config, tmp_path, monkeypatch
):
    config = make_config(actors={"kind": "simulated"})
    run(config, tmp_path / "run")
    lowered = make_config(actors={"kind": "simulated"}, target={"per_class": test_run.PER_CLASS - 4})

    def first(*_):
        monkeypatch.setattr("actors.run._load_learned", lambda *_: None)
        assert run(lowered, tmp_path / "run", confirmed=True).state == "complete"

    monkeypatch.setattr("actors.run._load_learned", first)
    with pytest.raises(UsageError, match="another command changed the rules"):
        run(lowered, tmp_path / "run", confirmed=True)
    assert read_status(open_storage(tmp_path / "run", create=False), utc_now())["state"] == "complete"


def test_a_run_leaves_out_what_its_own_evaluation_advises_against(make_config, tmp_path):
    out = tmp_path / "run"
    run(make_config(actors={"kind": "simulated"}), out)
    before = Counter(class_of(each) for each in read_ids(out))
    harmed = min(before)
    evaluated(out, classes=(harmed,))
    asked = {"per_class": None, "rule": "recommended", "evaluation": str(out)}
    config = make_config(actors={"kind": "simulated"}, target=asked)
    for confirmed in (True, False):  # the second start changes nothing
        assert run(config, out, confirmed=confirmed).state == "complete"
        after = Counter(class_of(each) for each in read_ids(out))
        assert after == {name: count for name, count in before.items() if name != harmed}


def class_of(slot):
    return slot.split("/")[0]
