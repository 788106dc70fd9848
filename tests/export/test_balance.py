"""`balancer audit RUN` and its section of the report: before, planned and after."""

from __future__ import annotations

import json
import re

import numpy as np
from click.testing import CliRunner

import balancer
from balancer.cli import main
from balancer.manifest import ManifestLog, create_run
from balancer.report import render_report
from balancer.report.balance import audit_run
from balancer.storage import open_storage
from tests.export import test_report
from tests.export.test_report import HOSTILE, NOW, PLAN
from tests.manifest_samples import run_info

run = test_report.run  # a fixture

FILE = {"file_name": "images/none.png", "sha256": "0" * 64, "num_bytes": 1}


def test_a_run_is_audited_before_as_planned_and_after(run):
    run.fill(but="basic/dim")
    balance = audit_run(run.storage)
    assert [(each.before, each.planned, each.after) for each in balance.classes] == [(3, 5, 4), (0, 5, 5)]
    assert balance.imbalance == {"before": None, "planned": 1.0, "after": 1.25}
    lighting = {each.name: (each.before, each.planned, each.after) for each in balance.facets["lighting"]}
    assert lighting == {"dim": (0, 3, 2), "bright": (0, 4, 4)}
    cells = {each.name: (each.before, each.planned, each.after) for each in balance.cells}
    assert cells["basic/dim"] == (0, 1, 0)
    assert balance.whole.real_share == 3 / 9
    assert [each.met for each in balance.criteria][:2] == [True, True]


def test_a_real_image_counts_in_the_cells_of_the_values_that_are_known_of_it(run):
    run.log.commit([run._real_row("basic", 9) | {"lighting": "dim"}])
    run.fill()
    balance = audit_run(run.storage)
    assert {each.name: each.before for each in balance.cells if each.before} == {"basic/dim": 1}
    assert [each.before for each in balance.facets["lighting"]] == [1, 0]


def test_its_images_are_read_as_those_of_any_dataset(run):
    run.fill()
    images = audit_run(run.storage).images
    assert images.read == 7
    assert {name for name, _ in images.unreadable} == {f"images/real/{index}.png" for index in range(3)}
    assert len(images.changed) == 7  # these rows have no real hashes
    assert ("images/1-0.png", "images/2-0.png", "images/3-0.png", "images/4-0.png", "images/5-0.png")[:2] < (
        images.duplicates[0]
    )


def test_the_command_shows_it_as_text_and_as_json(run):
    run.fill()
    text = CliRunner().invoke(main, ["audit", run.uri])
    assert text.exit_code == 0
    assert "largest class by smallest: before infinite, planned 1.00, after 1.00" in text.stdout
    assert "Every class reaches 80% of its target" in text.stdout
    shown = json.loads(CliRunner().invoke(main, ["audit", run.uri, "--json"]).stdout)
    assert shown["classes"]["basic"] == {"before": 3, "planned": 5, "after": 5, "real_share": 0.6}
    assert shown["all"]["real_share"] == 0.3
    assert {each["met"] for each in shown["criteria"]} == {True}
    refused = CliRunner().invoke(main, ["audit", run.uri, "--set", "dataset.layout=folders"])
    assert (refused.exit_code, "is a run" in refused.stderr) == (2, True)


def test_the_report_has_it_too(run):
    run.fill()
    page = " ".join(render_report(run.uri, now=NOW).split())
    assert "before infinite, planned 1.00, after 1.00" in page
    assert "<th>lighting: dim</th><td>0</td><td>3</td><td>3</td><td>0%</td>" in page


# ---- diversity -----------------------------------------------------------------------------------


def test_status_and_report_say_which_class_has_collapsed_by_the_embeddings_of_the_verifier(run):
    rng = np.random.default_rng(0)
    real = [run._real_row("basic", 10 + index) | {"embedding": rng.standard_normal(4)} for index in range(30)]
    run.log.commit([row | {"embedding": row["embedding"].astype("<f2").tobytes()} for row in real])
    same = {"embedding": np.ones(4, "<f2").tobytes()}
    made = [run._candidate_row(PLAN[4], index, 0.9) | FILE | same for index in range(25)]
    run.log.commit([*made, run._candidate_row(PLAN[0], 0, 0.9) | FILE | same])
    diversity = balancer.run_status(run.uri)["diversity"]
    assert diversity["collapsed"] == ["basic"]
    assert diversity["embeddings"] == "<b>v</b>"
    basic, cell = diversity["classes"]["basic"], diversity["cells"]["basic/dim"]
    assert (basic["level"], basic["real"], basic["generated"]) == ("red", 30, 25)
    assert basic["reasons"][0].startswith("recall ")
    assert basic["near_duplicates"] == cell["near_duplicates"] == 24
    assert (cell["level"], cell["recall"]) == ("amber", None)  # no real image has a known lighting
    assert diversity["classes"][HOSTILE]["level"] == "not estimable"
    page = render_report(run.uri, now=NOW)
    assert "What this cannot see" in page
    few, cells = re.findall(r"(\d+) of (\d+) have fewer than 20 real or generated images", page)[0]
    assert few == cells == str(len(diversity["cells"]))  # also those that have an alarm
    assert '<span class="pill unmet">red</span>' in page


def test_a_run_without_embeddings_has_nothing_to_say_of_diversity(run):
    run.fill()
    assert balancer.run_status(run.uri)["diversity"]["classes"] == {}
    assert "<h2>Diversity</h2>" not in render_report(run.uri, now=NOW)


def test_a_run_in_a_bucket_is_audited_without_reading_its_images(run_uri):
    storage = open_storage(run_uri, create=True)
    info = run_info()
    create_run(storage, info)
    ManifestLog.open(storage, info.schema(), info.run_id).close("complete")
    shown = CliRunner().invoke(main, ["audit", run_uri])
    assert shown.exit_code == 0
    assert "the images are in a bucket, and were not read" in shown.stdout
