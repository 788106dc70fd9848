"""Images of a run for its pages: by key, never by a path from an address.

A key says nothing of its image, so nobody who reviews sees which ones are real. It is the same in every
process, so decisions that a browser kept are understood by the next server.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from balancer.images import UnreadableImage, decode_image
from balancer.storage import MissingFileError

SIDES = (160, 320)
"""Longest sides of thumbnails."""

KEPT_BYTES = 64_000_000
"""Of thumbnails in memory."""

_SHOWN_BY_BROWSERS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes
    media_type: str


@dataclass(slots=True)
class ImageShelf:
    """The images that the pages of one run may ask for. Safe to use from several threads.

    `read` gives the bytes of a file that is named here, and raises StorageError.
    """

    read: Callable[[str], bytes]
    run_id: str
    max_pixels: int
    _named: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _small: OrderedDict[tuple[str, int], Picture] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _decoding: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(2))

    def put(self, *file_names: str) -> str:
        """The key of an image that pages may ask for from now on. Of several names the first that is there
        counts."""
        key = key_of(self.run_id, *file_names)
        with self._lock:
            self._named[key] = file_names
        return key

    def picture(self, key: str) -> Picture:
        """As its file is where browsers show such files, else as PNG. KeyError for a key that was not given,
        StorageError, UnreadableImage."""
        data = self._read(key)
        for signature, media_type in _SHOWN_BY_BROWSERS.items():
            if data.startswith(signature):
                return Picture(data, media_type)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Picture(data, "image/webp")
        with self._decoding:
            return _encoded(Image.fromarray(decode_image(data, max_pixels=self.max_pixels)), "PNG")

    def thumbnail(self, key: str, side: int) -> Picture:
        """Fits into a square of `side` pixels; errors as `picture`."""
        with self._lock:
            if kept := self._small.get((key, side)):
                self._small.move_to_end((key, side))
                return kept
        data = self._read(key)
        with self._decoding:
            small = Image.fromarray(decode_image(data, max_pixels=self.max_pixels))
            small.thumbnail((side, side))
        made = _encoded(small, "JPEG", quality=88)
        with self._lock:
            self._small[key, side] = made
            while sum(len(one.data) for one in self._small.values()) > KEPT_BYTES:
                self._small.popitem(last=False)
        return made

    def _read(self, key: str) -> bytes:
        with self._lock:
            *others, last = self._named[key]
        for name in others:
            try:
                return self.read(name)
            except MissingFileError:
                continue
        return self.read(last)


def key_of(run_id: str, *names: str) -> str:
    """Under which a page knows something of a run."""
    text = "\0".join(names).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, key=run_id.encode()[:64], digest_size=12).hexdigest()


def _encoded(image: Image.Image, kind: str, **options: int) -> Picture:
    out = io.BytesIO()
    try:
        image.save(out, kind, **options)
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"cannot be drawn: {error}") from error
    return Picture(out.getvalue(), f"image/{kind.lower()}")
