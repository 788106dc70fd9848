"""Every reader that the documentation names reads every export: mixed images, odd names."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from balancer import open_manifest
from balancer.dataset.audit import audit
from balancer.errors import UsageError
from balancer.export import FORMATS, Options, export
from balancer.export.formats.fiftyone import _TAKEN, field_name
from balancer.export.formats.webdataset import END, _cuts
from balancer.export.metadata import SINGLE
from balancer.export.names import folder_names
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, planned, real, row, start

CLASSES = ("Dog", "dog", "a=b", "metadata", "train", "facets", "pie à la mode")
FACETS = ("pk", "label")
KINDS = (
    ("a.png", "PNG"),
    ("b.jpg", "JPEG"),
    ("c.jfif", "JPEG"),
    ("d.jpe", "JPEG"),
    ("e.webp", "WEBP"),
    ("f.JPEG", "JPEG"),
)
SIZES = ((48, 32), (20, 64), (33, 33))

Seen = Counter[tuple[str, str, tuple[int, int]]]
"""Images by split, class and size."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""What these libraries say of each other and of themselves."""


def picture(kind: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (200, 90, 30)).save(data, kind)
    return data.getvalue()


def rows() -> Iterator[tuple[dict[str, Any], bytes]]:
    values = {"lighting": None, "burn_level": None}
    for number, name in enumerate(CLASSES):
        for place, (file, kind) in enumerate(KINDS):
            size = SIZES[(number + place) % len(SIZES)]
            data = picture(kind, size)
            changes = {"lighting": "dim", "burn_level": "slight"} if place % 2 else values
            split = "validation" if place == 1 and name != "train" else "train"
            one = real(f"{number}-{file}", name, split=split, width=size[0], height=size[1], **changes)
            yield one | {"file_name": f"images/{number}-{file}"}, data
        slot = f"basic/dim/{number:04d}"
        made = row(slot, split="train", width=48, height=32, unjudged=["class"] * (number % 2), prompt=name)
        yield made | {"class": name, "burn_level": "slight"}, picture("PNG", (48, 32))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A run whose facets are called as columns of exports and readers are."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    storage = open_storage(folder, create=True)
    config = CONFIG | {"classes": {name: {"prompts": ["x"]} for name in CLASSES}}
    config |= {"facets": dict(zip(FACETS, CONFIG["facets"].values(), strict=True))}
    config["facets"][FACETS[1]] = config["facets"][FACETS[1]] | {"classes": list(CLASSES)}
    committed = []
    for one, data in rows():
        storage.publish(one["file_name"], data)
        one[FACETS[0]], one[FACETS[1]] = one.pop("lighting"), one.pop("burn_level")
        one["scores"] = None if one["scores"] is None else {"class": 0.75, FACETS[0]: 0.875, FACETS[1]: None}
        committed.append(one | {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    cells = {one["cell"] for one in committed if one["cell"]}
    plan = [planned(cell, 9) | {"class": CLASSES[0]} for cell in cells]
    targets = dict.fromkeys(CLASSES, 1)
    start(storage, config=config, facets=list(FACETS), plan=plan, targets=targets).commit(committed)
    return open_manifest(folder)


@pytest.fixture(scope="module")
def expected(run: Manifest) -> Seen:
    columns = ["split", "class", "width", "height"]
    told = run.to_table(columns).to_pylist()
    return Counter((one["split"], one["class"], (one["width"], one["height"])) for one in told)


@pytest.fixture(scope="module")
def exports(run: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    for form in FORMATS:
        options = Options(embed=form in ("parquet", "arrow"))
        export(run, form, root / form, options=options)
    return root


def by_torchvision(root: Path, _: Path) -> Iterator[Any]:
    from torchvision.datasets import ImageFolder

    folders = folder_names(CLASSES)
    names = {folder: name for name, folder in folders.items()}
    numbers = []
    for split in ("train", "validation"):
        found = ImageFolder(str(root / "folders" / split), allow_empty=True)
        numbers.append(found.class_to_idx)
        for image, label in found:
            yield split, names[found.classes[label]], image.size
    assert numbers[0] == numbers[1], "a class has one number in all splits"


def by_datasets(*arguments: Any) -> Callable[[Path, Path], Iterator[Any]]:
    def read(root: Path, cache: Path) -> Iterator[Any]:
        import datasets

        form, key, place = arguments
        options = {key: str(root / place)} if key else {}
        found = datasets.load_dataset(form or str(root / place), cache_dir=str(cache), **options)
        labels = found["train"].features["label"]
        assert isinstance(labels, datasets.ClassLabel)
        assert labels.names == list(CLASSES)
        for one in (one for split in found.values() for one in split):
            assert one["class"] == labels.int2str(one["label"])
            yield one["split"], one["class"], one["image"].size

    return read


def shards(root: Path, split: str) -> list[str]:
    return sorted(glob.glob(str(root / "webdataset" / f"{split}-*.tar")))


def by_datasets_from_shards(root: Path, cache: Path) -> Iterator[Any]:
    import datasets

    for split in ("train", "validation"):
        files = shards(root, split)
        found = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(cache))
        for one in found:
            assert CLASSES[one["cls"]] == one["json"]["label"]
            yield split, CLASSES[one["cls"]], one["jpg"].size
        assert split != "train" or any(one["json"].get("prompt") for one in found)


def as_tuple(sample: tuple[Any, int]) -> tuple[tuple[int, int], int]:
    return sample[0].size, sample[1]


def by_webdataset(root: Path, _: Path) -> Iterator[Any]:
    import webdataset
    from torch.utils.data import DataLoader

    for split in ("train", "validation"):
        samples = webdataset.WebDataset(shards(root, split), shardshuffle=False)
        samples = samples.decode("pil").to_tuple("jpg", "cls").map(as_tuple)
        for size, label in DataLoader(samples, batch_size=None, num_workers=2):
            yield split, CLASSES[label], tuple(size)


def by_duckdb(root: Path, _: Path) -> Iterator[Any]:
    asked = f"""select split, class, width, height from read_parquet('{root / "parquet"}')"""
    for split, name, width, height in duckdb.execute(asked).fetchall():
        yield split, name, (width, height)


def by_pandas(root: Path, _: Path) -> Iterator[Any]:
    for one in pd.read_parquet(root / "parquet").to_dict("records"):
        yield one["split"], one["class"], Image.open(io.BytesIO(one["image"]["bytes"])).size


def by_csv(root: Path, _: Path) -> Iterator[Any]:
    for one in pd.read_csv(root / "csv" / "labels.csv", dtype=str).to_dict("records"):
        yield one["split"], one["label"], Image.open(root / "csv" / one["file_name"]).size


def by_coco(root: Path, _: Path) -> Iterator[Any]:
    """As `pycocotools` joins the lists."""
    for split, name in (("train", "train"), ("validation", "val")):
        document = json.loads((root / "coco" / "annotations" / f"instances_{name}.json").read_text())
        names = {one["id"]: one["name"] for one in document["categories"]}
        images = {one["id"]: one for one in document["images"]}
        assert min(names) == min(images) == 1
        assert len(document["annotations"]) == len(images)
        for one in document["annotations"]:
            image = images[one["image_id"]]
            size = Image.open(root / "coco" / image["file_name"]).size
            assert one["bbox"] == [0, 0, image["width"], image["height"]] == [0, 0, *size]
            yield split, names[one["category_id"]], size


def by_audit(place: str, layout: str) -> Callable[[Path, Path], Iterator[Any]]:
    """An export is a dataset too, without the generated images."""

    def read(root: Path, _: Path) -> Iterator[Any]:
        audited = audit(root / place)
        assert not audited.unreadable
        assert audited.layout == layout
        for image in (*audited.images, *audited.set_aside):
            split = "validation" if image.split == "val" else image.split
            yield split, image.class_name, (image.width, image.height)

    return read


def by_label_studio(root: Path, _: Path) -> Iterator[Any]:
    for task in json.loads((root / "labelstudio" / "tasks.json").read_text()):
        name = task["data"]["image"].partition("?d=")[2]
        yield (
            task["data"]["split"],
            task["data"]["label"],
            Image.open(root / "labelstudio" / unquote(name)).size,
        )


def by_fiftyone(root: Path, _: Path) -> Iterator[Any]:
    """Its own reader needs a database server; this reads the same files."""
    for sample in json.loads((root / "fiftyone" / "samples.json").read_text())["samples"]:
        assert not {"pk", "objects"} & set(sample)
        image = Image.open(root / "fiftyone" / sample["filepath"])
        yield sample["tags"][0], sample["ground_truth"]["label"], image.size


READERS = {
    "folders: torchvision": by_torchvision,
    "hf: imagefolder": by_datasets("imagefolder", "data_dir", "hf"),
    "hf: by its card": by_datasets(None, None, "hf"),
    "parquet: datasets": by_datasets("parquet", "data_files", "parquet"),
    "arrow: datasets": by_datasets("arrow", "data_files", "arrow"),
    "parquet: duckdb": by_duckdb,
    "parquet: pandas": by_pandas,
    "webdataset: datasets": by_datasets_from_shards,
    "webdataset: webdataset, two workers": by_webdataset,
    "csv: pandas": by_csv,
    "csv: balancer": by_audit("csv/labels.csv", "table"),
    "coco": by_coco,
    "coco: balancer": by_audit("coco", "coco"),
    "labelstudio": by_label_studio,
    "fiftyone": by_fiftyone,
}


def test_every_format_has_a_reader():
    assert {name.partition(":")[0] for name in READERS} == set(FORMATS)


@pytest.mark.parametrize("reader", READERS)
def test_every_documented_reader_sees_every_image_with_its_class(reader, exports, expected, tmp_path):
    assert Counter(READERS[reader](exports, tmp_path)) == expected


@pytest.mark.parametrize("place", ["csv/labels.csv", "hf"])
def test_generated_images_are_not_real_when_an_export_is_read_again_without_their_marks(
    run, exports, tmp_path, place
):
    copied = shutil.copytree(exports, tmp_path / "exports")
    for path in copied.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    audited = audit(copied / place)
    made = run.to_table(["id"], "source = 'synthetic'").num_rows
    assert len(audited.set_aside) == made
    assert len(audited.images) == run.to_table(["id"]).num_rows - made


def test_a_few_images_make_several_shards_and_no_image_is_lost(exports):
    assert len(shards(exports, "train")) == 8
    assert len(shards(exports, "validation")) == 6, "one for each"


@given(st.lists(st.integers(1, 10_000), max_size=40), st.integers(2_000, 50_000))
def test_shards_are_several_of_bounded_size_and_hold_every_sample_once(sizes, max_bytes):
    cuts = list(_cuts(sizes, max_bytes))
    assert [place for start, stop in cuts for place in range(start, stop)] == list(range(len(sizes)))
    assert all(stop - start == 1 or sum(sizes[start:stop]) + len(END) <= max_bytes for start, stop in cuts)
    if sizes and len(set(sizes)) == 1:
        assert len(cuts) >= min(8, len(sizes))


def test_images_of_one_kind_keep_its_extension(tmp_path, run):
    export(run, "webdataset", tmp_path / "out", filter="source = 'synthetic'")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert {name.rpartition(".")[2] for name in archive.getnames()} == {"png", "cls", "json"}


def test_images_of_two_kinds_are_copied_byte_for_byte(run, exports):
    wanted = Counter(run.to_table(["sha256"])["sha256"].to_pylist())
    for form in ("hf", "csv", "coco", "labelstudio", "fiftyone"):
        files = [
            path for path in (exports / form).rglob("*") if path.suffix in (".png", ".jpg", ".jpeg", ".webp")
        ]
        assert Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files) == wanted


def test_an_export_of_the_version_before_is_another_export(run, tmp_path):
    export(run, "folders", tmp_path / "out")
    claim = tmp_path / "out" / ".balancer-export.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"layout": 1}))
    with pytest.raises(UsageError, match="holds another export: its layout is 1"):
        export(run, "folders", tmp_path / "out")


def test_no_two_columns_share_a_field_of_fiftyone():
    columns = [
        *SINGLE,
        "pk",
        "balancer_pk",
        "balancer_balancer_pk",
        "a b",
        "field_a_b",
        "_x",
        "objects",
        "update_field",
    ]
    fields = [field_name(column) for column in columns]
    assert len(set(fields)) == len(columns)
    assert not set(fields) & _TAKEN
    assert all(field.isidentifier() and not field.startswith("_") for field in fields)
