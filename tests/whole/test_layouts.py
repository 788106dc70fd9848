"""Every layout of a dataset through every command: the same images, classes and splits in the end."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from actors.run import run
from balancer.cli import main
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.images import decode_image
from balancer.run_manifest import open_manifest
from balancer.storage import open_storage
from tests.dataset.here import read_here
from tests.fault_proxy import ACCESS_KEY, SECRET_KEY
from tests.resident import actors_here

IMAGES = (("a", "cat", "train"), ("b", "cat", "train"), ("c", "dog", "train"), ("d", "cat", "val"))
"""Name, class and split of every image."""

PER_CLASS = 3
WANTED = {"cat": 1, "dog": 2}


def picture(name: str) -> bytes:
    pixels = np.random.default_rng(ord(name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def folders(root: Path) -> None:
    for name, class_name, _ in IMAGES:
        put(root / class_name / f"{name}.png", picture(name))
    rows = [f"{class_name}/{name}.png,{split}" for name, class_name, split in IMAGES]
    put(root / "metadata.csv", "\n".join(["file_name,split", *rows]))


def split_folders(root: Path) -> None:
    for name, class_name, split in IMAGES:
        put(root / split / class_name / f"{name}.png", picture(name))


def csv_table(root: Path) -> None:
    for name, _, _ in IMAGES:
        put(root / "images" / f"{name}.png", picture(name))
    rows = [f"images/{name}.png,{class_name},{split}" for name, class_name, split in IMAGES]
    put(root / "labels.csv", "\n".join(["path,label,split", *rows]))


def addresses(root: Path) -> None:
    """A table alone; its images are in a bucket."""
    bucket = open_storage("s3://bucket/layouts", create=False)
    for name, _, _ in IMAGES:
        bucket.replace(f"{name}.png", picture(name))
    rows = [f"s3://bucket/layouts/{name}.png,{class_name},{split}" for name, class_name, split in IMAGES]
    put(root / "labels.csv", "\n".join(["path,label,split", *rows]))


def coco(root: Path, **box: Sequence[int]) -> None:
    for split in ("train", "val"):
        mine = [(name, class_name) for name, class_name, of in IMAGES if of == split]
        for name, _ in mine:
            put(root / f"{split}2017" / f"{name}.png", picture(name))
        document = {
            "images": [{"id": name, "file_name": f"{name}.png"} for name, _ in mine],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"image_id": name, "category_id": 1 + (class_name == "dog"), **box}
                for name, class_name in mine
            ],
        }
        put(root / "annotations" / f"instances_{split}2017.json", json.dumps(document))


def crops(root: Path) -> None:
    coco(root, bbox=[0, 0, 16, 16])


def voc(root: Path) -> None:
    for name, class_name, split in IMAGES:
        put(root / "JPEGImages" / f"{name}.png", picture(name))
        object_ = f"<annotation><object><name>{class_name}</name></object></annotation>"
        put(root / "Annotations" / f"{name}.xml", object_)
        with (root / "Annotations").joinpath(f"../{split}.lst").open("a") as file:
            file.write(f"{name}\n")
    for split in ("train", "val"):
        put(root / "ImageSets/Main" / f"{split}.txt", (root / f"{split}.lst").read_text())


def table_of(split: str) -> pa.Table:
    mine = [(name, class_name) for name, class_name, of in IMAGES if of == split]
    rows = [{"bytes": picture(name), "path": f"{name}.png"} for name, _ in mine]
    return pa.table({"image": rows, "label": [class_name for _, class_name in mine]})


def parquet(root: Path) -> None:
    for split in ("train", "val"):
        (root / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(split), root / "data" / f"{split}-00000-of-00001.parquet")


def saved(root: Path) -> None:
    put(root / "dataset_dict.json", json.dumps({"splits": ["train", "val"]}))
    for split in ("train", "val"):
        table, path = table_of(split), root / split / "data-00000-of-00001.arrow"
        put(path, b"")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def shards(root: Path) -> None:
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-000000.tar", "w") as shard:
            for name, class_name, of in IMAGES:
                files = {f"{name}.png": picture(name), f"{name}.cls": class_name.encode()}
                for member, data in files.items() if of == split else ():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    shard.addfile(info, io.BytesIO(data))


LAYOUTS: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "folders": (folders, ()),
    "splits": (split_folders, ()),
    "table": (csv_table, ("dataset.table=labels.csv",)),
    "table of addresses": (addresses, ("dataset.table=labels.csv",)),
    "coco": (coco, ()),
    "coco crops": (crops, ("dataset.crop_boxes=true", "dataset.min_crop_side=16")),
    "voc": (voc, ()),
    "parquet": (parquet, ()),
    "saved": (saved, ()),
    "webdataset": (shards, ()),
}


@dataclass(frozen=True)
class Case:
    layout: str
    data: Path
    settings: tuple[str, ...]
    folder: Path

    def invoke(self, command: str, *arguments: str) -> Any:
        sets = [word for setting in self.settings for word in ("--set", setting)]
        return CliRunner().invoke(main, [command, str(self.data), *sets, *arguments])

    def config(self) -> Config:
        """The config that `init` writes, for a small run of simulated actors."""
        path = self.folder / "job.yaml"
        if not path.exists():
            assert self.invoke("init", "--out", str(path)).exit_code == 0
        small = ("actors.kind=simulated", "actors.device=auto", f"target.per_class={PER_CLASS}")
        size = ("generation.width=64", "generation.height=64", "generation.batch_size=2", "attempts.max=8")
        return load_config(path, [*small, *size, "actors.generators=1", "output.commit_seconds=0.01"])

    def written(self) -> str:
        path = self.folder / "small.json"
        path.write_text(self.config().model_dump_json())
        return str(path)

    def run(self, ray_session: None) -> Path:
        out = self.folder / "run"
        if not out.exists():
            with actors_here():
                run(self.config(), out)
        return out


def use_bucket(patch: pytest.MonkeyPatch, server: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", server)
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    make, settings = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if "addresses" in request.param:
            use_bucket(patch, request.getfixturevalue("s3_server"))
        make(folder / "data")
        read_here(patch)
        yield Case(request.param, folder / "data", settings, folder)


def test_audit_counts_the_classes_and_splits_and_names_the_layout(case):
    result = case.invoke("audit", "--json")
    shown = json.loads(result.stdout)
    assert (shown["layout"], shown["images"]) == (case.layout.split()[0], 4)
    assert {name: entry["images"] for name, entry in shown["classes"].items()} == {"cat": 3, "dog": 1}
    assert shown["splits"] == {"train": 3, "val": 1}
    assert (shown["unreadable"], shown["warnings"], result.stderr) == ([], [], "")


def test_init_writes_a_config_that_reads_the_same_images(case):
    config = case.config()
    assert [*config.classes] == ["cat", "dog"]
    assert config.dataset.path == str(case.data)
    assert config.facets == {}
    text = (case.folder / "job.yaml").read_text()
    assert "cat: # 3 images, 1 of them for validation or test" in text
    assert "per_class: 2" in text


def test_plan_fills_up_the_training_images_and_says_the_layout(case):
    result = CliRunner().invoke(main, ["plan", case.written(), "--json", "--no-preflight"])
    plan = json.loads(result.stdout)
    assert {name: entry["to_generate"] for name, entry in plan["classes"].items()} == WANTED
    assert (f"read as dataset.layout: {case.layout.split()[0]}" in result.stderr) == (
        case.layout != "folders"
    )
    assert "1 real image is for validation or test" in result.stderr


def test_run_generates_what_lacks_and_keeps_the_real_images_byte_for_byte(case, ray_session):
    manifest = open_manifest(case.run(ray_session))
    rows = manifest.to_table(columns=["class", "source", "split", "sha256", "file_name"]).to_pylist()
    made = Counter(row["class"] for row in rows if row["source"] == "synthetic")
    real = [row for row in rows if row["source"] == "real"]
    assert made == WANTED
    assert Counter((row["class"], row["split"]) for row in real) == {
        ("cat", "train"): 2,
        ("cat", "validation"): 1,
        ("dog", "train"): 1,
    }
    written = {(case.folder / "run" / row["file_name"]).read_bytes() for row in real}
    as_kept = (lambda data: decode_image(data, max_pixels=256).tobytes()) if "crops" in case.layout else bytes
    assert set(map(as_kept, written)) == {as_kept(picture(name)) for name, _, _ in IMAGES}


def test_report_shows_the_classes(case, ray_session):
    result = CliRunner().invoke(
        main, ["report", str(case.run(ray_session)), "--out", str(case.folder / "r.html")]
    )
    assert (result.exit_code, result.stderr) == (0, "")
    page = (case.folder / "r.html").read_text()
    assert "cat" in page
    assert "dog" in page
