"""The sample dataset shows what its metadata says, and a seed always gives the same pictures."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from balancer.dataset import sample
from balancer.errors import UsageError


def level_of(class_name: str) -> str | None:
    return "moderately_burnt" if class_name == "burnt" else None


def brightness(picture: sample.Picture) -> float:
    return float(picture.mean())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "pizza"
    sample.write_dataset(directory)
    return directory


@pytest.mark.parametrize("class_name", sample.CLASSES)
def test_a_seed_always_gives_the_same_picture(class_name: str) -> None:
    first, again, other = (
        sample.render(class_name, "overhead_harsh", level_of(class_name), seed) for seed in (3, 3, 4)
    )
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_size_is_free_and_keeps_the_scene() -> None:
    small, large = (sample.render("segment", "dim_ambient", None, 5, size) for size in (64, 128))
    assert small.shape == (64, 64, 3)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 6.0


@pytest.mark.parametrize(("class_name", "burn_level"), [("basic", "slightly_burnt"), ("burnt", None)])
def test_burn_level_belongs_to_class_burnt_alone(class_name: str, burn_level: str | None) -> None:
    with pytest.raises(ValueError, match="burn level"):
        sample.render(class_name, "dim_ambient", burn_level, 0)


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no such class: calzone"):
        sample.render("calzone", "dim_ambient", None, 0)


@pytest.mark.parametrize("lighting", sample.LIGHTINGS)
@pytest.mark.parametrize("seed", range(6))
def test_higher_burn_levels_are_darker(lighting: str, seed: int) -> None:
    means = [
        brightness(sample.render("burnt", lighting, level, seed)[40:88, 40:88])
        for level in sample.BURN_LEVELS
    ]
    assert all(lighter > darker for lighter, darker in pairwise(means))


@pytest.mark.parametrize("seed", range(8))
def test_each_lighting_shows(seed: int) -> None:
    lit = {name: sample.render("basic", name, None, seed) for name in sample.LIGHTINGS}
    mean = {name: brightness(picture) for name, picture in lit.items()}
    assert max(mean, key=mean.__getitem__) == "overhead_harsh"
    assert mean["dim_ambient"] < 0.6 * mean["overhead_harsh"]

    sides = {
        name: abs(picture[:, :32].mean() - picture[:, -32:].mean()) / mean[name]
        for name, picture in lit.items()
    }
    assert max(sides, key=sides.__getitem__) == "side_dramatic"

    # Light from behind: what is around the pizza is brighter than the pizza.
    around = {name: picture[:12].mean() / picture[40:88, 40:88].mean() for name, picture in lit.items()}
    assert max(around, key=around.__getitem__) == "backlit_rim"


def test_progression_gets_darker_from_left_to_right() -> None:
    pictures = np.stack([sample.render("progression", "overhead_harsh", None, seed) for seed in range(20)])
    left, middle, right = (pictures[:, 44:84, x : x + 20].mean() for x in (14, 54, 95))
    assert left > middle > right


@pytest.mark.parametrize("seed", range(20))
def test_the_table_is_the_one_named(seed: int) -> None:
    corner = sample.render("segment", "overhead_harsh", None, seed)[-16:, :16].reshape(-1, 3).mean(0)
    red, blue = corner[0], corner[2]
    expected = "wood" if red > 1.3 * blue else "slate" if blue > 1.1 * red else "marble"
    assert sample.table(seed) == expected


def test_dataset_has_the_counts_of_the_reference_case(dataset: Path) -> None:
    counts = {
        split: Counter(path.parent.name for path in (dataset / split).rglob("*.png"))
        for split in ("train", "holdout")
    }
    assert counts["train"] == {"basic": 30, "burnt": 26}
    assert counts["holdout"] == dict.fromkeys(sample.CLASSES, 20)


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_metadata_lists_every_picture_once(dataset: Path, split: str) -> None:
    rows = pq.read_table(dataset / split / "metadata.parquet").to_pylist()
    assert list(rows[0]) == ["file_name", "class", "lighting", "burn_level"]
    on_disk = {path.relative_to(dataset / split).as_posix() for path in (dataset / split).rglob("*.png")}
    assert {row["file_name"] for row in rows} == on_disk
    assert len(rows) == len(on_disk)
    for row in rows:
        assert row["file_name"].startswith(f"{row['class']}/")
        assert (row["burn_level"] is not None) == (row["class"] == "burnt")
    with Image.open(dataset / split / rows[0]["file_name"]) as picture:
        assert picture.size == (128, 128)


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_facets_are_spread_evenly(dataset: Path, split: str) -> None:
    rows = pq.read_table(dataset / split / "metadata.parquet").to_pylist()
    for class_name in {row["class"] for row in rows}:
        own = [row for row in rows if row["class"] == class_name]
        lightings = Counter(row["lighting"] for row in own)
        assert set(lightings) == set(sample.LIGHTINGS)
        assert max(lightings.values()) - min(lightings.values()) <= 1
    burnt = [(row["lighting"], row["burn_level"]) for row in rows if row["class"] == "burnt"]
    levels = Counter(level for _, level in burnt)
    assert max(levels.values()) - min(levels.values()) <= 1
    assert len(set(burnt)) == len(sample.LIGHTINGS) * len(sample.BURN_LEVELS)


def test_no_picture_is_in_both_splits(dataset: Path) -> None:
    pictures = [path.read_bytes() for path in dataset.rglob("*.png")]
    assert len(set(pictures)) == len(pictures)


def test_the_seed_changes_every_picture(dataset: Path, tmp_path: Path) -> None:
    sample.write_dataset(tmp_path / "other", seed=1)
    ours, theirs = (
        {path.read_bytes() for path in root.rglob("*.png")} for root in (dataset, tmp_path / "other")
    )
    assert len(theirs) == len(ours)
    assert not ours & theirs


def test_an_empty_directory_is_fine_and_a_used_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sample.write_dataset(tmp_path / "empty")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty directory"):
        sample.write_dataset(tmp_path / "used")
    with pytest.raises(UsageError, match="not an empty directory"):
        sample.write_dataset(tmp_path / "used" / "precious.txt")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["precious.txt"]
