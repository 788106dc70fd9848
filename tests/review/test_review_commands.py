"""What the commands besides `review` make of decisions."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.cli.datasets import thresholds
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
    assert (shown["all"]["judged"], shown["all"]["threshold"]) == (3, None)
    assert {name: one["own"]["judged"] for name, one in shown["by_class"].items()} == {"basic": 2, "burnt": 1}
    assert "it takes 80 decided images" in " ".join(called("calibrate", run).split())


def test_calibrate_shows_what_the_threshold_of_all_would_change_in_each_class(monkeypatch):
    judged = {"basic": [(0.9, True)] * 150 + [(0.7, False)] * 50, "burnt": [(0.95, True)] * 50}
    monkeypatch.setattr(thresholds, "read_judged", lambda storage: judged)
    monkeypatch.setattr(thresholds, "open_storage", lambda run, create: None)
    whole, basic, burnt = [], [], []
    monkeypatch.setattr(
        thresholds.console,
        "table",
        lambda title, columns, rows: [
            into.append(row) for into, row in zip((whole, basic, burnt), rows, strict=True)
        ],
    )
    thresholds.show_thresholds("run", 0.95, as_json=False)
    assert [(row[0], row[3], row[6]) for (row,) in (whole, basic, burnt)] == [
        ("all classes", 0.9, "80%"),
        ("basic", 0.9, "75%"),
        ("burnt", 0.9, "100%"),
    ]


@pytest.mark.parametrize(
    "arguments", [["RUN", "--set", "seed=1"], ["RUN", "--out", "x"], ["x.yaml", "--precision", "0.9"]]
)
def test_options_of_a_config_and_of_a_run_are_not_mixed(run, arguments):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert CliRunner().invoke(main, ["calibrate", *given]).exit_code == 2
