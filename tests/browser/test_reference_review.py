"""The reference run, reviewed in a browser: counted as scipy counts, and filled again by the next run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from scipy import stats

import balancer
from balancer.manifest.rows import utc_now
from balancer.manifest.status import read_status
from balancer.review.server import ReviewPages
from balancer.review.session import ReviewSession
from balancer.storage import open_storage
from tests.browser.served import served


def test_three_errors_that_a_person_finds_are_counted_and_filled_again(
    reference_run, project, tmp_path, page
):
    folder = tmp_path / "run"
    shutil.copytree(reference_run, folder)
    storage = open_storage(folder, create=False)
    pages = ReviewPages.of(ReviewSession.open(storage, "ann", "estimate"))
    asked = [item.id for item in pages.session.items()]
    sample = {*asked} - {name for name in asked if name.startswith("real/")}
    wrong = sorted(sample)[:3]
    with served(pages.app()) as address:
        page.open(address.url, "question")
        page.press(*["x" if name in wrong else "p" for name in asked])
        page.until(lambda: page.is_shown("done-title"), "something is left")
        page.until_saved()
    pages.commit_saved()
    status = read_status(storage, utc_now())
    review, exact = status["review"], stats.binomtest(3, 24).proportion_ci(0.95, method="exact")
    assert (review["sampled"], review["decided"], review["error_rate"]) == (24, 24, 3 / 24)
    assert (review["low"], review["high"]) == pytest.approx((exact.low, exact.high))
    assert (status["accepted"], status["open"]) == (241, 3)
    again = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--out", str(folder)]
    subprocess.run(again, cwd=project, check=True, capture_output=True)
    status = read_status(storage, utc_now())
    assert (status["state"], status["accepted"], status["review"]["errors"]) == ("complete", 244, 3)
    rows = balancer.open_manifest(folder).to_table(["id", "reason"], status="rejected").to_pylist()
    assert sorted(row["id"] for row in rows if row["reason"] == "reviewed") == wrong
