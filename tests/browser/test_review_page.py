"""A person reviews in a real browser."""

from __future__ import annotations

from collections import Counter

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from balancer.review.server import ReviewPages
from balancer.review.session import ReviewSession
from balancer.storage import LocalStorage
from tests.browser.served import served
from tests.review.small_run import HOSTILE, make_run


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def review(storage, queue="estimate", reviewer="ann", **run):
    if not storage.exists("run.json"):
        make_run(storage, **run).close("complete")
    return ReviewPages.of(ReviewSession.open(storage, reviewer, queue))


def answers(pages):
    """How often each answer was given, by the reviewer's last word on each image."""
    pages.session.refresh()
    return Counter((one.answer, one.reason) for one in pages.session.standing().values())


def test_fifty_images_are_decided_with_one_key_each(storage, page):
    pages = review(storage, images=45, real_images=0)  # with 10 % repeats 49 or 50
    total = pages.session.progress().total
    with served(pages.app()) as address:
        page.open(address.url, "question")
        keys = ["p", "x", Keys.ARROW_RIGHT, Keys.ARROW_LEFT, "1", "P"] * 9
        page.press(*keys[:total])
        page.until(lambda: page.is_shown("done-title"), "something is left")
        page.until_saved()
        assert page.text("counts") == f"{total} of {total}"
    assert 48 <= total <= 50
    said = answers(pages)
    assert said.total() == 45
    assert {("accept", None), ("reject", None), ("reject", "class")} == said.keys()


def test_undo_brings_the_image_back_and_takes_the_answer_back(storage, page):
    pages = review(storage, images=8)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        first = page.run("return document.querySelector('#zoom img').src")
        page.press("x")
        page.until(
            lambda: page.run("return document.querySelector('#zoom img').src") != first, "no next image"
        )
        page.press("u")
        assert page.run("return document.querySelector('#zoom img').src") == first
        page.until_saved()
        assert page.text("counts") == f"0 of {pages.session.progress().total}"
        page.press("p")
        page.until_saved()
    assert answers(pages) == {("accept", None): 1}


def test_a_skipped_image_comes_again_at_the_end(storage, page):
    pages = review(storage, images=3, real_images=0)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        page.press("s", "p", "p", "x")
        page.until(lambda: page.is_shown("done-title"), "something is left")
        page.until_saved()
    assert answers(pages) == {("accept", None): 2, ("reject", None): 1}


def test_the_wrong_ones_of_a_grid_are_pressed_and_the_others_are_right(storage, page):
    pages = review(storage, "basic", images=30, real_images=0)
    estimate = pages.session.progress().total
    assert estimate == 0  # all are of the estimate sample, which stays apart
    pages = review(storage, images=30)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        page.press("g")
        page.until(lambda: page.is_shown("grid"), "no grid")
        tiles = page.driver.find_elements(By.CSS_SELECTOR, ".tile")
        assert len(tiles) == 24
        tiles[3].click()
        page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "x", Keys.ARROW_LEFT, "2")
        assert page.text("save-grid") == "P save: 21 accepted, 3 rejected"
        page.press("p")
        page.until_saved()
        assert answers(pages) == {("accept", None): 21, ("reject", None): 2, ("reject", "property"): 1}
        page.press("u")
        page.until_saved()
        assert answers(pages) == {}


def test_answers_outlive_the_connection_and_the_server(storage, page):
    pages = review(storage, images=8)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        page.press("p")
        page.until_saved()
    page.press("x", "3")
    page.until(lambda: page.text("saved") == "2 not saved", "nobody says that nothing is saved")
    assert "No connection to the server. 2 answers are kept in this browser" in page.text("alarm")
    assert answers(pages) == {("accept", None): 1}
    following = review(storage)
    with served(following.app(), address.port) as again:
        page.until(lambda: "started anew" in page.text("alarm"), "nobody says where the server is")
        page.open(again.url, "question")
        page.until_saved()
        page.until(lambda: page.text("counts").startswith("3 of"), "answers are lost")
    assert answers(following) == {("accept", None): 1, ("reject", None): 1, ("reject", "unrecognisable"): 1}


def test_two_windows_do_not_ask_for_the_same_image_twice(storage, page):
    pages = review(storage, images=6, real_images=0)
    left = pages.session.progress().total
    with served(pages.app()) as address:
        page.open(address.url, "question")
        [one] = page.driver.window_handles
        page.driver.switch_to.new_window("window")
        page.open(address.url, "question")
        [other] = {*page.driver.window_handles} - {one}
        for number in range(left):
            page.driver.switch_to.window((one, other)[number % 2])
            page.press("p")
            page.until_saved()
        for window in (one, other):
            page.driver.switch_to.window(window)
            page.until(lambda: page.is_shown("done-title"), "an image is asked for again")
    pages.session.refresh()
    assert pages.session.progress().decided == left


def test_a_hostile_name_is_shown_as_it_is_and_runs_nothing(storage, page):
    pages = review(storage, HOSTILE, reviewer="<script>alert(1)</script>", images=6, class_name=HOSTILE)
    pages = review(storage, reviewer="<script>alert(1)</script>")
    page.look(width=390)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        assert HOSTILE in page.text("question")
        assert "<script>alert(1)</script>" in page.text_of_all()
        page.press("g")
        sources = page.run("return [...document.images].map((image) => new URL(image.src).pathname)")
        assert [source for source in sources if "/images/" not in source] == []
        assert page.run("return document.documentElement.scrollWidth") <= 390


def test_everything_has_a_name_a_contrast_and_a_place(storage, page):
    pages = review(storage, images=12)
    with served(pages.app()) as address:
        for dark in (False, True):
            page.look(dark=dark)
            page.open(address.url, "question")
            page.until(
                lambda: len(page.driver.find_elements(By.CSS_SELECTOR, "#example-list img")) == 6, "examples"
            )
            assert page.problems_of_access() == []
            page.press("g", Keys.ARROW_RIGHT, "x")
            assert page.problems_of_access() == []
            page.press("?")
            page.until(lambda: page.is_shown("help"), "no help")
            assert page.problems_of_access() == []


def test_the_page_can_be_used_by_keyboard_alone(storage, page):
    pages = review(storage, images=4)
    with served(pages.app()) as address:
        page.open(address.url, "question")
        reached = []
        for _ in range(25):
            page.press(Keys.TAB)
            reached.append(
                page.run("return document.activeElement.id || document.activeElement.dataset.reason")
            )
        assert {"to-grid", "to-help", "zoom", "reject", "accept", "later", "class", "other"} <= {*reached}
        outlines = page.run(
            "document.getElementById('accept').focus();"
            "return getComputedStyle(document.getElementById('accept')).outlineStyle"
        )
        assert outlines == "solid"
        page.press("z")
        assert page.is_shown("large")
        page.press(Keys.ESCAPE)
        assert not page.is_shown("large")
        page.press("?", Keys.SPACE, Keys.ESCAPE, "x")  # single keys are turned off in the help
        assert page.text("counts").startswith("0 of")
