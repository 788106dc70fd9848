from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cells import Candidate, Cell, Slot
from balancer.manifest.layout import fragment_path, fragment_seq, image_stem, rejected_path, rejected_paths
from balancer.storage import open_storage, slug, slug_of_before

FACETS = ("lighting", "burn_level")
HOSTILE = [
    "../../etc",
    "..",
    "-",
    "_x",
    "C:\\x",
    "a\nb",
    "\u202egnp",
    "日本",
    " ",
    "%2e%2e",
    "~root",
    "x" * 100,
]


def candidate(class_name: str, **facets: str) -> Candidate:
    return Candidate(Slot(Cell(class_name, tuple(facets.items())), 3), 1)


def test_an_image_stands_under_its_class_and_facets():
    stem = image_stem(candidate("burnt", lighting="dim", burn_level="severe"), FACETS)
    assert stem == "images/burnt/dim/severe/0003-1"


def test_a_facet_that_does_not_apply_is_a_dash():
    assert image_stem(candidate("basic", lighting="dim"), FACETS) == "images/basic/dim/-/0003-1"


def test_a_value_named_dash_is_not_taken_for_a_facet_that_does_not_apply():
    plain = image_stem(candidate("basic"), ("lighting",))
    assert image_stem(candidate("basic", lighting="-"), ("lighting",)) != plain


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_in_the_images_folder(tmp_path, name):
    stem = image_stem(candidate(name, lighting=name), FACETS)
    storage = open_storage(tmp_path / "run", create=True)
    storage.publish(f"{stem}.png", b"")
    assert storage.list("images") == [f"{stem}.png"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_different_classes_never_share_an_image(one, other):
    same = image_stem(candidate(one), FACETS) == image_stem(candidate(other), FACETS)
    assert same == (one == other)


def test_fragments_sort_by_number():
    assert sorted(map(fragment_path, (10, 9, 100))) == list(map(fragment_path, (9, 10, 100)))


def test_a_fragment_knows_its_number():
    assert fragment_seq(fragment_path(42)) == 42


@pytest.mark.parametrize(
    "path",
    [
        "manifest/log/.00000000000000000001.arrow.ab12.tmp",
        "manifest/log/1.arrow",
        "manifest/log/00000000000000000001.arrow.bak",
        "manifest/log/sub/00000000000000000001.arrow",
        "00000000000000000001.arrow",
        "manifest/log/99999999999999999999.arrow",
        "manifest/log/" + "\u0663" * 20 + ".arrow",
    ],
)
def test_other_files_are_no_fragments(path):
    assert fragment_seq(path) is None


def test_a_rejected_image_is_found_under_the_name_of_an_earlier_version_too():
    now, before = rejected_paths("Burnt/dim/0003-1", "A Facet")
    assert now == rejected_path("Burnt/dim/0003-1", "A Facet")
    names = ("A Facet", "Burnt")
    assert before == "rejected/{}/{}/dim/0003-1.png".format(*map(slug_of_before, names))
    assert now == "rejected/{}/{}/dim/0003-1.png".format(*map(slug, names))
