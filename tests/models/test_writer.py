from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from actors.models.writer import RejectedItem, WriteItem, Writer
from balancer.errors import StorageError
from balancer.images import is_marked_synthetic
from balancer.manifest.rows import ImageFile
from balancer.storage import OtherContentError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)


def item(index: int, stem: str = "images/burnt/dim/-/0003-1") -> WriteItem:
    return WriteItem(index, stem, {"prompt": "a burnt pizza"})


def test_the_chosen_images_of_a_batch_are_written_and_no_others(tmp_path):
    written = Writer(str(tmp_path)).write(PIXELS, [item(2, "images/a/0001-1"), item(0, "images/a/0002-1")])
    for file, index in zip(written, [2, 0], strict=True):
        np.testing.assert_array_equal(Image.open(tmp_path / file.file_name), PIXELS[index])
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_a_name_is_the_stem_and_twelve_digits_of_the_hash(tmp_path):
    [written] = Writer(str(tmp_path)).write(PIXELS, [item(1)])
    data = (tmp_path / written.file_name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert written == ImageFile(f"images/burnt/dim/-/0003-1-{digest[:12]}.png", digest, len(data))


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_images_are_written_in_the_format_of_the_config(tmp_path, image_format):
    [written] = Writer(str(tmp_path), image_format).write(PIXELS, [item(1)])
    assert written.file_name.endswith(f".{image_format}")
    with Image.open(tmp_path / written.file_name) as image:
        assert image.format == image_format.upper()


def test_written_images_say_that_a_model_made_them(tmp_path):
    [written] = Writer(str(tmp_path)).write(PIXELS, [item(1)])
    data = (tmp_path / written.file_name).read_bytes()
    assert is_marked_synthetic(data)
    assert b"a burnt pizza" in data


def test_writing_the_same_image_again_is_harmless(tmp_path):
    writer = Writer(str(tmp_path))
    assert writer.write(PIXELS, [item(1)]) == writer.write(PIXELS, [item(1)])
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_images_are_taken_from_arrays_that_cannot_be_written_to(tmp_path):
    frozen = PIXELS.copy()
    frozen.flags.writeable = False  # as they come out of an object store
    assert Writer(str(tmp_path)).write(frozen, [item(0)]) == Writer(str(tmp_path)).write(PIXELS, [item(0)])


def test_a_run_folder_the_writer_cannot_see_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"gone does not exist \(on the machine of a writer\)"):
        Writer(str(tmp_path / "gone"))


def test_an_image_is_never_written_over_another_file(tmp_path):
    writer = Writer(str(tmp_path))
    [written] = writer.write(PIXELS, [item(1)])
    (tmp_path / written.file_name).write_bytes(b"another")
    with pytest.raises(OtherContentError):
        writer.write(PIXELS, [item(1)])
    assert (tmp_path / written.file_name).read_bytes() == b"another"


def test_an_example_of_a_rejected_image_is_renewed(tmp_path):
    writer = Writer(str(tmp_path))
    for index in (0, 1):
        writer.write(PIXELS, [], [RejectedItem(index, "rejected/class/a.png", {})])
    np.testing.assert_array_equal(Image.open(tmp_path / "rejected/class/a.png"), PIXELS[1])
