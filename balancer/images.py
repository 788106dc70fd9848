"""Decode, encode and hash images.

Image files come from strangers. Only a few formats are decoded, recognised by content, not by name. Bytes
and pixels are limited before decoding. Links and devices are not opened. Every decoder error becomes an
`UnreadableImage` with a plain reason.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import itertools
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from PIL.Image import Transpose

from balancer.errors import DatasetError
from balancer.storage.regular_files import TooLargeError, read_regular

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_OPTIONAL = {"AVIF": features.check("avif"), "HEIF": find_spec("pillow_heif") is not None}
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", *(name for name, there in _OPTIONAL.items() if there))
COMMON_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that every reader of a run can read; images in others become PNG in the run."""

_SHOWN_AS = {"WEBP": "WebP", "HEIF": "HEIC"}
_NAMES = [_SHOWN_AS.get(name, name) for name in FORMATS]
NAMES_OF_FORMATS = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"

IMAGE_SUFFIXES = frozenset(
    [
        *".png .jpg .jpeg .jpe .jfif .webp .tif .tiff .bmp .gif".split(),
        *[".avif"] * ("AVIF" in FORMATS),
        *[".heic", ".heif"] * ("HEIF" in FORMATS),
    ]
)

ENCODINGS: Mapping[str, Mapping[str, Any]] = {
    # Level 1 is three times as fast as the default, and files are a tenth larger.
    "png": {"compress_level": 1},
    # The fastest lossless settings.
    "webp": {"lossless": True, "quality": 0, "method": 0},
    # No chroma subsampling: a classifier could learn to recognise generated images by it.
    "jpeg": {"quality": 95, "subsampling": 0},
}

SYNTHETIC_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for an image made by a trained model; written as `Iptc4xmpExt:DigitalSourceType`."""

# IPTC properties for AI-generated images (standard 2025.1). Other keys go under our own prefix.
_IPTC_PROPERTIES = {
    "prompt": "Iptc4xmpExt:AIPromptInformation",
    "model": "Iptc4xmpExt:AISystemUsed",
    "model_revision": "Iptc4xmpExt:AISystemVersionUsed",
}
_XMP_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:balancer="urn:balancer:1">
{properties}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""

# Writers use an element, an attribute or a resource. XMP escapes quotes and brackets inside a value,
# so a prompt that quotes the term does not match.
_MARKED_PROPERTY = b"DigitalSourceType"
_SYNTHETIC_MARK = re.compile(
    rb"""DigitalSourceType(?:>\s*|\s+rdf:resource\s*=\s*["']|\s*=\s*["'])"""
    rb"https?://cv\.iptc\.org/newscodes/digitalsourcetype/"
    rb"(?:trainedAlgorithmicMedia|compositeWithTrainedAlgorithmicMedia)\b"
)
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (_PNG, _JPEG)
_HEIF_BRANDS = frozenset(b"avif avis mif1 msf1 heic heix heim heis hevc hevx hevm hevs".split())
"""AVIF among them: it has the same container."""

_OTHER_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8")

MAX_JPEG_SCANS = 500
MAX_SCANNED_PIXELS = 2_000_000_000
"""Pixels times scans. A progressive photograph has about ten scans. An image of 64 megapixels may have 31,
which take a few seconds: one scan of a megapixel takes 1 to 2 ms."""

_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG."""

MAX_CHUNKS = 100_000
"""PNG chunks. Encoders write chunks of 8 kB or more."""

MAX_SEGMENTS = 10_000
"""JPEG segments before the first scan: tables, and one segment per 64 kB of other data."""

MAX_PADDING = 100_000
"""Bytes between JPEG segments. Pillow reads them one by one in Python, about a million per second."""

_START_OF_SCAN = b"\xff\xda"
_JPEG_END = 0xD9
_JPEG_BARE = (0x01, 0xD8, _JPEG_END)
"""Markers without a length. `_JPEG_MARKER` skips the restart markers inside a scan."""

# Matches without the fill bytes before a marker: searching for runs of them takes quadratic time.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_OPEN_FAILURES = {
    errno.ENOENT: "no such file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
}

Pixels = NDArray[np.uint8]
"""Shape (height, width, 3), RGB."""


class UnreadableImage(DatasetError):
    """An image that is not used. `reason` is shown after the file name and a colon."""

    def __init__(self, reason: str, path: os.PathLike[str] | str = "") -> None:
        super().__init__(f"{os.fspath(path)}: {reason}" if path else reason)
        self.reason = reason


def read_image(path: str | os.PathLike[str], *, max_bytes: int, max_pixels: int) -> Pixels:
    """Read and decode one image file. Raises UnreadableImage. See `decode_image`."""
    try:
        return decode_image(read_bytes(path, max_bytes=max_bytes), max_pixels=max_pixels)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from error


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`, or an image inside a file. Raises UnreadableImage."""
    try:
        data = read_regular(path, max_bytes=max_bytes, follow_links=False)
    except TooLargeError as error:
        raise UnreadableImage(f"{error.strerror} (dataset.max_image_megabytes)", path) from error
    except NotADirectoryError:
        data = _read_inside(path, max_bytes)
    except OSError as error:
        if error.errno == errno.ENOENT and (remote := _read_object(path, max_bytes)):
            return remote
        reason = _OPEN_FAILURES.get(error.errno or 0, error.strerror or str(error))
        raise UnreadableImage(reason, path) from error
    if not data:
        raise UnreadableImage("the file is empty", path)
    return data


def _read_object(path: str | os.PathLike[str], max_bytes: int) -> bytes | None:
    """An image in a bucket, where a path names one; see `dataset.decoding.addresses`."""
    from balancer.dataset.decoding.addresses import read_object, uri_in_path
    from balancer.errors import BalancerError

    if (uri := uri_in_path(path)) is None:
        return None
    try:
        return read_object(uri, max_bytes)
    except BalancerError as error:
        raise UnreadableImage(error.message, uri) from error


def _read_inside(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    from balancer.dataset.decoding.members import InsideError, read_inside

    try:
        return read_inside(path, max_bytes)
    except InsideError as error:
        raise UnreadableImage(error.strerror or "", path) from error


def decode_image(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode an image of one of FORMATS to upright RGB. Raises UnreadableImage.

    Applies EXIF rotation, blends transparency over white, scales 16-bit grey down and takes the first frame
    of an animation, the first page of a TIFF. Ignores colour profiles, as training code does.
    """
    return np.asarray(decode_picture(data, max_pixels=max_pixels))


def decode_picture(data: bytes, *, max_pixels: int) -> Image.Image:
    """Like `decode_image`, without the copy into an array."""
    try:
        _check_parts(data)
        with _open_header(data) as image:
            _check_pixels(image.width, image.height, max_pixels)
            _check_scans(data, image.width * image.height)
            _check_mode(image)
            image.load()
            _cut_transparent_colour(image, data)
            return _upright(_to_rgb(image), image)
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("out of memory while decoding it") from error
    except Exception as error:  # decoders raise a dozen kinds on broken bytes: SyntaxError, struct.error, ...
        raise UnreadableImage(_reason(error, data)) from error


def encode_image(pixels: Pixels, prompt_mark: Mapping[str, str], image_format: str = "png") -> bytes:
    """Encode an image whose XMP packet marks it as generated and holds `prompt_mark`.

    `image_format` is one of ENCODINGS. The same pixels and mark give the same bytes. Keys must be plain
    names. `prompt`, `model` and `model_revision` are written as IPTC properties, others under the prefix
    `balancer:`.
    """
    from PIL.PngImagePlugin import PngInfo

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 of shape (H, W, 3), not {pixels.dtype} of {pixels.shape}")
    packet, options = _xmp_packet(prompt_mark), dict(ENCODINGS[image_format])
    if image_format == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        options["pnginfo"] = info
    else:
        options["xmp"] = packet.encode()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def is_marked_synthetic(data: bytes) -> bool:
    """Whether the XMP of an image says that a trained model made it, fully or partly."""
    # All formats store XMP uncompressed, so a search finds it without parsing.
    return _MARKED_PROPERTY in data and _SYNTHETIC_MARK.search(data) is not None


def luminance_stats(pixels: Pixels) -> tuple[float, float]:
    """Mean and standard deviation of perceived luminance (Rec. 601), both in 0..1."""
    luminance = pixels @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)
    return float(luminance.mean(dtype=np.float64)), float(luminance.std(dtype=np.float64))


def pixel_sha256(pixels: Pixels) -> str:
    """Hex sha256 over shape and pixels. Files with the same pixels share it, whatever their encoding."""
    digest = hashlib.sha256(struct.pack("<3I", *pixels.shape))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def picture_sha256(picture: Image.Image) -> str:
    """The `pixel_sha256` of an RGB picture."""
    digest = hashlib.sha256(struct.pack("<3I", picture.height, picture.width, 3))
    digest.update(picture.tobytes())
    return digest.hexdigest()


def perceptual_hash(pixels: Pixels) -> str:
    """A 64-bit hash as 16 hex digits. Similar images differ in few bits."""
    return hash_picture(Image.fromarray(pixels))


def hash_picture(picture: Image.Image) -> str:
    """The `perceptual_hash` of a picture."""
    import imagehash

    return str(imagehash.phash(picture))


_pillow_lock = threading.Lock()


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, and lift its own pixel limit: `_check_pixels` enforces the config's.

    Warning filters and that limit are global, hence the lock. Only headers are read inside it.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open_header(data: bytes) -> ImageFile:
    if "HEIF" in FORMATS and _is_heif(data):
        _register_heif()
    with _quiet_pillow():
        return Image.open(io.BytesIO(data), formats=FORMATS)


@functools.cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} is {width * height / 1e6:,.1f} megapixels"
        raise UnreadableImage(f"{size}, over the {_pixel_limit(max_pixels)}")


def _check_mode(image: ImageFile) -> None:
    """Refuse measurements that are not pictures: nothing says which values are black and white."""
    if image.mode == "F" or (image.format == "TIFF" and image.mode == "I"):
        raise UnreadableImage("32 bits per channel, without a defined range; save it with 8 or 16")


def is_uncommon(data: bytes) -> bool:
    """Whether an image, by its first bytes, is of a format that not every reader of a run knows."""
    return data.startswith(_OTHER_SIGNATURES) or _is_heif(data)


def suffix_of(data: bytes) -> str:
    """The usual suffix of a PNG, JPEG or WebP."""
    return "png" if data.startswith(_PNG) else "jpg" if data.startswith(_JPEG) else "webp"


def png_of(data: bytes, *, max_pixels: int) -> bytes:
    """The same pixels as PNG. Raises UnreadableImage."""
    return plain_png(decode_image(data, max_pixels=max_pixels))


def plain_png(pixels: Pixels) -> bytes:
    """A PNG without any mark, unlike `encode_image`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", **ENCODINGS["png"])
    return buffer.getvalue()


def _check_parts(data: bytes) -> None:
    """Refuse files full of padding or empty parts, which keep the header parser busy."""
    if data.startswith(_PNG) and _has_too_many_chunks(data):
        raise UnreadableImage(f"a PNG of more than {MAX_CHUNKS:,} chunks, the limit")
    if data.startswith(_JPEG):
        _check_segments(data)


def _has_too_many_chunks(data: bytes) -> bool:
    position = len(_PNG)
    for _ in range(MAX_CHUNKS):
        if data[position + 4 : position + 8] in (b"IEND", b""):
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return True


def _check_segments(data: bytes) -> None:
    padding = begun = position = 0
    for count, (marker, skipped, position) in enumerate(_jpeg_segments(data)):
        if begun:
            continue  # scan data lies between the segments from here on
        if count > MAX_SEGMENTS:
            raise UnreadableImage(f"a JPEG of more than {MAX_SEGMENTS:,} segments, the limit")
        padding += skipped
        begun = position if marker == _START_OF_SCAN[1] else 0
    if padding > MAX_PADDING or data.find(b"\xff" * MAX_PADDING, begun, position) >= 0:
        raise UnreadableImage(f"a JPEG with more than {MAX_PADDING:,} bytes of padding, the limit")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, bytes skipped before it, position after its segment) for each segment of the image.

    Finds them as decoders do: not in thumbnails, in comments, or after the end of the image.
    """
    position, begun = 2, False
    while match := _JPEG_MARKER.search(data, position):
        marker, skipped, position = match[1][0], match.start() - position, match.end()
        if marker not in _JPEG_BARE:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        yield marker, skipped, position
        begun = begun or marker == _START_OF_SCAN[1]
        if begun and marker == _JPEG_END:
            return
    yield _JPEG_END, max(0, len(data) - position), len(data)


def _check_scans(data: bytes, pixels: int) -> None:
    """Each scan decodes all pixels again, so a small JPEG with many scans can take hours."""
    most = min(MAX_JPEG_SCANS, max(1, MAX_SCANNED_PIXELS // pixels))
    # Counting bytes is quick and gives an upper bound.
    if data.startswith(_JPEG) and data.count(_START_OF_SCAN) > most and _has_more_scans(data, most):
        raise UnreadableImage(
            f"a JPEG of {pixels / 1e6:.1f} megapixels in more than {most} scans, the limit at its size"
        )


def _has_more_scans(data: bytes, most: int) -> bool:
    markers = (marker for marker, _, _ in _jpeg_segments(data))
    scans = (marker for marker in markers if marker == _START_OF_SCAN[1])
    return next(itertools.islice(scans, most, None), None) is not None


def _pixel_limit(max_pixels: int) -> str:
    return f"limit of {max_pixels / 1e6:,g} (dataset.max_image_megapixels)"


def _cut_transparent_colour(image: Image.Image, data: bytes) -> None:
    """For 16-bit PNGs, Pillow keeps the upper 8 bits of pixels but all 16 of the transparent colour."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10":
        image.info["transparency"] = tuple(channel >> 8 for channel in colour)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        deep = np.asarray(image).astype(np.uint32).clip(0, 65535)
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        if (transparent := image.info.get("transparency")) is not None:
            grey[deep == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn `image` as the EXIF data of `source` says. Broken EXIF data is ignored."""
    try:
        with _quiet_pillow():
            orientation = source.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 - the image itself is sound
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _reason(error: Exception, data: bytes) -> str:
    is_webp = _is_webp(data)
    if not is_webp and not is_uncommon(data) and not data.startswith(_SIGNATURES):
        return f"not a {NAMES_OF_FORMATS} image"
    webp_is_cut = is_webp and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if webp_is_cut or "truncated" in str(error).lower():
        return "truncated: the file ends before the image does"
    if isinstance(error, UnidentifiedImageError):
        return "damaged: its header does not make sense"
    return f"damaged: {str(error).strip()}" if str(error) else "damaged"


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _xmp_packet(mark: Mapping[str, str]) -> str:
    properties = [f"<Iptc4xmpExt:DigitalSourceType>{SYNTHETIC_SOURCE}</Iptc4xmpExt:DigitalSourceType>"]
    for key, value in mark.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            raise ValueError(f"{key!r} cannot be a property name")
        name = _IPTC_PROPERTIES.get(key, f"balancer:{key}")
        text = escape(_NOT_XML.sub("\ufffd", value), {'"': "&quot;"})
        properties.append(f"<{name}>{text}</{name}>")
    return _XMP_PACKET.format(properties="\n".join(properties))
