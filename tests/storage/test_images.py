"""Rules of reading and writing pictures."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import threading
import time
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from balancer.errors import BalancerError
from balancer.images import (
    ENCODINGS,
    NAMES_OF_FORMATS,
    SYNTHETIC_SOURCE,
    UnreadableImage,
    decode_image,
    encode_image,
    is_marked_synthetic,
    is_uncommon,
    luminance_stats,
    perceptual_hash,
    png_of,
    read_bytes,
    read_image,
)

FORMATS = ["PNG", "JPEG", "WEBP"]
OTHER_FORMATS = ["TIFF", "BMP", "GIF", *(["AVIF"] if features.check("avif") else [])]
needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="no pillow-heif is installed")
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
LIMITS = {"max_bytes": 1_000_000, "max_pixels": 1_000_000}
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Coloured blocks: the same after any lossless round trip, and compressible."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def encoded(image: Image.Image | np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, max_pixels=1_000_000)


def reason(data: bytes, max_pixels: int = 1_000_000) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, max_pixels=max_pixels)
    return caught.value.reason


def xmp_of(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"]
    assert isinstance(packet, bytes)
    return packet.decode()


# What is read


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_lossless_files_give_the_pixels_that_went_in(image_format: str):
    assert np.array_equal(decode(encoded(picture(), image_format, lossless=True)), picture())


def test_jpeg_is_read_and_close_to_what_went_in():
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode(encoded(flat, "JPEG", quality=95)).astype(int) - flat).max() <= 3


def test_pixels_are_uint8_height_width_rgb():
    pixels = decode(encoded(picture(height=16, width=40)))
    assert (pixels.shape, str(pixels.dtype)) == ((16, 40, 3), "uint8")


def test_the_format_is_found_by_content_and_not_by_name(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(encoded(picture()))
    assert np.array_equal(read_image(tmp_path / "photo.jpg", **LIMITS), picture())


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32768, 128), (65535, 255)])
def test_16_bit_grey_is_scaled_down_and_not_clipped(value: int, expected: int):
    deep = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert decode(encoded(deep))[0, 0].tolist() == [expected] * 3


def test_16_bit_colour_is_scaled_down():
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND")
    assert decode(data)[0, 0].tolist() == [255, 128, 0]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 255), ("P", 0), ("CMYK", (0, 0, 0, 0))])
def test_every_colour_mode_becomes_rgb(mode: str, colour: Any):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette(WHITE)
    assert decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))],
)
def test_transparency_is_laid_over_white(mode: str, colour: tuple[int, ...]):
    assert decode(encoded(Image.new(mode, (8, 8), colour)))[0, 0].tolist() == [255] * 3


def test_half_transparency_is_blended_with_white():
    assert decode(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128))))[0, 0].tolist() == [255, 127, 127]


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette((0, 0, 0))
    assert decode(encoded(image, transparency=0))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, RED), (2, GREEN), (3, WHITE), (4, BLUE), (5, RED), (6, BLUE), (7, WHITE), (8, GREEN)],
)
def test_exif_orientation_is_applied(image_format: str, orientation: int, corner: tuple[int, int, int]):
    stored = Image.new("RGB", (64, 32), RED)
    stored.paste(GREEN, (32, 0, 64, 16))
    stored.paste(BLUE, (0, 16, 32, 32))
    stored.paste(WHITE, (32, 16, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, image_format, exif=exif, quality=95))
    assert pixels.shape == ((32, 64, 3) if orientation <= 4 else (64, 32, 3))
    assert np.abs(pixels[4, 4].astype(int) - corner).max() < 12


def test_broken_exif_data_turns_nothing():
    data = encoded(picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert np.array_equal(decode(data), picture())


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(image_format: str):
    frames = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode(data), picture(seed=1))


# Other formats


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
def test_lossless_formats_give_their_pixels(image_format: str, options: Any):
    np.testing.assert_array_equal(decode(encoded(picture(), image_format, **options)), picture())


@needs_avif
def test_avif_is_decoded():
    data = encoded(picture(), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(decode(data).astype(int) - picture()).max() <= 8


@needs_heif
def test_heic_is_decoded_upright_and_within_the_limits():
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(Image.fromarray(picture())).save(buffer, quality=-1)
    data = buffer.getvalue()
    assert is_uncommon(data)
    assert np.abs(decode(data).astype(int) - picture()).max() <= 8
    height, width = picture().shape[:2]
    with pytest.raises(UnreadableImage, match="over the limit"):
        decode_image(data, max_pixels=height * width - 1)
    assert reason(data[: len(data) // 2]).startswith(("truncated", "damaged"))


def test_of_several_frames_or_pages_the_first_counts():
    frames = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    for image_format in ("GIF", "TIFF"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode(data), picture(seed=1))


def test_sixteen_bit_and_palette_pictures_are_scaled_not_clipped():
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for data in (encoded(Image.fromarray(deep), "TIFF"), encoded(Image.fromarray(deep), "PNG")):
        np.testing.assert_array_equal(decode(data)[..., 0], (deep.astype(int) * 255 + 32767) // 65535)
    for image_format in ("TIFF", "BMP", "GIF", "PNG"):
        data = encoded(Image.fromarray(picture()).quantize(16), image_format)
        np.testing.assert_array_equal(decode(data), picture())


def test_a_transparent_gif_is_blended_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 1), 1)
    pixels = decode(encoded(image, "GIF", transparency=0))
    assert tuple(pixels[0, 0]) == WHITE
    assert tuple(pixels[1, 1]) == RED


def test_a_tiff_is_turned_upright_once():
    turned = Image.fromarray(np.rot90(picture()).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode(encoded(turned, "TIFF", exif=exif)), picture())


@pytest.mark.parametrize("mode", ["F", "I"])
def test_measurements_without_a_range_are_refused(mode: str):
    data = encoded(Image.new(mode, (8, 8), 3), "TIFF")
    assert reason(data) == "32 bits per channel, without a defined range; save it with 8 or 16"


@pytest.mark.parametrize("image_format", [*OTHER_FORMATS])
def test_pixels_of_every_format_are_limited_before_decoding(image_format: str):
    assert "over the limit of 0.0001" in reason(encoded(picture(), image_format), max_pixels=100)


def test_a_cut_bmp_or_tiff_is_unreadable():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for image_format in OTHER_FORMATS:
        assert reason(encoded(noise, image_format)[:-2000])


@pytest.mark.parametrize("image_format", FORMATS + OTHER_FORMATS)
def test_common_formats_are_told_by_content(image_format: str):
    data = encoded(picture(), image_format)
    assert is_uncommon(data) == (image_format in OTHER_FORMATS)
    png = png_of(data, max_pixels=1000)
    assert not is_uncommon(png)
    np.testing.assert_array_equal(decode(png), decode(data))


# What is not read


def test_an_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UnreadableImage, match=r"a\.png: the file is empty$"):
        read_image(tmp_path / "a.png", **LIMITS)


def test_an_unreadable_image_is_an_error_that_the_command_line_can_show():
    assert isinstance(UnreadableImage("damaged", "x.png"), BalancerError)


def test_text_with_the_name_of_an_image_is_no_image():
    assert reason(b"<html>404 not found</html>") == f"not a {NAMES_OF_FORMATS} image"


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "JPEG2000", "ICO"])
def test_formats_that_are_not_on_the_list_are_refused(image_format: str):
    assert reason(encoded(picture(), image_format)) == f"not a {NAMES_OF_FORMATS} image"


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_truncated_file_is_called_truncated(image_format: str):
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), image_format)
    assert reason(data[: len(data) // 2]) == "truncated: the file ends before the image does"


def test_a_file_cut_in_its_header_is_called_damaged():
    assert reason(encoded(picture())[:12]) == "damaged: its header does not make sense"


@given(
    image_format=st.sampled_from([*FORMATS, *OTHER_FORMATS]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1),
)
def test_damaged_bytes_give_pixels_or_a_reason_and_nothing_else(
    image_format: str, changes: list[tuple[float, int]], kept: float
):
    data = bytearray(encoded(picture(), image_format))
    for where, value in changes:
        data[int(where * len(data))] = value
    try:
        shape: tuple[int, ...] = decode(bytes(data[: round(kept * len(data))])).shape
    except UnreadableImage as error:
        shape = (0, 0, 3) if error.reason else ()
    assert shape[2:] == (3,)


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_over_the_pixel_limit_is_refused_with_the_number_the_limit_and_the_knob(image_format: str):
    data = encoded(Image.new("RGB", (3000, 2000)), image_format)
    expected = "3000 x 2000 is 6.0 megapixels, over the limit of 5 (dataset.max_image_megapixels)"
    assert reason(data, max_pixels=5_000_000) == expected


def test_the_pixel_limit_itself_is_allowed():
    assert decode_image(encoded(picture(24, 32)), max_pixels=24 * 32).shape == (24, 32, 3)


def with_more_scans(jpeg: bytes, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * scans + jpeg[-2:]


@pytest.fixture(scope="module")
def largest_progressive() -> bytes:
    """64 megapixels in ten scans, as cameras and editors write them."""
    return encoded(Image.new("RGB", (8000, 8000), RED), "JPEG", progressive=True)


def test_a_large_progressive_photograph_is_read(largest_progressive: bytes):
    assert largest_progressive.count(b"\xff\xda") == 10
    for data in (largest_progressive, with_more_scans(largest_progressive, 20)):
        assert decode_image(data, max_pixels=64_000_000).shape == (8000, 8000, 3)


def test_a_jpeg_that_keeps_its_decoder_busy_by_its_scans_is_refused_before_it_is_decoded(
    largest_progressive: bytes,
):
    began = time.process_time()
    told = reason(with_more_scans(largest_progressive, 10_000), max_pixels=64_000_000)
    assert told == "a JPEG of 64.0 megapixels in more than 31 scans, the limit at its size"
    assert time.process_time() - began < 5


def test_a_small_jpeg_may_have_more_scans_but_not_any_number():
    small = encoded(picture(), "JPEG", progressive=True)
    assert decode(with_more_scans(small, 490)).shape == (24, 32, 3)
    assert "a JPEG of 0.0 megapixels in more than 500 scans" in reason(with_more_scans(small, 491))


@pytest.mark.parametrize("where", ["comment", "thumbnail", "behind"])
def test_what_only_looks_like_scans_is_not_counted(where: str):
    jpeg, scans = encoded(picture(), "JPEG", progressive=True), b"\xff\xda\x00\x08" * 1000
    marker = b"\xff\xfe" if where == "comment" else b"\xff\xe1"
    segment = marker + struct.pack(">H", 2 + len(scans)) + scans
    other = jpeg + scans if where == "behind" else jpeg[:2] + segment + jpeg[2:]
    np.testing.assert_array_equal(decode(other), decode(jpeg))


def between(before: bytes, harm: bytes, data: bytes) -> bytes:
    """Harm in a file, in front of a part that begins with `before`."""
    place = data.rindex(before)
    return data[:place] + harm + data[place:]


SMALL_JPEG = encoded(Image.new("RGB", (24, 24), RED), "JPEG", progressive=True)
SMALL_PNG = encoded(Image.new("RGB", (24, 24), RED))
PADDING = "a JPEG with more than 100,000 bytes of padding, the limit"
SEGMENTS = "a JPEG of more than 10,000 segments, the limit"
CHUNKS = "a PNG of more than 100,000 chunks, the limit"


TABLE, END, PICTURE = b"\xff\xdb", SMALL_JPEG[-2:], SMALL_PNG[33:41]


@pytest.mark.parametrize(
    ("whole", "before", "first", "repeated", "count", "told"),
    [
        (SMALL_JPEG, TABLE, b"", b"\xff", 40_000_000, PADDING),
        (SMALL_JPEG, TABLE, b"", b"\x00", 40_000_000, PADDING),
        (SMALL_JPEG, TABLE, b"", b"\xff\x00", 20_000_000, PADDING),
        (SMALL_JPEG, TABLE, b"", b"\xff\xd0", 20_000_000, PADDING),
        (SMALL_JPEG, TABLE, b"\xff\xd9", b"\xff", 40_000_000, PADDING),
        (SMALL_JPEG, END, b"", b"\xff", 40_000_000, PADDING),
        (b"\xff\xd8\x00", b"\x00", b"", b"\xff", 40_000_000, PADDING),
        (SMALL_JPEG, TABLE, b"", b"\xff\xfe\x00\x02", 10_000_000, SEGMENTS),
        (SMALL_JPEG, TABLE, b"", b"\xff\xd8", 20_000_000, SEGMENTS),
        (SMALL_PNG, PICTURE, b"", chunk(b"IDAT"), 3_000_000, CHUNKS),
        (SMALL_PNG, PICTURE, b"", chunk(b"abCd"), 3_000_000, CHUNKS),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_file_that_keeps_the_reader_of_its_header_busy_is_refused_in_a_moment(
    whole: bytes, before: bytes, first: bytes, repeated: bytes, count: int, told: str
):
    data = between(before, first + repeated * count, whole)
    began = time.process_time()
    assert reason(data) == told
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("whole", "before", "repeated", "count"),
    [
        (SMALL_JPEG, TABLE, b"\xff", 50_000),
        (SMALL_JPEG, TABLE, b"\xff\xe1\xff\xff" + b"\xff" * 65533, 500),
        (SMALL_JPEG + b"\x01", b"\x01", b"\xff", 1_000_000),
        (SMALL_PNG, PICTURE, chunk(b"abCd", b"x" * 1000), 30_000),
        (SMALL_PNG + b"\x01", b"\x01", chunk(b"abCd"), 200_000),
    ],
    ids=["padding", "segments", "behind a jpeg", "chunks", "behind a png"],
)
def test_what_encoders_write_besides_the_picture_is_read(
    whole: bytes, before: bytes, repeated: bytes, count: int
):
    assert decode(between(before, repeated * count, whole)).shape == (24, 24, 3)


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")
    said = reason(bomb, max_pixels=64_000_000)
    assert "over the limit of 64 (dataset.max_image_megapixels)" in said


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_limit_of_the_config_is_the_only_one(image_format: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    data = encoded(picture(24, 32), image_format)
    assert decode_image(data, max_pixels=24 * 32).shape == (24, 32, 3)
    assert reason(data, max_pixels=700) == (
        "32 x 24 is 0.0 megapixels, over the limit of 0.0007 (dataset.max_image_megapixels)"
    )
    assert Image.MAX_IMAGE_PIXELS == 100  # for whoever else uses Pillow


def test_a_file_over_the_byte_limit_is_refused_with_the_number_the_limit_and_the_knob(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(bytes(2_500_000))
    with pytest.raises(UnreadableImage) as caught:
        read_bytes(tmp_path / "a.png", max_bytes=2_000_000)
    assert caught.value.reason == "2.5 megabytes, over the limit of 2 (dataset.max_image_megabytes)"


def test_the_byte_limit_itself_is_allowed(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(bytes(1000))
    assert len(read_bytes(tmp_path / "a.png", max_bytes=1000)) == 1000


def test_a_symbolic_link_is_not_followed(tmp_path: Path):
    (tmp_path / "real.png").write_bytes(encoded(picture()))
    (tmp_path / "link.png").symlink_to("real.png")
    with pytest.raises(UnreadableImage, match="a symbolic link, which is not followed"):
        read_image(tmp_path / "link.png", **LIMITS)


def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "pipe.png", **LIMITS)


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(UnreadableImage, match="a folder, not a file"):
        read_image(tmp_path, **LIMITS)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UnreadableImage, match=r"gone\.png: no such file$"):
        read_image(tmp_path / "gone.png", **LIMITS)


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)  # root may read every file, and tests run as root somewhere
    with pytest.raises(UnreadableImage, match="no permission to read it"):
        read_bytes(tmp_path / "a.png", max_bytes=1)


def test_reading_from_many_threads_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    data = encoded(picture(), "JPEG")
    threads = [threading.Thread(target=lambda: [decode(data) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# The synthetic mark


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_encoding_without_loss_keeps_the_pixels(image_format: str):
    assert np.array_equal(decode(encode_image(picture(), {}, image_format)), picture())


def test_encoding_as_jpeg_changes_pixels_a_little():
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    found = decode(encode_image(smooth, {}, "jpeg"))
    assert 0 < np.abs(found.astype(int) - smooth).max() <= 8


@pytest.mark.parametrize("image_format", ENCODINGS)
def test_an_encoded_image_is_marked_synthetic(image_format: str):
    data = encode_image(picture(), {"prompt": "a pizza"}, image_format)
    assert is_marked_synthetic(data)
    assert b"a pizza" in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == image_format.upper()


def test_the_mark_is_the_iptc_term_in_well_formed_xmp():
    packet = ElementTree.fromstring(xmp_of(encode_image(picture(), {})))
    assert [element.text for element in packet.iter(f"{IPTC}DigitalSourceType")] == [SYNTHETIC_SOURCE]


def test_prompt_and_model_are_written_as_the_iptc_has_them():
    mark = {"prompt": "a pizza", "model": "embedded", "model_revision": "abc", "id": "basic/0001-1"}
    packet = ElementTree.fromstring(xmp_of(encode_image(picture(), mark)))
    assert packet.findtext(f".//{IPTC}AIPromptInformation") == "a pizza"
    assert packet.findtext(f".//{IPTC}AISystemUsed") == "embedded"
    assert packet.findtext(f".//{IPTC}AISystemVersionUsed") == "abc"
    assert packet.findtext(".//{urn:balancer:1}id") == "basic/0001-1"


@given(prompt=st.text())
def test_any_prompt_leaves_the_packet_well_formed(prompt: str):
    packet = ElementTree.fromstring(xmp_of(encode_image(picture(8, 8), {"prompt": prompt})))
    expected = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", prompt)
    found = packet.findtext(f".//{IPTC}AIPromptInformation")
    assert found == re.sub("\r\n?", "\n", expected)  # as XML reads line ends


@pytest.mark.parametrize("name", ["Prompt", "a b", "", "x:y", "a>"])
def test_a_property_that_is_no_plain_name_is_refused(name: str):
    with pytest.raises(ValueError, match="cannot be a property name"):
        encode_image(picture(), {name: "x"})


@pytest.mark.parametrize("image_format", ENCODINGS)
def test_the_same_pixels_and_mark_give_the_same_bytes(image_format: str):
    one, other = (encode_image(picture(), {"prompt": "p"}, image_format) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)],
)
def test_only_uint8_rgb_is_encoded(pixels: np.ndarray):
    with pytest.raises(ValueError, match="uint8 of shape"):
        encode_image(pixels, {})


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_mark_is_found_in_every_format(image_format: str):
    packet = xmp_of(encode_image(picture(), {}))
    options: dict[str, Any] = {"xmp": packet.encode()}
    if image_format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        options = {"pnginfo": info}
    assert is_marked_synthetic(encoded(picture(), image_format, **options))
    assert not is_marked_synthetic(encoded(picture(), image_format))


@pytest.mark.parametrize(
    "written",
    [
        f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{SYNTHETIC_SOURCE}"/>',
        f"<Iptc4xmpExt:DigitalSourceType rdf:resource='{SYNTHETIC_SOURCE}'/>",
        f"<Iptc4xmpExt:DigitalSourceType>\n {SYNTHETIC_SOURCE}\n</Iptc4xmpExt:DigitalSourceType>",
    ],
)
def test_the_mark_is_found_however_other_programs_write_it(written: str):
    assert is_marked_synthetic(written.encode())


def test_a_photograph_from_a_camera_is_not_marked():
    camera = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    packet = f"<a:DigitalSourceType>{camera}</a:DigitalSourceType><b>{SYNTHETIC_SOURCE}</b>"
    assert not is_marked_synthetic(encoded(picture(), "JPEG", xmp=packet.encode()))


def test_a_prompt_that_quotes_the_mark_is_not_taken_for_it():
    quoting = xmp_of(encode_image(picture(), {"prompt": f'DigitalSourceType="{SYNTHETIC_SOURCE}"'}))
    without_mark = re.sub(r"<Iptc4xmpExt:DigitalSourceType>.*</Iptc4xmpExt:DigitalSourceType>", "", quoting)
    assert is_marked_synthetic(quoting.encode())
    assert not is_marked_synthetic(without_mark.encode())


def test_saving_again_loses_the_mark():
    # Why an exporter has to copy bytes, or mark anew.
    with Image.open(io.BytesIO(encode_image(picture(), {}))) as image:
        assert not is_marked_synthetic(encoded(image.copy(), "JPEG"))


# Statistics and hashes


@pytest.mark.parametrize(("level", "brightness"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_flat_grey_image_has_its_brightness_and_no_deviation(level: int, brightness: float):
    stats = luminance_stats(np.full((16, 16, 3), level, np.uint8))
    assert stats == pytest.approx((brightness, 0.0), abs=1e-6)


def test_half_black_half_white_has_brightness_and_deviation_one_half():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    assert luminance_stats(pixels) == pytest.approx((0.5, 0.5), abs=1e-6)


def test_green_is_brighter_than_red_is_brighter_than_blue():
    red, green, blue = (luminance_stats(np.full((2, 2, 3), c, np.uint8))[0] for c in (RED, GREEN, BLUE))
    assert (red, green, blue) == pytest.approx((0.299, 0.587, 0.114), abs=1e-6)


def test_a_perceptual_hash_is_16_hex_digits():
    assert re.fullmatch(r"[0-9a-f]{16}", perceptual_hash(picture()))


def test_hashes_of_one_picture_in_two_sizes_differ_in_few_bits_and_of_two_pictures_in_many():
    once, other = picture(64, 64, seed=1), picture(64, 64, seed=2)
    doubled = np.kron(once, np.ones((2, 2, 1), np.uint8))
    assert bits_apart(perceptual_hash(once), perceptual_hash(doubled)) <= 4
    assert bits_apart(perceptual_hash(once), perceptual_hash(other)) >= 16


def bits_apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def deep_png(pixels: np.ndarray, transparent: tuple[int, ...] | None) -> bytes:
    """16 bits a channel, of which Pillow writes no colour and no transparency."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    colour = (
        b"" if transparent is None else chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colour
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("transparent", "seen"),
    [(None, [0, 1, 1, 255]), (0, [255, 1, 1, 255]), (300, [0, 255, 1, 255]), (7, [0, 1, 1, 255])],
)
def test_a_transparent_grey_of_16_bits_is_laid_over_white(transparent: int | None, seen: list[int]):
    data = deep_png(
        np.array([[0, 300, 301, 65535]], np.uint16), None if transparent is None else (transparent,)
    )
    assert decode_image(data, max_pixels=100)[0, :, 0].tolist() == seen


@pytest.mark.parametrize(
    ("transparent", "seen"),
    [
        (None, [[3, 7, 11], [255, 0, 0]]),
        ((1000, 2000, 3000), [[255, 255, 255], [255, 0, 0]]),
        ((65535, 0, 0), [[3, 7, 11], [255, 255, 255]]),
        ((3, 7, 11), [[3, 7, 11], [255, 0, 0]]),
    ],
)
def test_a_transparent_colour_of_16_bits_is_laid_over_white(transparent: Any, seen: list[list[int]]):
    data = deep_png(np.array([[[1000, 2000, 3000], [65535, 0, 0]]], np.uint16), transparent)
    assert decode_image(data, max_pixels=100)[0].tolist() == seen
