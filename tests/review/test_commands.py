"""What the commands besides `review` make of decisions."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.review import pending
from balancer.storage import open_storage
from tests.manifest_samples import image_bytes, row, run_info, start
from tests.review.decided import decided

SLOTS = [f"basic/dim/{number:04d}" for number in range(3)] + ["burnt/dim/severe/0000"]


@pytest.fixture
def run(tmp_path):
    """Two of three images of a cell are wrong, by what people said."""
    folder = tmp_path / "run"
    storage = open_storage(folder, create=True)
    config = run_info().config | {"review": {"fraction": 1.0, "margin": None, "max_error": 0.05}}
    log = start(storage, config=config)
    rows = [row(slot, review=True, unjudged=[], split="train") for slot in SLOTS]
    for one in rows:
        storage.publish(one["file_name"], image_bytes(one["id"]))
    log.commit(rows)
    log.close("complete")
    said = [decided(f"{slot}-1", "reject" if slot in SLOTS[:2] else "accept") for slot in SLOTS]
    pending.save(storage, "run-1", said[:2] + said[3:])
    return folder


def called(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_status_says_what_people_found(run):
    printed = called("status", run)
    assert "2 of 3 wrong: 66.7 % (9.4 % to 99.2 %)" in printed
    assert "3 decisions wait for the log" in printed
    assert "quarantined until decided" in printed


def test_a_quarantined_cell_is_left_out_of_exports_unless_it_is_asked_for(run, tmp_path):
    printed = called("export", run, "csv", tmp_path / "without")
    assert "1 cell left out, because people found too many wrong labels" in " ".join(printed.split())
    assert exported(tmp_path / "without") == 1
    called("export", run, "csv", tmp_path / "with", "--quarantined")
    assert exported(tmp_path / "with") == 4


def exported(folder):
    return sum(1 for _ in folder.rglob("*.png"))


def test_calibrate_shows_thresholds_of_a_run(run):
    shown = json.loads(called("calibrate", run, "--precision", "0.95", "--json"))
    assert {name: one["judged"] for name, one in shown.items()} == {
        "all classes": 3,
        "basic": 2,
        "burnt": 1,
    }
    assert shown["all classes"]["threshold"] is None
    assert "it takes 80 decided images" in " ".join(called("calibrate", run).split())


@pytest.mark.parametrize(
    "arguments", [["RUN", "--set", "seed=1"], ["RUN", "--out", "x"], ["x.yaml", "--precision", "0.9"]]
)
def test_options_of_a_config_and_of_a_run_are_not_mixed(run, arguments):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert CliRunner().invoke(main, ["calibrate", *given]).exit_code == 2
