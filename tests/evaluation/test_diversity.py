"""The diversity alarm fires on what has collapsed, seldom on what has not, and says where it is blind."""

from __future__ import annotations

import numpy as np
import pytest

from actors.loop.collapse import CollapseWatch
from actors.loop.stopping import Stopping
from balancer.evaluation.diversity import Pictures, improved_recall, kid, measure_diversity, vendi_score
from balancer.evaluation.diversity_of_run import diversity_of_run
from balancer.process.signals import StopSignal
from balancer.storage import open_storage
from measure_diversity import EMBEDDINGS, alarms
from tests.evaluation.here import Made, make_run, picture
from tests.manifest_samples import real, row

UNIT = np.eye(4)


def fired(collapse, real, seeds=range(2)):
    levels = [each.level for seed in seeds for each in alarms(EMBEDDINGS, collapse, real, seed)]
    return np.mean([level != "green" for level in levels])


@pytest.mark.parametrize("real", [20, 50])
def test_a_collapse_of_the_spread_or_onto_few_modes_or_a_shift_is_noticed(real):
    assert fired("half_the_spread", real) == 1
    assert fired("3_of_12_modes", real) >= 0.6
    assert fired("shifted", real) >= 0.9


def test_images_like_the_real_ones_seldom_raise_an_alarm():
    assert fired("none", 20, range(4)) <= 0.1
    assert fired("none", 50) <= 0.1


def test_below_twenty_images_of_either_kind_nothing_is_estimated():
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal((19, 8)), rng.standard_normal((40, 8))
    measured = measure_diversity({"few real": Pictures(few, many), "few made": Pictures(many, few)})
    for each in measured.values():
        assert (each.level, each.recall, each.reasons) == ("not estimable", None, ())


def test_near_duplicates_raise_an_alarm_without_any_real_image():
    made = np.random.default_rng(0).standard_normal((10, 8))
    [each] = measure_diversity({"cell": Pictures(np.empty((0, 8)), made, near_duplicates=2)}).values()
    assert (each.level, each.reasons) == ("amber", ("2 of 10 generated images are near-duplicates",))


def test_a_class_that_drifts_to_its_neighbour_is_amber_and_says_which():
    rng = np.random.default_rng(1)
    cat, dog = rng.standard_normal((2, 60, 16)) + np.array([3 * np.eye(16)[0], 3 * np.eye(16)[1]])[:, None]
    between = rng.standard_normal((200, 16)) + 0.5 * np.eye(16)[0] + 2.5 * np.eye(16)[1]
    measured = measure_diversity({"cat": Pictures(cat, between), "dog": Pictures(dog, dog)})
    assert measured["cat"].level in ("amber", "red")
    assert "to the real images of dog" in measured["cat"].reasons[-1]


def test_the_same_images_give_the_same_figures():
    assert alarms(EMBEDDINGS, "none", 20, 3) == alarms(EMBEDDINGS, "none", 20, 3)


def test_recall_is_the_share_of_real_images_in_the_reach_of_a_generated_one():
    made = np.array([[0.0, 0], [1, 0], [2, 0], [10, 0]])
    assert improved_recall(np.array([[0.5, 0], [5.0, 0], [-1.5, 0]]), made, 1) == pytest.approx(2 / 3)


def test_the_vendi_score_counts_different_images():
    assert vendi_score(UNIT) == pytest.approx(4)
    assert vendi_score(UNIT[[0, 0, 1, 1]]) == pytest.approx(2)


def test_the_kid_of_two_halves_is_about_nothing_and_of_opposites_large():
    images = np.random.default_rng(0).standard_normal((400, 8))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    assert abs(kid(images[:200], images[200:])) < 0.05
    assert kid(images + UNIT[0].repeat(2), images) > 1


# ---- stopping a run ------------------------------------------------------------------------------


def test_a_run_drains_once_a_class_has_collapsed_and_says_which():
    rng = np.random.default_rng(0)
    real = [
        (name, rng.standard_normal(16).astype("<f2").tobytes()) for name in ("cat", "dog") for _ in range(30)
    ]
    watch = CollapseWatch.over(real)
    stopping = Stopping(StopSignal(), None, lambda: 0.0, watch)
    for name, embedding in real[:19] + real[30:]:
        watch.add(name, embedding)
    assert not stopping.begins(0)
    same = np.ones(16, "<f2").tobytes()
    for _ in range(20):
        watch.add("cat", same)
    assert stopping.begins(0)
    assert stopping.is_draining
    assert stopping.collapsed.startswith("class cat has collapsed: Vendi ratio ")


def test_a_class_without_enough_real_images_never_stops_a_run():
    watch = CollapseWatch.over([("cat", np.ones(4, "<f2").tobytes())] * 19)
    for _ in range(100):
        watch.add("cat", np.ones(4, "<f2").tobytes())
        watch.add("dog", np.ones(4, "<f2").tobytes())
    assert not watch.has_collapsed()


def test_embeddings_that_are_no_numbers_are_left_out(tmp_path):
    def embedding(number):
        return np.random.default_rng(number).normal(size=4).astype("<f2").tobytes()

    def images():
        for number in range(25):
            shown = real(f"{number}.png", split="train", embedding=embedding(number))
            yield shown, picture(0, number)
            broken = number < 3
            made = np.full(4, np.nan, "<f2").tobytes() if broken else embedding(100 + number)
            yield row(f"basic/dim/{number:04d}", split="train", embedding=made), picture(0, 900 + number)

    run = make_run(tmp_path / "run", Made(0, 0, 0, 0), lambda: list(images()))
    measured = diversity_of_run(open_storage(run, create=False))
    assert measured["classes"]["basic"]["generated"] == 22


def test_an_embedding_that_is_no_number_does_not_stop_the_watch():
    vectors = np.random.default_rng(0).normal(size=(25, 4)).astype("<f2")
    watch = CollapseWatch.over(("a", vector.tobytes()) for vector in vectors)
    for _ in range(25):
        watch.add("a", np.full(4, np.nan, "<f2").tobytes())
    assert not watch.has_collapsed()


def test_a_run_without_an_accepted_image_has_no_diversity(tmp_path):
    run = make_run(tmp_path / "run", Made(0, 0, 0, 0))
    measured = diversity_of_run(open_storage(run, create=False))
    assert (measured["classes"], measured["cells"], measured["collapsed"]) == ({}, {}, [])
