"""Candidates over time, in the report as on the live page."""

from __future__ import annotations

import datetime as dt
import re

import pyarrow as pa

from balancer.report import render_report
from balancer.report.over_time import BINS, HEIGHT, over_time
from balancer.storage import LocalStorage
from tests.manifest_samples import at, rejected, row, start


def table(*rows):
    status = ["rejected" if reason else "accepted" for _, reason in rows]
    times = pa.array([time for time, _ in rows], pa.timestamp("us", tz="UTC"))
    reasons = pa.array([reason for _, reason in rows], pa.string())
    return pa.table({"status": status, "reason": reasons, "generated_at": times})


def test_every_candidate_is_counted_once_the_first_in_the_first_bin_and_the_last_in_the_last():
    found = over_time(table((at(0), None), (at(48), "class"), (at(20.5), None), (at(48), "blank")))
    assert (found.begin, found.bin_s) == (at(0), 60.0)
    assert [place for place, count in enumerate(found.accepted) if count] == [0, 20]
    assert {name: (sum(counts), counts[-1]) for name, counts in found.rejected.items()} == {
        "class": (1, 1),
        "blank": (1, 1),
    }
    assert found.end == at(48)


def test_reasons_stand_in_the_order_of_their_frequency():
    found = over_time(table(*[(at(n), reason) for n, reason in enumerate("abbcbc")]))
    assert list(found.rejected) == ["b", "c", "a"]


def test_a_bar_is_as_high_as_its_bin_has_candidates():
    found = over_time(table((at(0), None), (at(0), "class"), (at(48), None)))
    assert found.most == 2
    heights = {}
    for block in found.blocks():
        heights[block.bin] = heights.get(block.bin, 0) + block.height
    assert heights == {0: HEIGHT, BINS - 1: HEIGHT / 2}
    assert min(block.top for block in found.blocks()) == 0


def test_candidates_of_one_moment_fill_one_bar():
    found = over_time(table((at(0), None), (at(0), None)))
    assert (found.accepted[0], found.most) == (2, 2)


def test_nothing_is_drawn_of_no_candidates_or_without_times():
    assert over_time(table()) is None
    assert over_time(table((None, None))) is None


def test_the_report_draws_it_and_leaves_out_what_was_not_made(tmp_path):
    log = start(LocalStorage(tmp_path))
    taken = row("basic/dim/0002", origin_run_id="another", origin_id="x", generated_at=at(-1000))
    log.commit([row("basic/dim/0000"), rejected("basic/dim/0001", generated_at=at(1)), taken])
    page = render_report(tmp_path, now=at(2).astimezone(dt.UTC))
    assert 'aria-label="Candidates over time: accepted 1, rejected: lighting 1"' in page
    assert len(re.findall(r'<rect class="t\d"', page)) == 2
