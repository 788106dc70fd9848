"""Image files that rows name, in run folders and datasets that somebody else made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balancer import open_manifest
from balancer.errors import StorageError
from balancer.export import Options, export
from balancer.manifest.image_files import MAX_IMAGE_BYTES, ImageFiles, max_image_bytes, max_image_pixels
from balancer.manifest.maintenance.fsck import check_run
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, image_bytes, real, row, run_info, start

DIM = "basic/dim/0000"
KINDS = ["pipe", "device", "link", "sparse", "folder"]
NO_EXPORT = "cannot read|not a regular file|megabytes, over the limit|symbolic link"

SMALL_IMAGES = {**CONFIG, "dataset": {**CONFIG["dataset"], "max_image_megabytes": 1}}


def replace_by(kind: str, path: Path) -> None:
    """Put something in the place of an image that nobody should read."""
    if kind == "link":  # even to the very same bytes
        path.rename(path.parent / "moved")
        path.symlink_to("moved")
        return
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(20_000_000_000)
    else:
        path.mkdir()


@pytest.fixture(params=["referenced", "copied"])
def run(request, tmp_path: Path) -> tuple[Manifest, Path]:
    """A run with a generated image and a real one, and where the real one is."""
    storage = open_storage(tmp_path / "run", create=True)
    output = {"real_images": "reference" if request.param == "referenced" else "copy"}
    made, photograph = row(DIM, split="train"), real("a.png", split="train")
    image = tmp_path / "data" / "a.png" if request.param == "referenced" else Path(photograph["file_name"])
    photograph["file_name"] = str(image)
    for one in (made, photograph):
        path = tmp_path / "run" / one["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(DIM + "-1") if one is made else image_bytes("basic/dim/a.png-1"))
    start(storage, config={**SMALL_IMAGES, "output": output}).commit([made, photograph])
    return open_manifest(tmp_path / "run"), tmp_path / "run" / image


@pytest.mark.parametrize("kind", KINDS)
def test_fsck_names_a_real_image_that_is_no_regular_file_of_its_size_and_waits_for_nothing(run, kind):
    manifest, image = run
    replace_by(kind, image)
    [problem] = check_run(open_storage(manifest.uri, create=False)).problems
    assert problem.rule == "images can be read"
    assert problem.path.endswith(image.name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("folders", Options()),
        ("folders", Options(copy=True)),
        ("hf", Options()),
        ("webdataset", Options()),
        ("parquet", Options(embed=True)),
    ],
)
def test_no_export_has_an_image_that_is_no_regular_file_of_its_size(run, tmp_path, kind, form, options):
    manifest, image = run
    replace_by(kind, image)
    with pytest.raises(StorageError, match=NO_EXPORT):
        export(manifest, form, tmp_path / "out", options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_not_given_an_image_that_is_no_regular_file_of_its_size(run, kind):
    manifest, image = run
    replace_by(kind, image)
    dataset = manifest.to_torch()
    with pytest.raises(StorageError, match=NO_EXPORT):
        dataset[1 if dataset.id(1).startswith("real/") else 0]
    if kind != "sparse":  # of which another program reads no more than it wants
        with pytest.raises(StorageError, match=NO_EXPORT):
            manifest.to_hf()


def test_no_link_among_the_folders_of_a_run_leads_out_of_it(run, tmp_path):
    manifest, _ = run
    (tmp_path / "run" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="leads out of the run folder"):
        export(manifest, "folders", tmp_path / "out")
    with pytest.raises(StorageError, match="leads out of the run folder"):
        manifest.to_hf()


def test_paths_are_those_of_regular_files_inside_the_run(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("images/a/1.png", "images/a/2.png"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "images" / "a" / "3.png").symlink_to("1.png")
    files = ImageFiles(str(tmp_path), by_reference=False, max_bytes=1)
    named = [("images/a/1.png", "real"), ("images/a/2.png", "synthetic")]
    assert files.local_paths(named) == [str(tmp_path / name) for name, _ in named]
    for name in ("images/a/3.png", "images/a/none.png", "images/a/..", "images/a/", "/etc/passwd", "a\0"):
        with pytest.raises(StorageError):
            files.local_paths([*named, (name, "real")])


def allowed(megabytes: float, megapixels: float) -> dict[str, float]:
    return {"max_image_megabytes": megabytes, "max_image_megapixels": megapixels}


@pytest.mark.parametrize(
    ("dataset", "generation", "num_bytes", "pixels"),
    [
        ({}, {}, 64_000_000, 64_000_000),
        (allowed(2, 3), {"width": 8, "height": 8}, 2_000_000, 3_000_000),
        (allowed(1, 1), {"width": 2000, "height": 1000}, 9_000_000, 2_000_000),
        ({"max_image_megabytes": 1e30}, {}, MAX_IMAGE_BYTES, 64_000_000),
        ({"max_image_megabytes": float("inf"), "max_image_megapixels": []}, 7, 64_000_000, 64_000_000),
        (None, {"width": "wide"}, 64_000_000, 64_000_000),
    ],
)
def test_the_largest_image_is_what_the_run_allows_whatever_its_config_says(
    dataset, generation, num_bytes, pixels
):
    info = run_info(config={**CONFIG, "dataset": dataset, "generation": generation})
    assert (max_image_bytes(info), max_image_pixels(info)) == (num_bytes, pixels)
