from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from actors.models.simulated import (
    EMBEDDING_DIM,
    HANG_S,
    Fault,
    SimulatedFault,
    SimulatedGenerator,
    SimulatedVerifier,
    carried_seed,
)
from balancer.cells import Cell
from balancer.scheduling.prompts import Request
from balancer.verification.verdict import Criteria, ImageFlags, Verdict, judge

PROPERTIES = {"class": {"basic": ("basic",), "burnt": ("burnt",)}, "lighting": {"dim": ("dim",)}}
CELL = Cell("burnt", (("lighting", "dim"),))


def requests(*seeds: int) -> list[Request]:
    return [Request("a pizza", "", seed) for seed in seeds]


def generator(**settings) -> SimulatedGenerator:
    return SimulatedGenerator(**{"batch_size": 4, "width": 64, "height": 72} | settings)


def verdicts(seeds: range, pass_rate: float, asked: Request | None = None, **settings) -> list[Verdict]:
    """Of images that were asked for as in `asked`, but for their seeds."""
    wanted = [replace(asked or Request("a pizza", "", 0), seed=seed) for seed in seeds]
    pixels, flags = generator(batch_size=len(seeds)).generate(wanted, 7.5)
    measured = SimulatedVerifier(PROPERTIES, pass_rate, **settings).measure(
        pixels, flags, [CELL] * len(seeds)
    )
    return [judge(measurement, CELL, Criteria(threshold=0.6)) for measurement in measured]


def test_an_image_depends_on_its_seed_alone():
    alone, _ = generator().generate(requests(7), 1.0)
    among, flags = generator().generate(requests(1, 2**64 - 1, 7), 7.5)
    np.testing.assert_array_equal(alone[0], among[2])
    assert not np.array_equal(among[0], among[2])
    assert among.shape == (3, 72, 64, 3)
    assert among.dtype == np.uint8
    assert flags == [ImageFlags()] * 3


def test_sizes_need_not_be_whole_blocks():
    pixels, _ = generator(width=67, height=65).generate(requests(1), 1.0)
    assert pixels.shape == (1, 65, 67, 3)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_the_pixels_carry_the_whole_seed(seed):
    assert carried_seed(generator().generate(requests(seed), 1.0)[0][0]) == seed


def test_as_many_pass_as_asked_for():
    passed = sum(verdict.accepted for verdict in verdicts(range(400), 0.7))
    assert 260 <= passed <= 300


@pytest.mark.parametrize(("pass_rate", "passed"), [(0.0, 0), (1.0, 50)])
def test_a_pass_rate_of_all_or_nothing_is_exact(pass_rate, passed):
    assert sum(verdict.accepted for verdict in verdicts(range(50), pass_rate)) == passed


@pytest.mark.parametrize(("wording", "passed"), [(0, 0), (1, 50), (300, 50), (2, 0)])
def test_wordings_may_pass_at_rates_of_their_own(wording, passed):
    asked = Request("a pizza", "", 0, wording=wording)
    verdicts_ = verdicts(range(50), 0.0, asked, pass_rates={1: 1.0, 300: 1.0})
    assert sum(verdict.accepted for verdict in verdicts_) == passed


@pytest.mark.parametrize(("change", "passed"), [("strengthen lighting", 50), ("guidance 9", 0)])
def test_what_was_strengthened_may_pass_more_often(change, passed):
    asked = Request("a pizza", "", 0, changes=("wording 1", change))
    verdicts_ = verdicts(range(50), 0.0, asked, strengthened_gain=1.0)
    assert sum(verdict.accepted for verdict in verdicts_) == passed


def test_a_seed_passes_or_fails_for_every_verifier_alike():
    assert verdicts(range(50), 0.5) == verdicts(range(50), 0.5)


def test_a_failing_image_lacks_one_property():
    assert {verdict.reason for verdict in verdicts(range(100), 0.0)} == {"class", "lighting"}


def test_measurements_have_the_shape_of_real_ones():
    pixels, flags = generator().generate(requests(5), 1.0)
    verifier = SimulatedVerifier(PROPERTIES, 1.0)
    [measurement] = verifier.measure(pixels, flags, [CELL])
    assert len(measurement.embedding) == 2 * EMBEDDING_DIM == 2 * int(verifier.describe()["embedding_dim"])
    assert np.linalg.norm(np.frombuffer(measurement.embedding, "<f2")) == pytest.approx(1, abs=1e-3)
    assert measurement.phash == "0000000000000005"
    assert measurement.deviation > 0.05


def test_every_batch_takes_its_time():
    slept: list[float] = []
    worker = generator(service_s=2.0, start_s=30.0, sleep=slept.append)
    worker.generate(requests(1), 1.0)
    worker.generate(requests(1, 2, 3, 4), 1.0)
    assert slept == [30.0, 2.0, 2.0]


def test_a_fault_strikes_at_its_call_only():
    worker = generator(faults=[Fault(2, "raise")])
    worker.generate(requests(1), 1.0)
    with pytest.raises(SimulatedFault, match="call 2"):
        worker.generate(requests(1), 1.0)
    assert len(worker.generate(requests(1), 1.0)[0]) == 1


def test_a_fault_marked_once_spares_the_next_life(tmp_path):
    fault = Fault(1, "raise", once=str(tmp_path / "struck"))
    with pytest.raises(SimulatedFault):
        generator(faults=[fault]).generate(requests(1), 1.0)
    assert len(generator(faults=[fault]).generate(requests(1), 1.0)[0]) == 1


def test_a_hang_sleeps_for_days():
    slept: list[float] = []
    worker = SimulatedVerifier(PROPERTIES, 1.0, faults=[Fault(1, "hang")], sleep=slept.append)
    worker.measure(*generator().generate(requests(1), 1.0), [CELL])
    assert HANG_S in slept


def test_a_death_ends_the_process_at_once():
    code = (
        "from actors.models.simulated import *\n"
        "try: SimulatedGenerator(1, 64, 64, faults=[Fault(1, 'die')]).generate([], 1.0)\n"
        "finally: print('still here')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, b"")
