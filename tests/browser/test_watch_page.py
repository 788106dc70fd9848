"""A run is watched in a real browser."""

from __future__ import annotations

import pytest

from balancer.manifest.status import SILENT_AFTER_S
from balancer.storage import LocalStorage
from balancer.watch.server import LiveRun
from tests.browser.served import served
from tests.manifest_samples import at, rejected
from tests.review.small_run import HOSTILE, accepted, begin_run, named, with_file


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def test_commits_are_seen_as_they_come_and_so_is_the_death_of_the_driver(storage, page):
    log = begin_run(storage, 20, HOSTILE)
    live, now = LiveRun.of(storage), [at(0)]
    live.now = lambda: now[0]
    with served(live.app()) as address:
        page.open(address.url, "figures")
        page.until(lambda: "0 of 20" in page.text("figures"), "no figures")
        log.commit([with_file(storage, accepted(HOSTILE, index)) for index in range(5)])
        log.commit([rejected("basic/dim/0007", **named(HOSTILE))])
        page.until(lambda: "5 of 20" in page.text("figures"), "no news")
        assert page.text("state") == "running"
        assert "rejected: lighting 1" in page.text("over-time")
        assert f"{HOSTILE}/dim" in page.text("last-accepted")
        page.until(lambda: "not kept" in page.text("last-rejected"), "an image that is not there is shown")
        now[0] = at(SILENT_AFTER_S / 60 + 1)
        page.until(lambda: page.text("state") == "stopped", "nobody misses the driver")
        assert "The driver ended without saying why" in page.text("alarm")
    page.until(lambda: "No connection to the server" in page.text("alarm"), "nobody misses the server")
    assert "5 of 20" in page.text("figures")


def test_everything_has_a_name_a_contrast_and_a_place(storage, page):
    log = begin_run(storage, 20)
    log.commit([with_file(storage, accepted("basic", index)) for index in range(5)])
    with served(LiveRun.of(storage).app()) as address:
        page.open(address.url, "figures")
        page.until(lambda: "5 of 20" in page.text("figures"), "no figures")
        for dark, width in ((False, 1280), (True, 1280), (False, 390)):
            page.look(dark=dark, width=width)
            assert page.problems_of_access() == []
            assert page.run("return document.documentElement.scrollWidth") <= width
