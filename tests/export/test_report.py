from __future__ import annotations

import base64
import datetime as dt
import html
import io
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from balancer.cli import main
from balancer.config.schema import Config
from balancer.errors import UsageError
from balancer.manifest.layout import rejected_path
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.runfile import RunInfo, create_run
from balancer.manifest.status import read_status
from balancer.report import render_report
from balancer.report.criteria import Criterion, check_criteria
from balancer.report.facts import CellCount, Facts, cell_table, gather_facts
from balancer.report.scores import BINS, score_histograms
from balancer.report.sheets import Sheet, _generated_pixels, evenly_spaced, rejected_sheets, thumbnail_uri
from balancer.run_manifest import open_manifest
from balancer.storage import Storage, open_storage
from tests.manifest_samples import HEAD, NO_HEAD

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
HOSTILE = "<script>alert(1)<"
LIGHTINGS = ("dim", "bright")


def _config(**changes: Any) -> Config:
    facet = {name: {"prompts": [name]} for name in LIGHTINGS}
    return Config.model_validate(
        {
            "name": '"><img src=x>',
            "classes": {"basic": {"prompts": ["a pizza"]}, HOSTILE: {"prompts": ["burnt"]}},
            "facets": {"lighting": {"values": facet}, "char": {"classes": [HOSTILE], "values": facet}},
            "target": {"per_class": 5},
            **changes,
        }
    )


def _cell(class_name: str, lighting: str, char: str | None, quota: int) -> dict[str, Any]:
    key = "/".join(part for part in (class_name, lighting, char) if part)
    return {
        "class": class_name, "lighting": lighting, "char": char, "cell": key, "quota": quota,
        "priority": "high",
    }  # fmt: skip


PLAN = [
    _cell(HOSTILE, "dim", "dim", 2),
    _cell(HOSTILE, "dim", "bright", 0),
    _cell(HOSTILE, "bright", "dim", 1),
    _cell(HOSTILE, "bright", "bright", 2),
    _cell("basic", "dim", None, 1),
    _cell("basic", "bright", None, 1),
]


def _png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((200, 160, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


@dataclass
class Run:
    """A run folder written by hand, as a driver would have left it."""

    storage: Storage
    info: RunInfo
    log: ManifestLog
    slots: dict[str, int] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return self.storage.uri

    def real(self, class_name: str, count: int) -> None:
        self.log.commit([self._real_row(class_name, i) for i in range(count)])

    def candidate(self, cell: dict[str, Any], *, score: float = 0.9, **columns: Any) -> None:
        """One more slot of `cell`, tried once; accepted if the score is at least 0.6."""
        self.log.commit([self._made(cell, score) | columns])

    def fill(self, but: str = "") -> None:
        """Every slot of the plan, but those of one cell."""
        filled = [cell for cell in PLAN if cell["cell"] != but]
        self.log.commit([self._made(cell, 0.9) for cell in filled for _ in range(cell["quota"])])

    def _made(self, cell: dict[str, Any], score: float) -> dict[str, Any]:
        index = self.slots[cell["cell"]] = self.slots.get(cell["cell"], -1) + 1
        row = self._candidate_row(cell, index, score)
        if row["status"] == "accepted":
            row["file_name"] = f"images/{len(self.slots)}-{index}.png"
            data = _png(40 * index)
            self.storage.publish(row["file_name"], data)
            row |= {"sha256": "0" * 64, "num_bytes": len(data)}
        return row

    def facts(self) -> Facts:
        return gather_facts(open_manifest(self.uri).rows, read_status(self.storage, NOW))

    def criteria(self) -> list[Criterion]:
        return list(check_criteria(self.facts(), open_manifest(self.uri).rows))

    def rejected_sheets(self) -> tuple[tuple[Sheet, ...], tuple[Sheet, ...]]:
        return rejected_sheets(self.facts(), open_manifest(self.uri).rows, self.storage)

    def _real_row(self, class_name: str, index: int) -> dict[str, Any]:
        return {
            "id": f"real/{class_name}/{index}", "file_name": f"images/real/{index}.png", "class": class_name,
            "source": "real", "status": "accepted", "width": 8, "height": 8, "sha256": "0" * 64,
            "num_bytes": 1, "phash": "0" * 16, "run_id": self.info.run_id,
        }  # fmt: skip

    def _candidate_row(self, cell: dict[str, Any], index: int, score: float) -> dict[str, Any]:
        accepted = score >= 0.6
        slot = f"{cell['cell']}/{index:04d}"
        scores = {"class": 0.99, "lighting": score, "char": cell["char"] and 0.99}
        return {
            "id": f"{slot}-1", "class": cell["class"], "lighting": cell["lighting"], "char": cell["char"],
            "cell": cell["cell"], "slot": slot, "attempt": 1, "source": "synthetic",
            "status": "accepted" if accepted else "rejected", "reason": None if accepted else "lighting",
            "review": accepted and index == 0, "score": score, "scores": scores,
            "brightness": 0.5, "deviation": 0.1, "nonfinite": 0,
            "threshold": 0.6, "fallback": False, "prompt": "a pizza", "seed": 1, "model": "embedded",
            "verifier": "embedded", "steps": 4, "guidance": 3.0, "width": 160, "height": 200,
            "phash": "0" * 16, "device": "cpu", "generated_at": NOW, "run_id": self.info.run_id,
        }  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Run:
    config = _config()
    info = RunInfo(
        run_id="run-1",
        created_at="2026-03-01T11:00:00+00:00",
        name=config.name,
        config=config.model_dump(mode="json"),
        fingerprint=config.fingerprint(),
        seed=7,
        facets=["lighting", "char"],
        plan=PLAN,
        real_counts={"basic": 3, HOSTILE: 0},
        targets={"basic": 5, HOSTILE: 5},
        embedding_dim=4,
        versions={"balancer": "0.1.0"},
        models={
            "generator": {"model": "embedded", "revision": None},
            "verifier": {"model": "<b>v</b>", "revision": None},
        },
    )
    storage = open_storage(tmp_path / "run", create=True)
    create_run(storage, info)
    made = Run(storage, info, ManifestLog.open(storage, info.schema(), info.run_id, now=lambda: NOW))
    made.real("basic", 3)
    return made


def _criterion(run: Run, beginning: str) -> Criterion:
    return next(criterion for criterion in run.criteria() if criterion.rule.startswith(beginning))


def test_the_report_is_written_into_the_run_folder_and_returned(run):
    run.fill()
    page = render_report(run.uri, now=NOW)
    assert run.storage.read("report.html").decode() == page
    assert "2026-03-01 12:00" in page


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(UsageError, match="not a run"):
        render_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_the_report_is(run):
    result = CliRunner().invoke(main, ["report", run.uri + "/"])
    assert (result.exit_code, result.stdout) == (0, f"{run.uri}/report.html\n")


def test_a_report_goes_where_out_says_and_its_links_lead_into_the_run(run, tmp_path):
    run.candidate(PLAN[0])
    page = tmp_path / "pizza.html"
    result = CliRunner().invoke(main, ["report", run.uri, "--out", str(page)])
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert re.findall(r'href="([^"]*)"', page.read_text()) == [f"file://{run.uri}/images/1-0.png"]
    assert not run.storage.exists("report.html")


@pytest.mark.parametrize("name", ["run.json", "manifest/report.html", "nowhere/report.html", "manifest"])
def test_a_report_never_goes_into_a_run_or_where_no_file_can_be(run, name):
    before = run.storage.list("")
    result = CliRunner().invoke(main, ["report", run.uri, "--out", f"{run.uri}/{name}"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert run.storage.list("") == before


def test_the_command_refuses_a_folder_that_is_not_there_in_one_line(tmp_path):
    result = CliRunner().invoke(main, ["report", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_the_report_says_what_passed_that_shows_none_of_the_classes(run):
    assert "none of the classes" not in render_report(run.uri, now=NOW)
    document = json.loads(run.storage.read("run.json"))
    document["challenge"] = {
        "accepted_share": 0.25,
        "images": 64,
        "by_kind": {
            "blobs": {"images": 32, "before": 0.9, "accepted": 0.5},
            "flat": {"images": 32, "before": 0.9, "accepted": 0.0},
            "blended": {"images": 32, "before": 0.9, "accepted": 0.9},
        },
        "true_lost": 0.02,
        "labelled_images": 20,
        "by_class": {"basic": 20},
        "typicality": None,
        "features": [],
        "min_typicality": None,
        "min_domain_score": 0.5,
        "notes": ["no <b>typicality</b>"],
    }
    run.storage.replace("run.json", json.dumps(document).encode())
    page = " ".join(render_report(run.uri, now=NOW).split())
    assert "Of 64 images made to show none of the classes, 25.0% would have passed" in page
    assert "; of 20 labelled ones about 2.0% would not" in page
    assert "no &lt;b&gt;typicality&lt;/b&gt;." in page


def test_the_report_says_what_a_head_judged(run):
    assert "labelled training images" not in render_report(run.uri, now=NOW)
    document = json.loads(run.storage.read("run.json"))
    document["heads"] = {"class": HEAD | {"why": "<b>better</b>"}, "lighting": NO_HEAD}
    run.storage.replace("run.json", json.dumps(document).encode())
    page = " ".join(render_report(run.uri, now=NOW).split())
    assert "class was judged by words and labelled training images (&lt;b&gt;better&lt;/b&gt;)" in page
    assert "lighting was judged by" not in page


def test_names_are_text_never_markup(run):
    run.fill()
    page = render_report(run.uri, now=NOW)
    assert html.escape(HOSTILE) in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>v</b>" not in page


def test_the_page_loads_nothing_from_anywhere(run):
    run.fill()
    page = render_report(run.uri, now=NOW)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in page
    assert not re.search(r"""(?:src|url\()\s*=?\s*["']?(?!data:)(?:https?:|//|\.)""", page)
    assert re.findall(r'<img src="([^:]+):', page) == ["data"] * 7


def test_links_stay_inside_the_run_folder(run):
    run.candidate(PLAN[0], file_name="javascript:alert(1)")
    run.candidate(PLAN[0])
    links = re.findall(r'href="([^"]*)"', render_report(run.uri, now=NOW))
    assert links == ["./images/1-1.png"]


def test_each_class_is_counted_before_planned_and_after(run):
    run.fill(but=PLAN[0]["cell"])
    run.candidate(PLAN[0], score=0.3)
    basic, hostile = run.facts().classes
    assert (basic.real, basic.planned, basic.generated, basic.total, basic.target) == (3, 2, 2, 5, 5)
    assert (hostile.real, hostile.planned, hostile.generated, hostile.total) == (0, 5, 3, 3)


def test_each_cell_counts_wanted_accepted_and_candidates(run):
    run.candidate(PLAN[0], score=0.3)
    run.candidate(PLAN[0], score=0.7)
    cell = next(cell for cell in run.facts().cells if cell.key == PLAN[0]["cell"])
    assert (cell.wanted, cell.accepted, cell.candidates, cell.missing) == (2, 1, 2, 1)
    assert cell.acceptance == 0.5


def test_cells_stand_in_a_table_with_one_facet_across(run):
    table = run.facts().table
    assert (table.across, table.columns) == ("lighting", LIGHTINGS)
    assert [(row.class_name, row.values) for row in table.rows] == [
        ("basic", ()), (HOSTILE, ("dim",)), (HOSTILE, ("bright",)),
    ]  # fmt: skip
    assert [cell and cell.wanted for cell in table.rows[2].cells] == [0, 2]


def test_a_facet_that_some_classes_lack_is_listed_downwards():
    cells = [CellCount("a", "a", (None,), 1, 0, 0), CellCount("b/x", "b", ("x",), 1, 0, 0)]
    table = cell_table(cells, ["char"])
    assert table.across is None
    assert [row.values for row in table.rows] == [(), ("x",)]


def test_all_criteria_are_met_by_a_run_that_made_everything(run):
    run.fill()
    assert [criterion.rule for criterion in run.criteria() if not criterion.met] == []
    assert _criterion(run, "Every required column").figure == "0 missing in 10 rows"
    assert "not met" not in render_report(run.uri, now=NOW)


def test_a_class_below_its_share_of_the_target_is_named(run):
    run.candidate(PLAN[4])
    run.candidate(PLAN[5])
    criterion = _criterion(run, "Every class")
    assert not criterion.met
    assert criterion.figure == "lowest 0%"
    assert HOSTILE in criterion.detail


def test_a_facet_value_two_images_off_its_share_is_uneven(run):
    run.fill(but=PLAN[0]["cell"])
    lighting = _criterion(run, "lighting")
    assert not lighting.met
    assert lighting.figure == "1 / 4"
    assert _criterion(run, "char").met is False


def test_a_facet_value_one_image_off_its_share_is_even(run):
    run.fill(but=PLAN[4]["cell"])
    assert _criterion(run, "lighting").met


def test_success_counts_what_is_decided_while_the_run_goes_on_and_everything_at_its_end(run):
    run.fill(but=PLAN[0]["cell"])
    going_on = _criterion(run, "At least 80%")
    assert (going_on.met, going_on.detail) == (True, "5 of 5 so far, 7 wanted")
    run.log.close("budget")
    ended = _criterion(run, "At least 80%")
    assert (ended.met, ended.figure, ended.detail) == (False, "71%", "5 of 7")


@pytest.mark.parametrize("column", ["prompt", "seed", "phash", "lighting"])
def test_a_missing_value_in_a_required_column_is_counted_and_named(run, column):
    run.candidate(PLAN[0], **{column: None})
    criterion = _criterion(run, "Every required column")
    assert not criterion.met
    assert criterion.figure == "1 missing in 4 rows"
    assert f"{column} 1" in criterion.detail


def test_a_facet_may_be_empty_where_it_does_not_apply(run):
    run.candidate(PLAN[4], char=None)
    assert _criterion(run, "Every required column").met


def test_rejections_are_shown_by_reason_and_do_not_count_as_images(run):
    run.candidate(PLAN[0], score=0.2)
    facts = run.facts()
    assert facts.status["rejected_by_reason"] == {"lighting": 1}
    assert (facts.generated, facts.candidates) == (0, 1)


def test_what_was_made_from_real_images_is_counted_by_strength(run):
    assert "made from real images" not in render_report(run.uri, now=NOW)
    for strength, score in ((0.5, 0.2), (0.5, 0.9), (0.7, 0.9)):
        run.candidate(PLAN[0], score=score, parent_id="real/basic/0", strength=strength)
    page = " ".join(render_report(run.uri, now=NOW).split())
    assert "strength 0.5: 1 of 2 passed; strength 0.7: 1 of 1 passed" in page


def test_short_cells_are_listed_once_the_run_has_ended(run):
    run.fill(but=PLAN[0]["cell"])
    assert "Cells with images missing" not in render_report(run.uri, now=NOW)
    run.log.close("short")
    assert "Cells with images missing" in render_report(run.uri, now=NOW)


def test_missing_images_are_short_if_they_were_tried_in_vain_and_open_otherwise(run):
    run.fill(but=PLAN[0]["cell"])
    run.log.close("budget")
    text = " ".join(render_report(run.uri, now=NOW).split())
    assert "0 of these images are short: every attempt failed. 2 are open" in text


def test_images_of_validation_and_test_are_named_apart_from_training_images(run):
    parts = {"train": 3, "validation": 2, "test": 1, None: 1}
    rows = [run._real_row("basic", n) | {"split": name} for name in parts for n in range(parts[name])]
    run.log.commit([row | {"id": f"real/{n}"} for n, row in enumerate(rows)])
    run.fill()
    facts = run.facts()
    assert (facts.real, dict(facts.kept_apart)) == (3 + 4, {"validation": 2, "test": 1})
    whole = facts.real + facts.generated + sum(facts.kept_apart.values())
    assert whole == open_manifest(run.uri).to_table(["id"]).num_rows
    page = render_report(run.uri, now=NOW)
    assert f"<b>{facts.real + facts.generated}</b><span>training images</span>" in page
    assert "<b>2</b><span>real, for validation</span>" in page
    assert "images in the dataset" not in page


def test_of_too_many_classes_the_least_full_are_listed(run, monkeypatch):
    run.fill()
    monkeypatch.setattr("balancer.report.MAX_ROWS", 1)
    assert "The 1 least full of 2 classes." in render_report(run.uri, now=NOW)
    assert [count.name for count in run.facts().emptiest_first(1)] == [
        min(run.facts().classes, key=lambda count: count.fill).name
    ]


def test_a_criterion_names_some_of_many_classes(run, monkeypatch):
    monkeypatch.setattr("balancer.report.criteria.SHOWN_CLASSES", 1)
    assert _criterion(run, "Every class").detail == "below: basic and 1 more"


def test_the_report_says_what_would_help_a_run_that_ended_short(run):
    for cell in PLAN:
        for _ in range(cell["quota"]):
            run.log.commit(
                [
                    row | {"id": f"{row['slot']}-{attempt}", "attempt": attempt}
                    for row in [run._made(cell, 0.58)]
                    for attempt in (1, 2, 3)
                ]
            )
    run.log.close("short")
    page = render_report(run.uri, now=NOW)
    assert "What would help: lighting rejected 21 of the 21 rejected candidates there." in page
    assert "verification.threshold=0.55 would accept 7 more" in page


def test_cells_that_were_given_up_are_listed_with_their_numbers_and_reasons(run):
    failed = [run._made(PLAN[5], 0.2) | {"reason": reason} for reason in ["class"] * 100 + ["blank"] * 199]
    run.log.commit(failed[1:])
    assert "Cells given up" not in render_report(run.uri, now=NOW)
    run.log.commit(failed[:1])
    [given_up] = run.facts().given_up
    assert (given_up.cell.key, given_up.cell.candidates, given_up.cell.missing) == (PLAN[5]["cell"], 299, 1)
    assert given_up.reasons == (("blank", 199), ("class", 100))
    assert given_up.at_most == pytest.approx(0.00997, abs=1e-5)
    page = render_report(run.uri, now=NOW)
    assert "Cells given up" in page
    assert "blank 199, class 100" in page


def test_scores_are_counted_per_property_and_verdict(run):
    run.candidate(PLAN[0], score=0.25)
    run.candidate(PLAN[0], score=0.9)
    run.candidate(PLAN[0], score=1.0)
    by_class, lighting, _ = score_histograms(run.facts(), open_manifest(run.uri))
    assert (by_class.property_name, lighting.property_name) == ("class", "lighting")
    assert [i for i, count in enumerate(lighting.rejected) if count] == [int(0.25 * BINS)]
    assert [i for i, count in enumerate(lighting.accepted) if count] == [int(0.9 * BINS), BINS - 1]
    assert by_class.total == 3


def test_a_score_that_is_not_a_number_is_left_out_of_the_distribution(run):
    run.candidate(PLAN[0], score=0.1, reason="not_finite", scores={"class": float("nan"), "lighting": 0.1})
    assert [
        histogram.property_name for histogram in score_histograms(run.facts(), open_manifest(run.uri))
    ] == ["lighting"]


def test_a_contact_sheet_takes_images_from_all_over_its_class():
    assert evenly_spaced(5, 12) == [0, 1, 2, 3, 4]
    assert evenly_spaced(24, 4) == [3, 9, 15, 21]
    assert evenly_spaced(0, 12) == []


def test_thumbnails_are_at_most_96_pixels_on_a_side():
    data = base64.b64decode(thumbnail_uri(_png(99)).partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (77, 96)


def test_a_damaged_image_costs_its_thumbnail_not_the_report(run):
    run.fill()
    damaged = next(path for path in run.storage.list("images"))
    run.storage.replace(damaged, _png(1)[:50])
    page = render_report(run.uri, now=NOW)
    assert page.count("unreadable</span>") == 1


def test_an_image_with_more_pixels_than_its_row_says_is_not_decoded(run):
    run.fill()
    for path in run.storage.list("images"):
        large = io.BytesIO()
        Image.new("1", (8000, 7900)).save(large, "PNG")
        run.storage.replace(path, large.getvalue())
    began = time.process_time()
    page = render_report(run.uri, now=NOW)
    assert "unreadable</span>" in page
    assert "data:image/jpeg" not in page
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [(512, 256, 512 * 256), (None, 512, 0), (-8, -8, 0), (2**31 - 1, 2**31 - 1, 4096**2)],
)
def test_no_row_can_ask_for_more_pixels_than_a_config_can(width, height, pixels):
    assert _generated_pixels({"width": width, "height": height}) == pixels


def test_rejected_images_that_were_kept_are_shown_by_reason_with_what_they_scored(run):
    rows = [run._made(PLAN[0], 0.2) for _ in range(3)] + [run._made(PLAN[4], 0.3) | {"reason": "near_copy"}]
    rows[3]["nearest_id"] = "real/basic/0.png"
    run.log.commit(rows)
    for row in rows[1:]:
        run.storage.publish(rejected_path(row["id"], row["reason"]), _png(1))
    by_reason, by_cell = run.rejected_sheets()
    assert {sheet.title: (sheet.images, len(sheet.thumbnails)) for sheet in by_reason} == {
        "lighting": (3, 2),
        "near_copy": (1, 1),
    }
    assert by_cell == ()
    cell = PLAN[4]["cell"]
    assert by_reason[1].thumbnails[0].caption == (
        f"{cell}, near_copy, score 0.30 of 0.6, nearest real/basic/0.png"
    )
    page = render_report(run.uri, now=NOW)
    assert page.count("data:image/jpeg") == 3
    assert re.findall(r'href="\./(rejected/[^"]*)"', page)


def test_cells_that_were_given_up_are_shown_with_examples_of_their_own(run):
    failed = [run._made(PLAN[5], 0.2) for _ in range(299)]
    run.log.commit(failed)
    run.storage.publish(rejected_path(failed[20]["id"], "lighting"), _png(1))
    _, [sheet] = run.rejected_sheets()
    assert (sheet.title, sheet.images, len(sheet.thumbnails)) == (PLAN[5]["cell"], 299, 1)
    assert f"given up: {html.escape(PLAN[5]['cell'])}" in render_report(run.uri, now=NOW)


def test_a_run_without_any_candidate_still_has_a_report(run):
    page = render_report(run.uri, now=NOW)
    assert "none decided" in page


def test_the_columns_of_the_cells_stand_in_the_order_of_the_config():
    cells = [CellCount("a", "one", ("night",), 1, 0, 0), CellCount("b", "two", ("dawn",), 1, 0, 0)]
    table = cell_table(cells, ["time"], {"time": ["dawn", "noon", "night"]})
    assert table.columns == ("dawn", "night")
    assert [[cell is None for cell in row.cells] for row in table.rows] == [[True, False], [False, True]]


def test_the_report_of_a_simulated_run_says_that_nothing_was_checked(run):
    assert "No image was checked" not in render_report(run.uri, now=NOW)
    document = json.loads(run.storage.read("run.json"))
    document["config"] |= {"actors": {"kind": "simulated"}}
    run.storage.replace("run.json", json.dumps(document).encode())
    page = render_report(run.uri, now=NOW)
    assert "No image was checked: generated images are noise, and scores are random numbers." in page
    assert (
        CliRunner()
        .invoke(main, ["status", run.uri])
        .stderr.startswith("simulated actors: no image was checked, and scores are random numbers\n")
    )
