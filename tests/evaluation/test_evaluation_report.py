"""The section of a report on the evaluation."""

from __future__ import annotations

import pytest

from balancer.evaluation.files import OUTCOME_FILE, write_outcome
from balancer.manifest.query.rows import open_rows
from balancer.report import render_report
from balancer.report.evaluation import MARGIN, WIDTH, read_evaluation
from balancer.storage import open_storage
from tests.evaluation.here import Made, make_run, outcome


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", Made(train=2, validation=0, test=0, accepted=2))


def test_a_report_shows_decision_arms_and_classes(run):
    write_outcome(open_storage(run, create=False), outcome() | {"notes": ["One <note>."]})
    page = render_report(run)
    assert "Add the generated images." in page
    assert "One &lt;note&gt;." in page
    assert "+10.0 (+5.0 to +15.0)" in page
    assert "2 test images" in page
    assert "Careful: the run had other images when it was evaluated" in page


def test_intervals_are_drawn_to_scale_around_no_difference(run):
    storage = open_storage(run, create=False)
    write_outcome(storage, outcome())
    evaluated, _ = read_evaluation(storage, open_rows(storage))
    basic, burnt = evaluated.classes
    assert evaluated.zero == MARGIN
    assert basic.high == WIDTH - MARGIN
    assert basic.mean - basic.low == pytest.approx(basic.low - evaluated.zero)
    assert (burnt.text, burnt.verdict) == ("", "cannot tell")


def test_without_an_evaluation_there_is_no_section_and_a_damaged_one_is_told(run):
    assert "Evaluation</h2>" not in render_report(run)
    open_storage(run, create=False).replace(OUTCOME_FILE, b"{}")
    assert "outcome.json is damaged" in render_report(run)
