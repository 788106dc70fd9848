"""A run's report: one self-contained HTML file in the run folder."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

from balancer.evaluation.diversity import LIMITS_OF_SIGHT
from balancer.evaluation.diversity_of_run import read_diversity
from balancer.manifest.image_check import ImageCheck
from balancer.manifest.query.rows import open_rows
from balancer.manifest.status import list_held_back, read_status
from balancer.manifest.unjudged import unjudged_text
from balancer.report.balance import weigh
from balancer.report.evaluation import read_evaluation
from balancer.report.facts import Facts, gather_facts
from balancer.report.scores import score_histograms
from balancer.report.sheets import contact_sheets, rejected_sheets
from balancer.review.summary import Summary
from balancer.review.words import describe_review, share
from balancer.storage import LocalStorage, Storage, open_storage, write_outside_runs
from balancer.text.quantities import counted, duration, percent
from balancer.text.templates import templates

REPORT_FILE = "report.html"

MAX_ROWS = 300
"""Longer tables are cut off, and say so."""


def write_report(
    run_uri: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, now: dt.datetime | None = None
) -> str:
    """Write a run's report to the file `out`, by default `report.html` in its folder; returns the path.

    Works during the run as well. UsageError for an `out` that cannot be written, or is inside a run.
    """
    if out is None:
        render_report(run_uri, now)
        return f"{os.fspath(run_uri).rstrip('/')}/{REPORT_FILE}"
    storage = open_storage(run_uri, create=False)
    write_outside_runs(out, _rendered(storage, now, _address(storage)).encode(), "--out")
    return os.fspath(out)


def render_report(run_uri: str | os.PathLike[str], now: dt.datetime | None = None) -> str:
    """Write `report.html` into the run folder and return its text."""
    storage = open_storage(run_uri, create=False)
    page = _rendered(storage, now, ".")
    storage.replace(REPORT_FILE, page.encode())
    return page


def _address(storage: Storage) -> str:
    """The base of links in a page outside the run folder."""
    return Path(storage.uri).as_uri() if isinstance(storage, LocalStorage) else storage.uri


def _rendered(storage: Storage, now: dt.datetime | None, base: str) -> str:
    manifest = open_rows(storage)
    made_at = now or dt.datetime.now(dt.UTC)
    facts = gather_facts(manifest, read_status(storage, made_at))
    rejected, given_up = rejected_sheets(facts, manifest, storage)
    evaluated, evaluation_problem = read_evaluation(storage, manifest)
    return _page(
        base=base,
        facts=facts,
        balance=(balance := weigh(manifest, facts)),
        criteria=balance.criteria,
        histograms=score_histograms(facts, manifest),
        timeline=facts.timeline,
        sheets=contact_sheets(facts, manifest, storage),
        diversity=read_diversity(manifest),
        limits_of_sight=LIMITS_OF_SIGHT,
        rejected=rejected,
        given_up=given_up,
        state=facts.status["state"],
        images=ImageCheck(**facts.status["images"]),
        table=facts.table,
        held_back=list_held_back(manifest.run),
        budget=_budget(facts),
        evaluated=evaluated,
        evaluation_problem=evaluation_problem,
        made_at=made_at,
        review=(review := Summary.from_dict(facts.status["review"])),
        review_lines=describe_review(review),
        share=share,
    )


def _page(**content: object) -> str:
    template = templates("balancer.report").get_template("page.html.j2")
    return template.render(
        max_rows=MAX_ROWS, percent=percent, duration=duration, unjudged_text=unjudged_text, **content
    )


def _budget(facts: Facts) -> str:
    budget = facts.config.budget
    limits = [
        counted(budget.max_candidates, "candidate") if budget.max_candidates else "",
        f"{budget.max_hours:g} hours" if budget.max_hours else "",
    ]
    return " or ".join(limit for limit in limits if limit)
