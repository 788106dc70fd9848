"""The writer: encodes images with their provenance mark and publishes them under their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from balancer.errors import StorageError, UsageError
from balancer.images import encode_image
from balancer.manifest.rows import ImageFile
from balancer.storage import Storage, open_storage


@dataclass(frozen=True, slots=True)
class WriteItem:
    """One image to write: its index in the batch, its path in the run folder up to the attempt
    (`images/.../0003-1`), and the content of its provenance mark."""

    index: int
    stem: str
    mark: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RejectedItem:
    """One rejected image to keep as an example, under a path that no row names."""

    index: int
    path: str
    mark: Mapping[str, str]


class Writer:
    """Writes into an existing run folder; `image_format` as in the config."""

    def __init__(self, storage_uri: str, image_format: str = "png") -> None:
        self._format = image_format
        try:
            self._storage = open_storage(storage_uri, create=False)
        except (UsageError, StorageError) as error:
            shared = "put the run on a path that all machines of the cluster share"
            raise StorageError(
                f"{error.message} (on the machine of a writer)",
                hint=error.hint if isinstance(error, StorageError) else shared,
            ) from error

    def write(
        self, pixels: np.ndarray, items: Sequence[WriteItem], rejected: Sequence[RejectedItem] = ()
    ) -> list[ImageFile]:
        """Write the chosen images of a batch, uint8 (N, height, width, 3); durable when it returns.

        The name has part of the content's hash, so writing the same image again changes nothing.
        """
        for example in rejected:
            self._storage.replace(example.path, encode_image(pixels[example.index], example.mark))
        return [_write_one(self._storage, pixels[item.index], item, self._format) for item in items]


def _write_one(storage: Storage, image: np.ndarray, item: WriteItem, image_format: str) -> ImageFile:
    data = encode_image(image, item.mark, image_format)
    sha256 = hashlib.sha256(data).hexdigest()
    file_name = f"{item.stem}-{sha256[:12]}.{image_format}"
    storage.publish(file_name, data)
    return ImageFile(file_name, sha256, len(data))
