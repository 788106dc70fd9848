from __future__ import annotations

import json

import pytest

from balancer.config.schema import Config, CopiesConfig
from balancer.errors import ManifestError, UsageError
from balancer.manifest import create_run, read_run
from balancer.manifest.layout import RUN_FILE
from balancer.verification.verdict import DomainLimits
from tests.manifest_samples import CONFIG, HEAD, NO_HEAD, MemoryStorage, planned, run_info


def test_a_run_is_read_as_it_was_written():
    storage = MemoryStorage()
    info = run_info(name="пицца", real_counts={"日本": 3})
    assert create_run(storage, info) == info
    assert read_run(storage) == info


def test_the_first_start_decides_what_the_run_is():
    storage = MemoryStorage()
    first = create_run(storage, run_info("first"))
    assert create_run(storage, run_info("second")) == first


def test_what_is_wanted_follows_from_the_plan():
    assert run_info().wanted == 5


def test_the_fallback_is_one_attempt_more():
    assert run_info().max_attempts == 4
    assert run_info(config=CONFIG | {"attempts": {"max": 3, "fallback": None}}).max_attempts == 3


def test_what_is_scored_are_the_class_and_the_facets_each_with_its_values():
    assert run_info().properties == {"class": 2, "lighting": 2, "burn_level": 3}


def test_a_folder_without_a_run_is_a_usage_error():
    with pytest.raises(UsageError, match=r"memory is not a run folder: it has no run\.json"):
        read_run(MemoryStorage())


CHALLENGE = {
    "accepted_share": 0.01,
    "images": 32,
    "by_kind": {"blobs": {"images": 32, "before": 0.9, "accepted": 0.01}},
    "true_lost": None,
    "labelled_images": 0,
    "by_class": {},
    "typicality": None,
    "features": [],
    "min_typicality": None,
    "min_domain_score": 0.5,
    "notes": ["no typicality"],
}


PARENTS = {"count": 2, "sha256": "a" * 64, "by_class": {"basic": 2, "burnt": 0}}


def damaged(**changes: object) -> bytes:
    storage = MemoryStorage()
    create_run(storage, run_info())
    document = json.loads(storage.files[RUN_FILE])
    document.update(changes)
    return json.dumps({name: value for name, value in document.items() if value != "gone"}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        damaged(seed="7"),
        damaged(plan="gone"),
        damaged(extra=1),
        damaged(plan=[{"cell": "x"}]),
        damaged(plan=["x"]),
        damaged(config={}),
        damaged(config=CONFIG | {"facets": {}}),
        damaged(format="gone"),
        damaged(format=0),
        damaged(challenge={}),
        damaged(challenge=[]),
        *(
            damaged(challenge=CHALLENGE | changed)
            for changed in (
                {"typicality": "../" * 21 + "x"},
                {"typicality": "a" * 64 + "\n"},
                {"min_typicality": -1.0},
                {"min_domain_score": float("nan")},
                {"by_kind": {"blobs": {"images": 3}}},
                {"by_kind": {"blobs": {"images": 1, "before": 1.0, "accepted": "x"}}},
                {"features": [3]},
                {"true_lost": 2.0},
                {"min_typicality": 0.02},
                {"typicality": "a" * 64},
            )
        ),
        damaged(parents=[]),
        *(damaged(parents=PARENTS | {name: -1}) for name in PARENTS),
        damaged(heads=[]),
        damaged(heads={"unknown": NO_HEAD}),
        *(
            damaged(heads={"class": HEAD | changed})
            for changed in (
                {"sha256": None},
                {"sha256": "../" * 21 + "x"},
                {"taken": False},
                {"taken": "yes"},
                {"bytes": -1},
                {"out_of_fold": None},
                {"out_of_fold": {"folds": 5}},
                {"features": "final"},
            )
        ),
        damaged(embedding_dim=2**31),
        damaged(embedding_dim=0),
        damaged(embedding_dim=True),
        damaged(seed=float("nan")),
        damaged(targets={"basic": 1}),
        damaged(targets={"basic": [], "burnt": 2}),
        damaged(real_counts={"basic": float("inf")}),
        damaged(models={"generator": []}),
        damaged(models={"generator": {"model": ["x"]}}),
        *(damaged(config=CONFIG | {"attempts": {"max": many}}) for many in (float("inf"), 0, "3", 2**70)),
        damaged(config=CONFIG | {"output": []}),
        damaged(config=CONFIG | {"classes": []}),
        damaged(config=CONFIG | {"facets": CONFIG["facets"] | {"lighting": {"values": 3}}}),
        *(
            damaged(plan=[planned("basic/dim", 3) | changed])
            for changed in (
                {"quota": float("inf")},
                {"quota": -1},
                {"quota": 1.5},
                {"quota": 2**70},
                {"cell": [1]},
                {"class": [1]},
                {"class": "unknown"},
                {"lighting": 7},
                {"priority": None},
            )
        ),
    ],
)
def test_a_damaged_run_file_is_named(data):
    with pytest.raises(ManifestError, match=r"^run\.json: it is damaged: "):
        read_run(MemoryStorage(files={RUN_FILE: data}))


def test_what_the_pre_flight_found_out_comes_back():
    limits = read_run(MemoryStorage(files={RUN_FILE: damaged(challenge=CHALLENGE)})).domain_limits
    assert limits == DomainLimits(None, 0.5)
    assert read_run(MemoryStorage(files={RUN_FILE: damaged()})).domain_limits == DomainLimits()


def test_the_heads_of_a_run_come_back():
    info = read_run(MemoryStorage(files={RUN_FILE: damaged(heads={"class": HEAD, "lighting": NO_HEAD})}))
    assert info.head_files == {"class": "a" * 64}
    assert read_run(MemoryStorage(files={RUN_FILE: damaged()})).head_files == {}
    assert read_run(MemoryStorage(files={RUN_FILE: damaged(heads="gone")})).head_files == {}


def test_the_parents_of_a_run_come_back():
    info = read_run(MemoryStorage(files={RUN_FILE: damaged(parents=PARENTS)}))
    assert (info.parents, info.conditioned_classes) == (PARENTS, {"basic"})
    anywhere = damaged(parents=PARENTS, config=CONFIG | {"generation": {"contexts": "dataset"}})
    assert read_run(MemoryStorage(files={RUN_FILE: anywhere})).conditioned_classes == {"basic", "burnt"}
    for earlier in ("gone", None):
        assert not read_run(MemoryStorage(files={RUN_FILE: damaged(parents=earlier)})).conditioned_classes
    assert read_run(MemoryStorage(files={RUN_FILE: damaged(format=3, parents="gone")})).has_parents is False


def test_a_newer_run_file_is_refused_with_the_way_out():
    with pytest.raises(ManifestError, match="format 7 is newer than 6") as caught:
        read_run(MemoryStorage(files={RUN_FILE: damaged(format=7)}))
    assert caught.value.hint == "upgrade balancer"


def test_a_config_that_this_version_does_not_understand_is_named():
    info = run_info(config=CONFIG | {"verification": {"copies": 3}})
    with pytest.raises(ManifestError, match=r"^run\.json: it is damaged: config: verification\.copies: "):
        info.config_as(CopiesConfig, "verification", "copies")
    with pytest.raises(ManifestError, match=r"^run\.json: it is damaged: config: verification\.copies: "):
        info.config_as(Config)


def test_a_run_that_was_begun_with_a_range_in_which_no_image_can_be_is_still_read():
    impossible = CONFIG | {"verification": {"brightness": [0.9, 0.1]}}
    with pytest.raises(ValueError, match="is above the greatest"):
        Config.model_validate(impossible)
    assert run_info(config=impossible).config_as(Config).verification.brightness == (0.9, 0.1)
