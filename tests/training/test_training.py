"""What training code gets of a run: images, and datasets of torch, Hugging Face and Ray."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from balancer import open_manifest
from balancer.errors import ManifestError, StorageError, UnavailableError, UsageError
from balancer.images import NAMES_OF_FORMATS, is_marked_synthetic, read_image
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from balancer.training import extras, torch_dataset
from balancer.training.choice import Choice
from balancer.training.sampling import draws_per_image, exposures, sample_weights
from balancer.training.selection import Selection
from tests.manifest_samples import real, row, start

CLASSES = ("basic", "burnt", "combined", "mixed", "progression", "segment")
DIM, SEVERE = "basic/dim/0000", "burnt/dim/severe/0000"


@pytest.fixture(scope="module")
def manifest(reference_run) -> Manifest:
    return open_manifest(reference_run)


@pytest.fixture
def small(tmp_path: Path) -> Manifest:
    """Two real basic images of different sizes, two generated ones, one of them burnt."""
    storage = open_storage(tmp_path, create=True)
    rows = [
        real("a.png", split="train", width=24, height=16),
        real("b.png", split="test", width=8, height=8),
        row(DIM, split="train", width=16, height=16),
        row(SEVERE, split="train", width=16, height=16),
    ]
    for one in rows:
        (tmp_path / one["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        picture = np.full((one["height"], one["width"], 3), 51, np.uint8)
        Image.fromarray(picture).save(tmp_path / one["file_name"], "PNG")
    start(storage).commit(rows)
    return open_manifest(tmp_path)


of_ray_data = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""Ray Data warns of its own settings."""


def through(pixels):
    """A transform that pickles."""
    assert isinstance(pixels, Image.Image)
    return torch.tensor(pixels.size)


# ---- images ----------------------------------------------------------------------------------


def test_images_are_a_sequence_that_is_decoded_when_looked_at(manifest, reference_run):
    images = manifest.images(filter="class = 'burnt' and source = 'synthetic'")
    assert len(images) == 24
    one = images[-1]
    kept = read_image(reference_run / one.row["file_name"], max_bytes=10**6, max_pixels=10**6)
    assert one.pixels().dtype == np.uint8
    np.testing.assert_array_equal(one.pixels(), kept)
    np.testing.assert_array_equal(np.asarray(one.pil()), kept)
    assert [image.id for image in images[3:5]] == [images[3].id, images[4].id]
    assert len(images[24:]) == 0
    assert [image.id for image in images] == [images[place].id for place in range(24)]
    with pytest.raises(IndexError):
        images[24]


def test_an_image_is_read_with_its_mark_and_its_row(manifest):
    (one,) = manifest.images(filter=pc.field("slot") == "segment/dim_ambient/0003")
    assert is_marked_synthetic(one.read())
    assert "a segment of pizza" in one.row["prompt"]
    assert "embedding" not in one.row
    assert one._repr_png_().startswith(b"\x89PNG")


def test_a_filter_that_meets_nothing_gives_no_images(manifest):
    assert list(manifest.images(filter="score > 2")) == []


def test_opening_images_reads_none(tmp_path):
    start(open_storage(tmp_path, create=True)).commit([row(DIM, split="train")])
    images = open_manifest(tmp_path).images()
    with pytest.raises(StorageError, match="no such file"):
        images[0].read()


def test_an_image_that_is_damaged_is_a_manifest_error(small, tmp_path):
    (one,) = small.images(filter="class = 'burnt'")
    (tmp_path / one.row["file_name"]).write_bytes(b"no image")
    with pytest.raises(ManifestError, match=f"not a {NAMES_OF_FORMATS} image"):
        one.pixels()


# ---- torch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_data_loader_with_two_workers_gives_every_image_with_its_label(manifest, context):
    dataset = manifest.to_torch()
    loader = DataLoader(dataset, batch_size=64, num_workers=2, multiprocessing_context=context)
    labels, pixels = Counter(), 0.0
    for images, numbers in loader:
        assert (images.dtype, images.shape[1:]) == (torch.float32, (3, 128, 128))
        assert 0 <= images.min() < images.max() <= 1
        labels.update(numbers.tolist())
        pixels += images.sum(dtype=torch.float64).item()
    assert labels == dict.fromkeys(range(6), 50)
    here = sum(dataset[place][0].sum(dtype=torch.float64).item() for place in range(len(dataset)))
    assert pixels == pytest.approx(here)


def test_it_is_a_map_style_dataset_of_torch(manifest):
    dataset = manifest.to_torch(filter="class = 'mixed'")
    assert isinstance(dataset, Dataset)
    assert dataset.classes == CLASSES
    assert dataset.targets.tolist() == [CLASSES.index("mixed")] * 50
    assert len(Subset(dataset, [3, 5])) == 2
    assert dataset[-1][1] == dataset[49][1]
    with pytest.raises(IndexError):
        dataset[50]
    assert dataset.id(0) == manifest.images(filter="class = 'mixed'")[0].id


def test_labels_are_places_of_classes_in_the_order_of_the_config(manifest):
    names = manifest.to_table(columns=["class"])["class"].to_pylist()
    assert [CLASSES[label] for label in manifest.to_torch().targets] == names


def test_facet_labels_come_on_request_and_are_minus_one_where_there_is_none(manifest):
    dataset = manifest.to_torch(facets=("lighting", "burn_level"))
    rows = manifest.to_table(columns=["lighting", "burn_level"]).to_pylist()
    for place in (0, 40, 150, 299):
        *_, facets = dataset[place]
        for name, value in rows[place].items():
            expected = -1 if value is None else dataset.facet_values[name].index(value)
            assert facets[name] == expected
    batch = next(iter(DataLoader(dataset, batch_size=8)))
    assert set(batch[2]) == {"lighting", "burn_level"}


def test_a_transform_gets_a_pillow_image(small):
    sizes = [size.tolist() for size, _ in small.to_torch(transform=through)]
    assert sizes == [[24, 16], [16, 16], [16, 16]]


def test_without_a_transform_pixels_are_between_0_and_1(small):
    image, label = small.to_torch()[0]
    assert (image.shape, label) == ((3, 16, 24), 0)
    assert torch.all(image == 51 / 255)


def test_a_dataset_goes_through_pickle_with_its_transform(small):
    again = pickle.loads(pickle.dumps(small.to_torch(transform=through, facets=["lighting"])))
    assert isinstance(again, Dataset)
    assert again[0][0].tolist() == [24, 16]
    assert again[2][2] == {"lighting": 0}


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"split": "tset"}, "no split 'tset', did you mean 'test'"),
        ({"split": "validation"}, "no images of split 'validation'"),
        ({"filter": "score > 2"}, "no images of split 'train' and filter 'score > 2'"),
        ({"facets": ["colour"]}, "no facet 'colour'"),
        ({"filter": "lightning = 'dim'"}, "no column 'lightning', did you mean 'lighting'"),
    ],
)
def test_what_cannot_be_given_is_a_usage_error(small, asked, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        small.to_torch(**asked)
    assert caught.value.hint


# ---- sampling --------------------------------------------------------------------------------


def test_a_sampler_draws_every_class_equally_often(manifest):
    lopsided = "class in ('basic', 'burnt') or (class = 'segment' and lighting = 'dim_ambient')"
    dataset = manifest.to_torch(filter=lopsided)
    sampler = manifest.sampler(filter=lopsided, seed=3)
    assert len(sampler) == len(dataset)
    assert Counter(dataset.targets.tolist())[0] > 3 * Counter(dataset.targets.tolist())[5]
    drawn = Counter(dataset.classes[dataset.targets[place]] for _ in range(40) for place in sampler)
    assert set(drawn) == {"basic", "burnt", "segment"}
    assert all(abs(count / drawn.total() - 1 / 3) < 0.03 for count in drawn.values())


def test_the_same_seed_draws_the_same(manifest):
    first, again, other = (list(manifest.sampler(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def weights(manifest, by=("class",), real_weight=1.0):
    rows = manifest.to_table(columns=["source", *by])
    found = sample_weights(rows, by, real_weight=real_weight)
    sums = Counter()
    for told, weight in zip(rows.to_pylist(), found, strict=True):
        sums[tuple(told.values())] += weight
    return sums


def test_within_a_class_a_real_image_weighs_as_said_and_classes_stay_even(manifest):
    sums = weights(manifest, real_weight=3.0)
    assert sums["real", "basic"] + sums["synthetic", "basic"] == pytest.approx(1 / 6)
    assert sums["real", "basic"] / 30 == pytest.approx(3 * sums["synthetic", "basic"] / 20)
    assert sums["synthetic", "mixed"] == pytest.approx(1 / 6)


def test_combinations_of_columns_are_drawn_equally_often_and_null_is_a_value(manifest):
    sums = weights(manifest, by=("class", "burn_level"))
    of = Counter()
    for (_, class_name, level), weight in sums.items():
        of[class_name, level] += weight
    assert len(of) == 8
    assert list(of.values()) == pytest.approx([1 / 8] * 8)


def test_with_no_weight_for_real_images_only_generated_ones_are_drawn(manifest):
    sums = weights(manifest, real_weight=0.0)
    assert sums["real", "basic"] == 0
    assert sum(sums.values()) == pytest.approx(1)


def table_of(*counts: tuple[str, int, int]) -> pa.Table:
    """Classes with so many real and generated images."""
    return pa.table(
        {
            "class": [name for name, real, made in counts for _ in range(real + made)],
            "source": [
                kind
                for _, *two in counts
                for kind, n in zip(("real", "synthetic"), two, strict=True)
                for _ in range(n)
            ],
        }
    )


def shares_of(rows: pa.Table, **asked: Any) -> dict[str, float]:
    """The part of each class's draws that is real."""
    shown = exposures(rows, sample_weights(rows, ["class"], **asked), rows.num_rows).to_pylist()
    draws = {(row["class"], row["source"]): row["draws"] for row in shown}
    names = {name for name, _ in draws}
    assert sum(draws.values()) == pytest.approx(rows.num_rows)
    for name in names:
        assert draws.get((name, "real"), 0) + draws.get((name, "synthetic"), 0) == pytest.approx(
            rows.num_rows / len(names)
        ), "classes stay even"
    return {name: draws.get((name, "real"), 0) * len(names) / rows.num_rows for name in sorted(names)}


def test_half_of_a_class_s_draws_are_real_where_it_has_real_images():
    rows = table_of(("few", 10, 500), ("most", 30, 10), ("none", 0, 50), ("only", 20, 0))
    assert shares_of(rows) == pytest.approx({"few": 0.5, "most": 0.75, "none": 0, "only": 1})
    assert shares_of(rows, real_share=0.8) == pytest.approx({"few": 0.8, "most": 0.8, "none": 0, "only": 1})
    assert shares_of(rows, real_share=1.0) == pytest.approx({"few": 1, "most": 1, "none": 0, "only": 1})
    natural = {"few": 10 / 510, "most": 0.75, "none": 0, "only": 1}
    assert shares_of(rows, real_share=0.0) == shares_of(rows, real_weight=1.0) == pytest.approx(natural)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(any), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_no_class_gets_less_than_the_real_share_and_images_of_a_kind_are_drawn_alike(counts, share):
    rows = table_of(*((str(place), *two) for place, two in enumerate(counts)))
    shown = shares_of(rows, real_share=share)
    for place, (photographs, made) in enumerate(counts):
        if photographs and made:
            assert shown[str(place)] == pytest.approx(max(share, photographs / (photographs + made)))
    weights_ = sample_weights(rows, ["class"], real_share=share)
    kinds = {}
    for kind, weight in zip(map(tuple, rows.to_pandas().to_numpy()), weights_, strict=True):
        assert weight == pytest.approx(kinds.setdefault(kind, weight))


def test_a_sampler_says_how_often_images_are_drawn_and_does_so(manifest):
    sampler = manifest.sampler(real_share=0.9, seed=1)
    dataset = manifest.to_torch()
    shown = {(row["class"], row["source"]): row for row in sampler.exposures().to_pylist()}
    assert shown["basic", "real"]["images"] == 30
    assert shown["basic", "real"]["draws"] == pytest.approx(0.9 * 50)
    assert shown["basic", "real"]["draws_per_image"] == pytest.approx(1.5)
    assert shown["mixed", "synthetic"]["draws_per_image"] == pytest.approx(1)
    ids = [dataset.id(place) for _ in range(40) for place in sampler]
    basic = [name.startswith("real/") for name in ids if "basic" in name.split("/")[:2]]
    assert sum(basic) / len(basic) == pytest.approx(0.9, abs=0.03)
    assert pickle.loads(pickle.dumps(sampler)).exposures().equals(sampler.exposures())
    for name, photographs, made in (("basic", 30, 20), ("mixed", 0, 50)):
        by_default = {
            (row["class"], row["source"]): row["draws_per_image"]
            for row in manifest.sampler().exposures().to_pylist()
        }
        expected = (by_default.get((name, "real")), by_default.get((name, "synthetic")))
        assert draws_per_image(photographs, made, 50) == pytest.approx(expected)


def test_a_class_whose_real_images_are_hardly_seen_is_a_warning(manifest):
    with pytest.warns(UserWarning, match=r"class 'basic': only 1.5% of its draws are real images"):
        manifest.sampler(real_weight=0.01, filter="class = 'basic'")


@pytest.mark.parametrize("asked", [{"real_share": -0.1}, {"real_share": 1.1}, {"real_share": float("nan")}])
def test_a_share_that_is_none_is_refused(manifest, asked):
    with pytest.raises(UsageError, match="real_share"):
        manifest.sampler(**asked)
    with pytest.raises(UsageError, match="both say"):
        manifest.sampler(real_share=0.5, real_weight=1.0)


@pytest.mark.parametrize("real_weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(manifest, real_weight):
    with pytest.raises(UsageError, match="real_weight"):
        manifest.sampler(real_weight=real_weight)


def test_sampling_that_would_draw_nothing_is_refused(manifest):
    with pytest.raises(UsageError, match="no image would ever be drawn"):
        manifest.sampler(real_weight=0.0, filter="source = 'real'")


def test_images_cannot_be_balanced_by_what_is_no_single_value(manifest):
    with pytest.raises(UsageError, match="balanced by scores"):
        manifest.sampler(by=["scores"])


# ---- Hugging Face and Ray --------------------------------------------------------------------


def test_a_hugging_face_dataset_has_image_and_class_label(manifest):
    found = manifest.to_hf()
    assert (found.num_rows, str(found.split)) == (300, "train")
    assert found.features["label"].names == list(CLASSES)
    assert found.features["burn_level"].names == ["slightly_burnt", "moderately_burnt", "severely_burnt"]
    one = found[299]
    kept = manifest.images()[299]
    np.testing.assert_array_equal(np.asarray(one["image"]), kept.pixels())
    assert found.features["label"].int2str(one["label"]) == kept.row["class"]
    assert (one["id"], one["burn_level"], one["prompt"]) == (kept.id, None, kept.row["prompt"])


def test_a_hugging_face_dataset_has_the_columns_that_are_asked_for(manifest):
    found = manifest.to_hf(columns=["seed"], filter="source = 'synthetic'")
    assert found.column_names == ["image", "label", "lighting", "burn_level", "seed"]
    assert found["seed"][0] == str(manifest.images(filter="source = 'synthetic'")[0].row["seed"])


def test_a_run_that_is_on_no_file_system_goes_into_the_dataset_whole(small, monkeypatch):
    monkeypatch.setattr("balancer.manifest.image_files.ImageFiles.local_paths", lambda *_: None)
    found = small.to_hf()
    assert [image.size for image in found["image"]] == [(24, 16), (16, 16), (16, 16)]
    assert found["label"][:] == [0, 0, 1]


@of_ray_data
def test_ray_data_streams_rows_and_pixels(manifest, ray_session):
    found = manifest.to_ray(columns=["id", "seed"])
    labels, seen = Counter(), {}
    for batch in found.iter_batches(batch_size=64, batch_format="pyarrow"):
        labels.update(batch["label"].to_pylist())
        ids, seeds = batch["id"].to_pylist(), batch["seed"].to_pylist()
        seen |= dict(zip(ids, zip(seeds, batch["image"], strict=True), strict=True))
    assert labels == dict.fromkeys(range(6), 50)
    for place in (0, 299):
        kept = manifest.images()[place]
        seed, image = seen[kept.id]
        assert seed == (None if kept.row["seed"] is None else str(kept.row["seed"]))
        np.testing.assert_array_equal(image.to_numpy(), kept.pixels())


@of_ray_data
def test_ray_data_takes_images_of_different_sizes(small, ray_session):
    shapes = {tuple(np.shape(one["image"])) for one in small.to_ray().take_all()}
    assert shapes == {(16, 24, 3), (16, 16, 3)}


def test_ray_data_gets_plain_types_only(manifest, monkeypatch):
    """It runs code from Arrow extension types in files; so it gets tables, and those have none."""
    given = []

    class Library:
        @staticmethod
        def from_arrow(blocks):
            given.extend(blocks)
            return Library()

        def map_batches(self, *told, **options):
            return self

    monkeypatch.setattr("balancer.training.ray_data.need", lambda *_: Library)
    manifest.to_ray()
    assert sum(block.num_rows for block in given) == 300
    types = {str(field.type) for block in given for field in block.schema}
    assert types == {"string", "double", "int64"}


def test_a_library_that_is_missing_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableError, match="datasets cannot be imported") as caught:
        extras.need("datasets", "hf")
    assert caught.value.hint == "pip install 'balancer[hf]'"


def test_importing_the_training_and_export_packages_loads_no_heavy_library():
    code = (
        "import importlib, pkgutil, sys, balancer.training, balancer.export\n"
        "for package in (balancer.training, balancer.export):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "heavy = {'torch', 'ray', 'datasets', 'diffusers', 'open_clip', 'transformers', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


# ---- samplers of more rows than torch draws from ---------------------------------------------


def made_up(monkeypatch, rows):
    monkeypatch.setattr(torch_dataset, "select", lambda *_, **__: Selection(rows, {}))


def test_a_sampler_draws_from_more_rows_than_torch_does(monkeypatch):
    count = 2**24 + 2
    half = pa.array(np.arange(count) % 2 == 0)
    made_up(monkeypatch, pa.table({"source": pc.if_else(half, "real", "synthetic"), "class": half}))
    sampler = torch_dataset.make_sampler(None, Choice("train"), ["class"], 1, real_weight=1.0)
    drawn = list(itertools.islice(sampler, 1000))
    assert len(sampler) == count
    assert max(drawn) > 2**23
    assert 400 < sum(index % 2 for index in drawn) < 600


def test_a_sampler_of_many_rows_keeps_to_the_weights_and_can_be_repeated(monkeypatch):
    monkeypatch.setattr(torch_dataset, "MOST_DRAWN_FROM", 10)
    monkeypatch.setattr(torch_dataset, "DRAWS_AT_ONCE", 1000)
    names = ["none"] * 10 + ["a"] * 900 + ["b"] * 90 + ["none"] * 4000
    sources = [{"none": "real"}.get(name, "synthetic") for name in names]
    made_up(monkeypatch, pa.table({"source": sources, "class": names}))

    def draws():
        made = torch_dataset.make_sampler(None, Choice("train"), ["class"], 1, real_weight=0.0)
        return list(pickle.loads(pickle.dumps(made)))

    drawn = Counter(names[index] for index in draws())
    assert drawn.total() == 5000
    assert drawn["none"] == 0
    assert 2300 < drawn["a"] < 2700
    assert draws() == draws()


def test_images_of_mixed_sizes_make_batches_of_one_size(small):
    (batch, labels), *_ = DataLoader(small.to_torch(None, size=20), batch_size=4)
    assert batch.shape == (4, 3, 20, 20)
    assert len(labels) == 4
    with pytest.raises(UsageError, match="size=0"):
        small.to_torch(None, size=0)
