"""The log is the lock in a bucket, too: two drivers, lost answers and faults, over real requests.

The rules are those of `test_manifest_log`; here each is kept through a store that answers late or never.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from balancer.errors import FencedError, StorageError
from balancer.manifest import ManifestLog, create_run, fsck, read_log
from balancer.manifest.layout import LOG_DIR, fragment_path
from balancer.manifest.rows import revoked
from balancer.storage import Storage, open_storage
from tests.fault_proxy import CONFLICT, FORBIDDEN, LATE, LOST, RESET, SLOW, STALL, UNAVAILABLE
from tests.manifest_samples import ids, image_bytes, rejected, row, run_info, start

SLOTS = [f"basic/dim/{index:04d}" for index in range(3)]
ONE, TWO, THREE = SLOTS
EVERY_FAULT = [UNAVAILABLE, CONFLICT, RESET, STALL, LOST, LATE, SLOW]


@pytest.fixture
def opened(run_uri) -> Callable[[], Storage]:
    """The run folder as each process opens it for itself."""
    return lambda: open_storage(run_uri, create=True)


def with_image(slot: str) -> dict[str, object]:
    return row(slot, file_name=f"images/{slot}-1.png")


def publish_and_commit(storage: Storage, log: ManifestLog, *slots: str) -> None:
    for slot in slots:
        storage.publish(f"images/{slot}-1.png", image_bytes(f"{slot}-1"))
    log.commit([with_image(slot) for slot in slots])


def committed(storage: Storage) -> list[str]:
    found: list[str] = read_log(storage).table["id"].to_pylist()
    return found


@pytest.mark.parametrize("fault", EVERY_FAULT)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_fault_at_any_fragment_loses_and_repeats_nothing(opened, proxy, fault, number):
    proxy.fail(fault, "PUT", key=fragment_path(number))
    storage = opened()
    log = start(storage)  # 1
    publish_and_commit(storage, log, ONE)  # 2
    publish_and_commit(storage, log, TWO, THREE)  # 3
    log.close("complete")  # 4
    view = read_log(opened())
    assert view.table["id"].to_pylist() == ids(log) == [f"{slot}-1" for slot in SLOTS]
    assert (view.fragments, view.state) == (4, "complete")
    assert fsck(opened()) == []
    assert proxy.faults() == {fault: 1}


@pytest.mark.parametrize("fault", [LOST, LATE])
def test_a_run_whose_beginning_was_not_acknowledged_is_the_one_that_began(opened, proxy, fault):
    proxy.fail(fault, "PUT", key="run.json")
    assert create_run(opened(), run_info("mine")).run_id == "mine"
    assert create_run(opened(), run_info("another")).run_id == "mine"


@pytest.mark.parametrize("fault", [None, LOST, LATE, CONFLICT, UNAVAILABLE])
def test_a_driver_that_was_taken_over_is_fenced(opened, proxy, fault):
    older = start(opened())
    older.commit([row(ONE)])
    newer = start(opened())
    if fault:
        proxy.fail(fault, "PUT", key=fragment_path(4))
    with pytest.raises(FencedError, match="epoch 2, this one is 1") as caught:
        older.commit([row(TWO)])
    assert caught.value.exit_code == 5
    newer.commit([row(TWO)])
    assert committed(opened()) == [f"{ONE}-1", f"{TWO}-1"]


@pytest.mark.parametrize("fault", [LOST, LATE, CONFLICT])
def test_a_takeover_whose_answer_got_lost_is_one(opened, proxy, fault):
    older = start(opened())
    older.commit([row(ONE)])
    proxy.fail(fault, "PUT", key=fragment_path(3))
    newer = start(opened())
    assert (newer.epoch, ids(newer)) == (2, [f"{ONE}-1"])
    with pytest.raises(FencedError):
        older.commit([row(TWO)])


def test_rows_that_were_given_up_on_after_they_landed_are_recognised_when_committed_again(opened, proxy):
    """The store does the work, and then refuses to answer for good: the driver learns of it later."""
    log = start(opened())
    proxy.fail(LOST, "PUT", key=fragment_path(2))
    proxy.fail(FORBIDDEN, "PUT", key=fragment_path(2))
    with pytest.raises(StorageError, match="403"):
        log.commit([row(ONE)])
    assert committed(opened()) == [f"{ONE}-1"]
    log.commit([row(ONE)])
    log.commit([row(TWO)])
    assert committed(opened()) == ids(log) == [f"{ONE}-1", f"{TWO}-1"]


def test_rows_that_never_landed_are_committed_by_the_next_driver(opened, proxy):
    log = start(opened())
    proxy.fail(FORBIDDEN, "PUT", key=fragment_path(2))
    with pytest.raises(StorageError):
        log.commit([row(ONE)])
    newer = start(opened())
    newer.commit([row(ONE)])
    with pytest.raises(FencedError):
        log.commit([row(ONE)])
    assert committed(opened()) == [f"{ONE}-1"]


@pytest.mark.parametrize("fault", [LOST, LATE])
def test_verdicts_whose_answer_got_lost_stand_once(opened, proxy, fault):
    log = start(opened())
    log.commit([row(ONE), rejected(TWO)])
    proxy.fail(fault, "PUT", key=fragment_path(3))
    log.commit_verdicts([revoked(row(ONE), "class")])
    assert read_log(opened()).table["status"].to_pylist() == ["rejected", "rejected"]
    assert read_log(opened()).fragments == 3


@pytest.mark.parametrize("seed", range(5))
def test_drivers_that_take_turns_in_bad_weather_lose_and_repeat_nothing(opened, proxy, seed):
    proxy.fail_at_random(0.15, seed, UNAVAILABLE, RESET, LOST, CONFLICT)
    slots = [f"basic/dim/{index:04d}" for index in range(8)]
    drivers = [start(opened())]
    for number, slot in enumerate(slots):
        if number % 3 == 2:
            drivers.append(start(opened()))
        for driver in drivers[:-1]:
            with pytest.raises(FencedError):
                driver.commit([row(slot)])
        drivers[-1].commit([row(slot)])
    assert committed(opened()) == [f"{slot}-1" for slot in slots]
    assert proxy.faults()[LOST] > 0


def test_only_fragments_are_left_in_the_log(opened, proxy):
    proxy.fail_at_random(0.2, 3, UNAVAILABLE, RESET, LOST, CONFLICT)
    log = start(opened())
    log.commit([row(ONE)])
    log.close("complete")
    assert opened().list(LOG_DIR) == [fragment_path(number) for number in (1, 2, 3)]
