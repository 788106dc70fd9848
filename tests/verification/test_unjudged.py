"""Images that nobody judged on a property: every output says so, and none gives them a score."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.config.schema import Config
from balancer.export import FORMATS, export
from balancer.manifest.maintenance.fsck import fsck
from balancer.manifest.status import read_status
from balancer.report import render_report
from balancer.run_manifest import Manifest, open_manifest
from balancer.runs.rejudge import apply
from balancer.storage import Storage, open_storage
from tests.manifest_samples import CONFIG, NOON, image_bytes, real, rejected, row, start
from tests.runs.test_exact_numbers import content_of

ONE, TWO, BURNT = "basic/dim/0000", "basic/dim/0001", "burnt/dim/severe/0000"
LOW = {"class": 0.03, "lighting": 0.75}
CLASS_ONLY: dict[str, Any] = {"unjudged": ["class"], "scores": LOW, "score": 0.75}
NOTHING: dict[str, Any] = {
    "unjudged": ["class", "lighting"],
    "scores": {"class": 0.03, "lighting": 0.1},
    "score": None,
}


def commit(
    folder: Path, *rows: dict[str, Any], unjudged: tuple[str, ...] = (), close: bool = True
) -> Manifest:
    storage = open_storage(folder, create=True)
    for one in rows:
        if one["file_name"]:
            storage.publish(one["file_name"], image_bytes(one["file_name"][len("images/") : -len(".png")]))
    config = CONFIG | {"verification": CONFIG["verification"] | {"unjudged": list(unjudged)}}
    log = start(storage, config=config)
    log.commit([{"split": "train"} | one for one in rows])
    if close:
        log.close("interrupted")
    return open_manifest(folder)


def stored(run: Manifest) -> Storage:
    return open_storage(run.uri, create=False)


@pytest.fixture
def run(tmp_path: Path) -> Manifest:
    """Two images judged on nothing, one on all but its class."""
    usual = {"fallback": False, "review": False}
    return commit(
        tmp_path / "run",
        real("a.png"),
        row(ONE, **NOTHING, **usual),
        row(TWO, **CLASS_ONLY, **usual),
        row(BURNT, **usual),
        unjudged=("class", "lighting"),
    )


# ---- what a run keeps ------------------------------------------------------------------------


def test_a_condition_on_the_score_does_not_find_what_was_not_judged(run):
    assert run.to_table(["id"], "score >= 0.0 and source = 'synthetic'")["id"].to_pylist() == [
        f"{TWO}-1",
        f"{BURNT}-1",
    ]


def test_an_accepted_image_without_a_score_is_sound_where_nothing_was_judged(run):
    assert not [problem for problem in fsck(stored(run)) if problem.rule == "accepted at its threshold"]


@pytest.mark.parametrize("unjudged", [None, [], ["class"], ["class", "lighting=dim"]])
def test_an_accepted_image_without_a_score_breaks_a_rule_where_something_was_judged(tmp_path, unjudged):
    run = commit(tmp_path / "run", row(ONE, score=None, unjudged=unjudged))
    assert "accepted at its threshold" in {problem.rule for problem in fsck(stored(run))}


def test_an_image_that_is_judged_on_a_property_by_now_gets_that_score(tmp_path):
    lucky = row(ONE, score=None, unjudged=["class", "lighting"])
    run = commit(tmp_path / "run", lucky, row(TWO, **NOTHING), unjudged=("class", "lighting"))
    apply(stored(run), ["verification.unjudged=[]"], now=lambda: NOON)
    rows = open_manifest(run.uri).to_table(["status", "score", "unjudged"], status="all").to_pylist()
    assert sorted(rows, key=lambda row: row["status"]) == [
        {"status": "accepted", "score": 0.75, "unjudged": []},
        {"status": "rejected", "score": 0.03, "unjudged": []},
    ]


def test_an_image_that_is_not_judged_by_now_loses_its_score(tmp_path):
    run = commit(tmp_path / "run", row(ONE, unjudged=[]))
    apply(stored(run), ["verification.unjudged=[class,lighting]"], now=lambda: NOON)
    [found] = open_manifest(run.uri).to_table(["score", "unjudged"]).to_pylist()
    assert found == {"score": None, "unjudged": ["class", "lighting"]}


def test_rows_of_an_earlier_version_that_score_1_for_nothing_go_on_as_they_are(tmp_path):
    run = commit(tmp_path / "run", row(ONE, **NOTHING | {"score": 1.0}), unjudged=("class", "lighting"))
    assert not apply(stored(run), [], now=lambda: NOON).pending


# ---- what is said of it ----------------------------------------------------------------------


def test_status_counts_images_by_the_properties_that_were_not_judged(run):
    assert read_status(stored(run), NOON)["unjudged"] == {"class": 2, "lighting": 1}
    shown = CliRunner().invoke(main, ["status", run.uri]).stdout
    assert "accepted, class not judged" in shown


def test_lineage_names_what_was_not_judged(run):
    assert run.lineage(f"{TWO}-1").unjudged == ("class",)
    assert run.lineage(f"{ONE}-1").score is None


def test_the_report_says_what_was_not_judged_and_draws_no_threshold_through_it(run):
    page = render_report(run.uri, now=NOON)
    assert "class in 2, lighting in 1 of 3 generated images" in page
    assert "not judged in 2 accepted images" in page
    assert "basic/dim, not judged" in page


def test_a_report_has_no_threshold_line_for_a_property_that_no_image_was_judged_on(tmp_path):
    def lines(**changes: Any) -> int:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        commit(folder, row(ONE, **changes), unjudged=changes.get("unjudged", ()))
        return render_report(str(folder), now=NOON).count('class="mark"')

    assert (lines(), lines(**CLASS_ONLY), lines(**NOTHING)) == (2, 1, 0)


def test_a_rejected_image_without_a_score_is_shown_in_the_report(tmp_path):
    failed = rejected(ONE, reason="blank", **NOTHING)
    run = commit(tmp_path / "run", failed, unjudged=("class", "lighting"))
    stored(run).publish(f"rejected/blank/{ONE}-1.png", b"image")
    assert "basic/dim, blank, not judged" in render_report(run.uri, now=NOON)


def test_an_image_without_a_score_lacks_no_required_column_where_nothing_was_judged(tmp_path):
    def missing(**changes: Any) -> bool:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        commit(folder, row(ONE, **changes), close=False)
        page = render_report(str(folder), now=NOON)
        return " score 1" in page[page.index("Every required column") :][:600]

    assert (missing(**NOTHING), missing(score=None)) == (False, True)


def card(run: Manifest, tmp_path: Path) -> str:
    export(run, "hf", tmp_path / "hf")
    return " ".join((tmp_path / "hf" / "README.md").read_text().split())


def test_the_card_says_what_was_not_judged(run, tmp_path):
    text = card(run, tmp_path)
    assert "class in 2, lighting in 1 of 3 generated images" in text
    assert "each property that was judged had to reach" in text
    assert "every property" not in text


def test_the_card_of_images_judged_on_nothing_names_no_probability(tmp_path):
    run = commit(tmp_path / "run", row(ONE, **NOTHING), unjudged=("class", "lighting"))
    text = card(run, tmp_path)
    assert "none of the properties" in text
    assert "had to reach" not in text
    assert "the verifier agreed" not in text


def test_the_card_of_a_run_judged_on_everything_says_every_property(tmp_path):
    text = card(commit(tmp_path / "run", row(ONE)), tmp_path)
    assert "every property it was asked to show had to reach a probability of 0.6" in text
    assert "ot judged" not in text


def test_a_value_that_was_not_proven_is_no_property_that_was_not_judged(tmp_path):
    text = card(
        commit(tmp_path / "run", row(ONE, unjudged=["class=basic"]), unjudged=("class=basic",)), tmp_path
    )
    assert "every property it was asked to show" in text
    assert "do not prove that the verifier can judge these: class=basic" in text.replace("\\", "")


def test_card_report_and_status_tell_the_rules_a_run_was_last_judged_by(tmp_path):
    run = commit(tmp_path / "run", row(ONE, score=0.75))
    apply(stored(run), ["verification.threshold=0.7"], now=lambda: NOON)
    run = open_manifest(run.uri)
    assert "had to reach a probability of 0.7" in card(run, tmp_path)
    assert "<dd>0.7 for each property" in render_report(run.uri, now=NOON)
    assert read_status(stored(run), NOON)["overrides"] == {"verification": {"threshold": 0.7}}


# ---- every export ----------------------------------------------------------------------------


def notes_in(path: Path) -> list[dict[str, Any]]:
    with tarfile.open(path) as shard:
        return [json.loads(content_of(shard, name)) for name in shard.getnames() if name.endswith(".json")]


def exported(form: str, folder: Path) -> list[dict[str, Any]]:
    """What an export says of its images, read without balancer."""
    if form in ("folders", "hf"):
        [table] = folder.rglob("*.parquet")
        return pq.read_table(table).to_pylist()
    if form == "parquet":
        return pq.read_table(folder).to_pylist()
    if form == "arrow":
        return pa.ipc.open_file(folder).read_all().to_pylist()
    if form == "webdataset":
        return [note for path in folder.glob("*.tar") for note in notes_in(path)]
    if form == "csv":
        with (folder / "labels.csv").open(newline="") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
        return [
            row
            | {
                "score": row["score"] and float(row["score"]),
                "unjudged": json.loads(row["unjudged"] or "null"),
            }
            for row in rows
        ]
    if form == "coco":
        [path] = (folder / "annotations").iterdir()
        return [image["metadata"] for image in json.loads(path.read_text())["images"]]
    if form == "labelstudio":
        return [task["data"] for task in json.loads((folder / "tasks.json").read_text())]
    return json.loads((folder / "samples.json").read_text())["samples"]


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_names_what_was_not_judged_and_has_no_score_of_nothing(run, tmp_path, form):
    export(run, form, tmp_path / "out")
    told = [(row.get("score"), row.get("unjudged")) for row in exported(form, tmp_path / "out")]
    assert (None, ["class", "lighting"]) in told
    assert (0.75, ["class"]) in told


def test_no_export_gives_a_confidence_for_a_property_that_was_not_judged(run, tmp_path):
    export(run, "fiftyone", tmp_path / "fiftyone")
    for sample in json.loads((tmp_path / "fiftyone" / "samples.json").read_text())["samples"]:
        generated, unjudged = "synthetic" in sample["tags"], sample["unjudged"] or ()
        labels = {"class": sample["ground_truth"], "lighting": sample["lighting"]}
        for name, label in labels.items():
            assert ("confidence" in label) == (generated and name not in unjudged)
    export(run, "labelstudio", tmp_path / "tasks")
    for task in json.loads((tmp_path / "tasks" / "tasks.json").read_text()):
        if task["data"]["source"] == "synthetic":
            for result in task["predictions"][0]["result"]:
                assert ("score" in result) == (result["from_name"] not in task["data"].get("unjudged", ()))


def test_status_and_report_name_a_value_that_was_not_proven(tmp_path):
    run = commit(tmp_path / "run", row(ONE, unjudged=["class=basic"]), unjudged=("class=basic",))
    status = read_status(stored(run), NOON)
    assert (status["unjudged"], status["unproven"]) == ({}, {"class=basic": 1})
    assert "accepted, class=basic not proven" in CliRunner().invoke(main, ["status", run.uri]).stdout
    assert "class=basic in 1 of 1 generated image" in render_report(run.uri, now=NOON)


def test_a_rejected_image_is_shown_though_its_reason_is_another_one_by_now(tmp_path):
    failed = rejected(ONE, reason="lighting", scores={"class": 0.3, "lighting": 0.2})
    run = commit(tmp_path / "run", failed)
    stored(run).publish(f"rejected/lighting/{ONE}-1.png", b"image")
    apply(stored(run), ["verification.unjudged=[lighting]"], now=lambda: NOON)
    assert "basic/dim, class, score 0.30 of 0.6" in render_report(run.uri, now=NOON)


def test_rows_images_and_card_of_a_simulated_run_name_no_model(tmp_path):
    simulated = Config.model_validate(CONFIG | {"actors": CONFIG["actors"] | {"kind": "simulated"}})
    assert (simulated.generator_name, simulated.verifier_name) == ("simulated", "simulated")
    usual = Config.model_validate(CONFIG)
    assert (usual.generator_name, usual.verifier_name) == (usual.generation.model, usual.verification.model)
    storage = open_storage(tmp_path / "run", create=True)
    storage.publish(f"images/{ONE}-1.png", image_bytes(f"{ONE}-1"))
    models = {kind: {"model": "simulated", "revision": None} for kind in ("generator", "verifier")}
    log = start(storage, config=simulated.model_dump(mode="json"), models=models)
    log.commit([row(ONE, split="train", model="embedded")])  # as an earlier version wrote it
    log.close("interrupted")
    text = card(open_manifest(tmp_path / "run"), tmp_path)
    assert "Generated by simulated actors, which draw noise" in text
    assert "embedded" not in text
