from __future__ import annotations

from typing import Any

import pytest

from balancer.manifest import ManifestLog, create_run
from balancer.manifest.measured import measure_run
from balancer.planning.plan import Measured
from balancer.scheduling.adaptive import Tally
from tests.manifest_samples import MemoryStorage, at, real, rejected, row, run_info, void


def a_start(storage: MemoryStorage, minute: float, generators: int | None, *rows: dict[str, Any]) -> None:
    """A driver opens the log, with so many generators, and commits these rows."""
    info = create_run(storage, run_info())
    detail = {"generators": generators} if generators else None
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=lambda: at(minute), detail=detail)
    log.commit(rows)


def made(count: int, first: float, every: float, cell: str = "basic/dim") -> list[dict[str, Any]]:
    """Accepted rows, one each `every` minutes from minute `first` on, made in batches of two."""
    return [
        row(f"{cell}/{index:04d}", generated_at=at(first + every * index), batch_size=2)
        for index in range(count)
    ]


def measured(*starts: tuple[float, int | None, list[dict[str, Any]]]) -> Measured:
    storage = MemoryStorage()
    for minute, generators, rows in starts:
        a_start(storage, minute, generators, *rows)
    return measure_run(storage)


def test_a_run_that_has_made_nothing_has_measured_nothing():
    assert measured((0, 2, [])) == Measured("memory")


def test_acceptance_is_counted_over_all_candidates_and_by_attempt():
    slots = [f"basic/dim/{index:04d}" for index in range(3)]
    rows = [row(slots[0]), rejected(slots[1]), rejected(slots[2]), row(slots[1], 2), rejected(slots[2], 3)]
    found = measured((0, None, [*rows, real("a.png"), void(slots[2], 2)]))
    assert found.acceptance == pytest.approx(2 / 5)
    assert found.by_attempt == (Tally(1, 3), Tally(1, 1), Tally(0, 1))


def test_the_size_of_an_image_is_the_mean_of_those_accepted():
    small, large = row("basic/dim/0000", num_bytes=100), row("basic/dim/0001", num_bytes=300)
    assert measured((0, None, [small, large, rejected("basic/dim/0002")])).bytes_per_image == 200


@pytest.mark.parametrize("generators", [1, 2])
def test_a_candidate_takes_its_part_of_the_time_of_all_generators(generators: int):
    """One row a minute, whoever made it: with two generators each takes two."""
    found = measured((0, generators, made(20, first=5, every=1)))
    assert found.seconds_per_candidate == pytest.approx(60 * generators)


def test_the_first_batches_and_the_time_until_they_come_do_not_count():
    """Two generators with batches of two: four rows come at minute 30, then one a minute."""
    rows = made(4, 30, 0) + made(6, 31, 1, cell="burnt/dim/severe")
    assert measured((0, 2, rows)).seconds_per_candidate == pytest.approx(2 * 60)


def test_the_time_between_two_starts_does_not_count():
    first, second = made(12, 0, 1), made(12, 1000, 1, cell="burnt/dim/severe")
    assert measured((0, 1, first), (999, 1, second)).seconds_per_candidate == pytest.approx(60)


def test_starts_with_other_numbers_of_generators_count_by_the_time_of_one():
    first, second = made(12, 0, 1), made(14, 100, 0.5, cell="burnt/dim/severe")
    assert measured((0, 1, first), (99, 2, second)).seconds_per_candidate == pytest.approx(60)


@pytest.mark.parametrize(("generators", "count"), [(None, 20), (2, 4)])
def test_a_pace_that_cannot_be_told_is_not_made_up(generators: int | None, count: int):
    assert measured((0, generators, made(count, 0, 1))).seconds_per_candidate is None
