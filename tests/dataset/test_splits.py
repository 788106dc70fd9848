"""Splits of the real images: given or dealt out, the same every time, and no picture in two of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

import balancer
from balancer.config.schema import Config
from balancer.dataset.audit import Audit, RealImage, audit, audit_dataset
from balancer.dataset.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    assign_splits,
    deal_out,
    describe_kept_apart,
    select_training,
)
from balancer.errors import DatasetError
from balancer.manifest.rows import RunFacts
from balancer.runs.import_real import commit_real_images
from balancer.storage import open_storage
from balancer.verification.verdict import Nearest
from tests.manifest_samples import start

SHARES = {"train": 0.6, "validation": 0.3, "test": 0.1}
CLASSES = ("basic", "burnt")


def exact(shares: Mapping[str, float]) -> dict[str, Fraction]:
    return {split: Fraction(str(share)) for split, share in shares.items()}


def image(name: str, picture: str | None = None, split: str = "") -> RealImage:
    """A real image of the class its name begins with; `picture` stands for its pixels."""
    return RealImage(
        file_name=name,
        class_name=name.partition("/")[0],
        facets={},
        width=8,
        height=8,
        num_bytes=1,
        sha256=f"file of {name}",
        phash="0" * 16,
        pixel_sha256=name if picture is None else picture,
        split=split,
    )


def some(count: int, class_name: str = "basic") -> list[RealImage]:
    return [image(f"{class_name}/{number}.png") for number in range(count)]


def per_split(splits: Mapping[str, str]) -> dict[str, int]:
    return dict(Counter(splits.values()))


# ---- dealing out -----------------------------------------------------------------------------


def test_every_class_is_dealt_out_by_the_shares():
    images = [*some(20), *some(10, "burnt")]
    splits = deal_out(images, exact(SHARES))
    of_class = {name: per_split({i.file_name: splits[i.file_name] for i in images if i.class_name == name})
                for name in CLASSES}  # fmt: skip
    assert of_class["basic"] == {"train": 12, "validation": 6, "test": 2}
    assert of_class["burnt"] == {"train": 6, "validation": 3, "test": 1}


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4), st.lists(st.integers(1, 50), min_size=3, max_size=3)
)
def test_no_class_is_ever_an_image_off_its_shares(sizes: list[int], weights: list[int]):
    shares = {split: Fraction(weight, sum(weights)) for split, weight in zip(SPLITS, weights, strict=True)}
    images = [one for number, size in enumerate(sizes) for one in some(size, f"class{number}")]
    splits = deal_out(images, shares)
    for number, size in enumerate(sizes):
        counts = Counter(split for name, split in splits.items() if name.startswith(f"class{number}/"))
        assert all(abs(counts[split] - share * size) < 1 for split, share in shares.items())


def test_neither_order_nor_file_names_decide_where_a_picture_goes():
    images = [image(f"basic/{number}.png", f"picture {number}") for number in range(30)]
    renamed = [replace(one, file_name=f"basic/copy of {one.file_name[6:]}") for one in reversed(images)]
    by_picture = {one.pixel_sha256: deal_out(images, exact(SHARES))[one.file_name] for one in images}
    again = deal_out(renamed, exact(SHARES))
    assert {one.pixel_sha256: again[one.file_name] for one in renamed} == by_picture


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 6)), min_size=1, max_size=25))
def test_files_of_one_picture_go_together_whatever_their_class(drawn: list[tuple[str, int]]):
    images = [image(f"{name}/{n}.png", f"picture {picture}") for n, (name, picture) in enumerate(drawn)]
    splits = deal_out(images, exact(SHARES))
    for picture in {one.pixel_sha256 for one in images}:
        assert len({splits[one.file_name] for one in images if one.pixel_sha256 == picture}) == 1


def test_a_given_split_is_kept_and_the_rest_makes_up_for_it():
    images = [replace(one, split="test") for one in some(2)] + [image(f"basic/x{n}.png") for n in range(18)]
    splits = deal_out(images, exact(SHARES))
    assert {splits["basic/0.png"], splits["basic/1.png"]} == {"test"}
    assert per_split(splits) == {"train": 12, "validation": 6, "test": 2}


def test_a_copy_goes_where_the_given_one_is_though_all_others_are_for_training():
    images = [image("basic/a.png", "one", "val"), image("basic/b.png", "one"), image("basic/c.png", "two")]
    expected = {"basic/a.png": "validation", "basic/b.png": "validation", "basic/c.png": "train"}
    assert deal_out(images, {TRAIN: Fraction(1)}) == expected


def test_of_a_picture_that_is_given_in_two_splits_the_rest_joins_the_one_kept_apart_longest():
    given_twice = [image("basic/a.png", "one", "train"), image("basic/b.png", "one", "test")]
    splits = deal_out([*given_twice, image("basic/c.png", "one")], {TRAIN: Fraction(1)})
    assert splits == {"basic/a.png": "train", "basic/b.png": "test", "basic/c.png": "test"}


@pytest.mark.parametrize(
    ("told", "split"),
    [("train", TRAIN), ("Training", TRAIN), ("val", VALIDATION), ("valid", VALIDATION), ("dev", VALIDATION),
     ("VALIDATION", VALIDATION), ("test", TEST), ("testing", TEST)],
)  # fmt: skip
def test_the_usual_names_of_splits_are_understood(told: str, split: str):
    assert deal_out([image("basic/a.png", split=told)], {TRAIN: Fraction(1)}) == {"basic/a.png": split}


# ---- of a dataset ----------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ten basic pictures and four burnt ones."""
    for class_name, count in (("basic", 10), ("burnt", 4)):
        (tmp_path / "data" / class_name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng([count, number]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / class_name / f"{number}.png")
    return tmp_path / "data"


def config(dataset: Path, splits: Mapping[str, float] | None = None, **sections: Any) -> Config:
    base = {
        "dataset": {"path": str(dataset), "splits": splits},
        "classes": {name: {"prompts": [name]} for name in (*CLASSES, "none")},
        "facets": {"lighting": {"values": {name: {"prompts": [name]} for name in ("dim", "harsh")}}},
        "target": {"per_class": 12},
        "actors": {"kind": "simulated"},
    }
    return Config.model_validate(base | sections)


def write_table(dataset: Path, rows: Sequence[Mapping[str, str]]) -> None:
    (dataset / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_without_splits_every_image_is_for_training(dataset: Path):
    assert set(assign_splits(audit(dataset), config(dataset)).values()) == {"train"}


def test_the_column_split_of_the_metadata_counts_without_any_setting(dataset: Path):
    write_table(dataset, [{"file_name": "basic/3.png", "split": "test"}])
    splits = assign_splits(audit(dataset), config(dataset))
    assert [name for name, split in splits.items() if split != TRAIN] == ["basic/3.png"]
    assert splits["basic/3.png"] == "test"


@pytest.mark.parametrize(
    ("shares", "table", "because"),
    [
        (
            None,
            {"basic/3.png": "test"},
            "1 real image is for validation or test (column `split` of the metadata",
        ),
        ({"train": 0.5, "test": 0.5}, {}, "7 real images are for validation or test (dataset.splits)"),
        (
            {"train": 0.5, "test": 0.5},
            {"basic/3.png": "val"},
            "(1 by column `split` of the metadata table and 6 by dataset.splits)",
        ),
        (None, {}, ""),
    ],
)
def test_what_keeps_images_apart_is_named(dataset: Path, shares: Any, table: Mapping[str, str], because: str):
    write_table(dataset, [{"file_name": name, "split": split} for name, split in table.items()])
    found, wanted = audit(dataset), config(dataset, shares)
    line = describe_kept_apart(found, assign_splits(found, wanted), wanted)
    assert because in line
    assert bool(line) == bool(because)


def test_the_column_split_is_no_facet(dataset: Path):
    rows = [{"file_name": f"basic/{n}.png", "split": "val", "lighting": "dim"} for n in range(4)]
    write_table(dataset, rows)
    assert audit(dataset).facet_names == ("lighting",)


def test_a_split_that_is_none_is_an_error_that_names_the_images(dataset: Path):
    write_table(dataset, [{"file_name": f"basic/{n}.png", "split": "extra"} for n in range(7)])
    with pytest.raises(DatasetError, match=r"basic/0\.png: 'extra'; .*; and 2 more") as caught:
        assign_splits(audit(dataset), config(dataset))
    assert "train, validation, test" in caught.value.hint


def test_images_that_came_since_do_not_move_those_that_have_a_row(dataset: Path):
    found = audit(dataset)
    first = replace(found, images=found.images[:6])
    known = assign_splits(first, config(dataset, SHARES))
    after = assign_splits(found, config(dataset, SHARES), known)
    assert {name: after[name] for name in known} == known
    assert set(after) == {one.file_name for one in found.images}


def test_a_start_that_was_cut_short_goes_on_with_the_same_splits(dataset: Path):
    found, wanted = audit(dataset), config(dataset, SHARES)
    whole = assign_splits(found, wanted)
    committed = dict(list(whole.items())[:5])
    assert assign_splits(found, wanted, committed) == whole


# ---- what follows from them ------------------------------------------------------------------


def test_targets_count_training_images_only(dataset: Path):
    plan = balancer.plan(config(dataset, {"train": 0.5, "test": 0.5}))
    assert plan.counts == {"basic": 5, "burnt": 2, "none": 0}
    lacking = Counter[str]()
    for wanted in plan.cells:
        lacking[wanted.cell.class_name] += wanted.quota
    assert lacking == {"basic": 7, "burnt": 10, "none": 12}


def test_facet_values_of_validation_images_are_not_credited(dataset: Path):
    rows = [{"file_name": f"basic/{n}.png", "lighting": "dim", "split": "val"} for n in range(10)]
    write_table(dataset, rows)
    counting = config(dataset, target={"per_class": 12, "count_real_facets": "known"})
    quotas = {wanted.cell.key: wanted.quota for wanted in balancer.plan(counting).cells}
    assert (quotas["basic/dim"], quotas["basic/harsh"]) == (6, 6)


def test_the_training_part_keeps_every_class_folder(dataset: Path):
    write_table(dataset, [{"file_name": f"burnt/{n}.png", "split": "test"} for n in range(4)])
    found = audit(dataset)
    part = select_training(found, assign_splits(found, config(dataset)))
    assert part.counts == {"basic": 10, "burnt": 0}
    assert {one.class_name for one in part.images} == {"basic"}


def commit(found: Audit, wanted: Config, run: Path, **options: Any) -> list[dict[str, Any]]:
    storage = open_storage(run, create=True)
    log = start(storage)
    facts = RunFacts("run-1", ("lighting", "burn_level"), wanted, None, None, {})
    commit_real_images(found, CLASSES, log, storage, facts, **options)
    rows: list[dict[str, Any]] = log.table().to_pylist()
    return rows


def test_rows_of_real_images_have_their_split_and_keep_it(dataset: Path, tmp_path: Path):
    wanted = config(dataset, SHARES)
    found = audit_dataset(wanted)
    rows = commit(replace(found, images=found.images[:9]), wanted, tmp_path / "run")
    before = {row["id"]: row["split"] for row in rows}
    assert set(before.values()) == set(SPLITS)
    after = {row["id"]: row["split"] for row in commit(found, wanted, tmp_path / "run")}
    assert len(after) == 14
    assert {name: after[name] for name in before} == before


def test_the_row_of_a_real_image_names_the_hold_out_image_it_copies(dataset: Path, tmp_path: Path):
    wanted = config(dataset)
    copies = {"real/basic/1.png": Nearest("holdout/basic/7.png", 2, 0.99)}
    rows = commit(audit_dataset(wanted), wanted, tmp_path / "run", copies=copies)
    named = {row["id"]: (row["nearest_id"], row["nearest_distance"]) for row in rows if row["nearest_id"]}
    assert named == {"real/basic/1.png": ("holdout/basic/7.png", 2)}


# ---- the setting -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ({"train": 0.5, "test": 0.4}, "shares sum to 0.9, not 1"),
        ({"validation": 0.5, "test": 0.5}, "train is missing"),
        ({"train": 0.5, "tset": 0.5}, "'train', 'validation' or 'test'"),
        ({"train": 1.0, "test": 0.0}, "greater than 0"),
    ],
)
def test_shares_of_splits_that_make_no_whole_are_refused(dataset: Path, splits: Any, problem: str):
    with pytest.raises(ValidationError, match=problem):
        config(dataset, splits)


def test_a_config_without_splits_reads_as_it_did(dataset: Path):
    assert config(dataset).dataset.split_shares() is None
    assert config(dataset, SHARES).dataset.split_shares() == exact(SHARES)
