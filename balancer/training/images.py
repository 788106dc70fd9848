"""Images of a manifest, decoded one by one when they are looked at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from balancer.errors import ManifestError, UsageError
from balancer.images import Pixels, UnreadableImage, decode_image
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.image_files import ImageFiles, max_image_pixels
from balancer.training.selection import select, warn_of_left_out

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from balancer.manifest.query.rows import ManifestRows
    from balancer.manifest.runfile import RunInfo
    from balancer.training.choice import Choice


MAX_SIZE = 16_384


@dataclass(frozen=True, slots=True)
class Decoder:
    """Reads the images of one run. Plain values only, so that it goes to other processes."""

    files: ImageFiles
    max_pixels: int

    @classmethod
    def of(cls, uri: str, info: RunInfo) -> Decoder:
        return cls(ImageFiles.of(uri, info), max_image_pixels(info))

    def pixels(self, file_name: str, source: str) -> Pixels:
        """Upright RGB, uint8 (height, width, 3). StorageError if the file cannot be read, ManifestError if
        it is no image any more."""
        try:
            return decode_image(self.files.read(file_name, source), max_pixels=self.max_pixels)
        except UnreadableImage as error:
            raise ManifestError(
                f"{file_name}: {error.reason}", hint="`balancer fsck` lists every image that is damaged"
            ) from error


@dataclass(frozen=True, slots=True)
class ManifestImage:
    """One row and its image. `row` has every column but the embedding."""

    row: dict[str, Any]
    decoder: Decoder

    @property
    def id(self) -> str:
        return str(self.row["id"])

    def read(self) -> bytes:
        """The file as it is, a generated image's mark included."""
        return self.decoder.files.read(self.row["file_name"], self.row["source"])

    def pixels(self) -> Pixels:
        """Upright RGB, uint8 (height, width, 3)."""
        return self.decoder.pixels(self.row["file_name"], self.row["source"])

    def pil(self) -> Image:
        """The same as a Pillow image."""
        from PIL.Image import fromarray

        return fromarray(self.pixels())

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.pil().save(buffer, "PNG")
        return buffer.getvalue()


class ManifestImages(Sequence[ManifestImage]):
    """Rows with their images; nothing is read before an image is asked for its pixels."""

    def __init__(self, rows: pa.Table, decoder: Decoder) -> None:
        self._rows = rows
        self._decoder = decoder

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @overload
    def __getitem__(self, index: int) -> ManifestImage: ...
    @overload
    def __getitem__(self, index: slice) -> ManifestImages: ...
    def __getitem__(self, index: int | slice) -> ManifestImage | ManifestImages:
        if isinstance(index, slice):
            return ManifestImages(self._rows.take(np.arange(len(self))[index]), self._decoder)
        place = range(len(self))[index]
        return ManifestImage(self._rows.slice(place, 1).to_pylist()[0], self._decoder)

    def __iter__(self) -> Iterator[ManifestImage]:
        for batch in self._rows.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield ManifestImage(row, self._decoder)


def fitted(pixels: Pixels, size: int | None) -> Pixels:
    """Pixels as a square of `size`: scaled until it is covered, the middle cut out. As they are without."""
    if size is None:
        return pixels
    from PIL import Image, ImageOps

    square = ImageOps.fit(Image.fromarray(pixels), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square)


def check_size(size: int | None) -> None:
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise UsageError(f"size={size}: images have a size from 1 to {MAX_SIZE}")


def find_images(manifest: ManifestRows, choice: Choice) -> ManifestImages:
    columns = [name for name in manifest.run.schema().names if name != EMBEDDING]
    selection = select(manifest, columns, choice, may_be_empty=True)
    warn_of_left_out(selection)
    return ManifestImages(selection.rows, Decoder.of(manifest.uri, manifest.run))
