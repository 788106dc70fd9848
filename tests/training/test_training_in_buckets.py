"""A run in a bucket is trained on, exported and reproduced like one in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from balancer import open_manifest
from balancer.errors import StorageError, UsageError
from balancer.export import FORMATS, Options, export
from balancer.images import encode_image
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import row, start

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def manifest(run_uri: str) -> Manifest:
    """Six generated images, the first black and each brighter than the one before."""
    storage = open_storage(run_uri, create=True)
    rows = []
    for number in range(6):
        data = encode_image(np.full((8, 8, 3), 10 * number, np.uint8), {"id": str(number)})
        told = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data), "split": "train"}
        rows.append(row(f"basic/dim/{number:04d}") | told)
        storage.publish(rows[-1]["file_name"], data)
    start(storage).commit(rows)
    return open_manifest(run_uri)


def test_images_are_read_from_the_bucket(manifest):
    assert [image.pixels().mean() for image in manifest.images()] == [0, 10, 20, 30, 40, 50]


def test_spawned_workers_of_a_data_loader_read_from_the_bucket(manifest):
    loader = DataLoader(manifest.to_torch(), 2, num_workers=2, multiprocessing_context="spawn")
    brightness = [image.mean().item() * 255 for images, _ in loader for image in images]
    assert brightness == pytest.approx([0, 10, 20, 30, 40, 50])


def test_forked_workers_are_told_to_be_spawned_instead_of_waiting_for_ever(manifest):
    loader = DataLoader(manifest.to_torch(), 2, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(StorageError, match="cannot be read in a process that was forked"):
        next(iter(loader))


def test_hugging_face_gets_the_images_themselves(manifest):
    found = manifest.to_hf()
    assert [np.asarray(image).mean() for image in found["image"]] == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_exported(manifest, tmp_path: Path, form: str):
    options = Options(copy=form == "folders", embed=form in ("parquet", "arrow"))
    assert export(manifest, form, tmp_path / "out", options=options).images == 6
    if form == "parquet":
        (first, *_) = pq.read_table(tmp_path / "out")["image"].to_pylist()
        assert first["bytes"] == manifest.images()[0].read()


def test_links_cannot_lead_into_a_bucket(manifest, tmp_path):
    with pytest.raises(UsageError, match="is not a local folder, so links are impossible") as caught:
        export(manifest, "folders", tmp_path / "out")
    assert caught.value.hint == "add --copy"
