from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from balancer.cells import Candidate, Cell, Facet, Slot, enumerate_cells

BURNT = Cell("burnt", (("lighting", "dim"), ("burn_level", "severe")))
HALF = Fraction(1, 2)
LIGHTING = Facet("lighting", ("harsh", "dim"), (HALF, HALF), frozenset({"basic", "burnt"}))
BURN_LEVEL = Facet("burn_level", ("slight", "severe"), (HALF, HALF), frozenset({"burnt"}))

candidates = st.builds(
    Candidate,
    st.builds(Slot, st.sampled_from([BURNT, Cell("basic")]), st.integers(0, 99_999)),
    st.integers(1, 100),
)


def test_keys_are_written_as_in_the_manifest():
    assert BURNT.key == "burnt/dim/severe"
    assert Slot(BURNT, 3).key == "burnt/dim/severe/0003"
    assert Candidate(Slot(BURNT, 3), 1).id == "burnt/dim/severe/0003-1"


def test_a_slot_number_of_five_digits_is_not_cut():
    assert Slot(Cell("basic"), 12_345).key == "basic/12345"


def test_a_class_without_facets_is_one_cell():
    assert list(enumerate_cells("mixed", [BURN_LEVEL])) == [Cell("mixed")]


def test_the_last_facet_varies_fastest():
    assert [cell.key for cell in enumerate_cells("burnt", [LIGHTING, BURN_LEVEL])] == [
        "burnt/harsh/slight",
        "burnt/harsh/severe",
        "burnt/dim/slight",
        "burnt/dim/severe",
    ]


def test_a_facet_that_does_not_apply_has_no_value():
    (first, _) = enumerate_cells("basic", [LIGHTING, BURN_LEVEL])
    assert (first.value("lighting"), first.value("burn_level")) == ("harsh", None)


def test_the_class_is_the_first_property():
    assert BURNT.properties == (("class", "burnt"), ("lighting", "dim"), ("burn_level", "severe"))


@given(candidates, st.integers(0, 2**63 - 1))
def test_a_seed_is_an_unsigned_64_bit_number_and_always_the_same(candidate: Candidate, run_seed: int):
    slot = candidate.slot
    again = Candidate(Slot(Cell(slot.cell.class_name, slot.cell.facets), slot.index), candidate.attempt)
    assert 0 <= candidate.seed(run_seed) < 2**64
    assert candidate.seed(run_seed) == again.seed(run_seed)


@given(st.sets(candidates, min_size=2, max_size=20), st.integers(0, 1000))
def test_no_two_candidates_share_a_seed(some: set[Candidate], run_seed: int):
    assert len({candidate.seed(run_seed) for candidate in some}) == len(some)


def test_another_run_seed_is_another_seed():
    candidate = Candidate(Slot(BURNT, 0), 1)
    assert candidate.seed(0) != candidate.seed(1)


def test_seeds_never_change_between_versions():
    """A run that goes on with a newer version must go on with the same images."""
    assert Candidate(Slot(BURNT, 3), 2).seed(7) == 12_434_495_131_737_113_589
