"""The folder of trained adapters: weights, checkpoints, samples, `adapters.json` and the page."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from balancer.adaptation.record import INDEX, PAGE, Index, TrainedAdapter, file_of, read_index
from balancer.errors import StorageError, UsageError
from balancer.storage import MissingFileError, Storage, is_temporary, open_storage
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.images import Pixels

CHECKPOINTS, SAMPLES = "checkpoints", "samples"
PART_BYTES = 1 << 26
"""Read at a time to compute a hash."""

MAX_SHEET_BYTES = 50_000_000
SIDE_PIXELS = 128
"""Of a sample on the page, at most."""

When = Literal["before", "after"]


class AdapterFolder:
    """`identities` are what the adapters to be trained follow from, by name. Adapters of other names stay
    listed beside them."""

    def __init__(self, storage: Storage, identities: Mapping[str, str], index: Index) -> None:
        self._storage, self._identities = storage, identities
        self._adapters = {one.name: one for one in index.adapters if one.identity == identities.get(one.name)}
        self.uri = storage.uri

    @classmethod
    def open(cls, out: str | os.PathLike[str], identities: Mapping[str, str], replace: bool) -> AdapterFolder:
        """UsageError for a folder that holds something else, or adapters of these names and of other images
        or settings where these may not be replaced."""
        storage = open_storage(out, create=True)
        index = read_index(storage)
        own = {INDEX, PAGE, *(one.file for one in index.adapters)}
        # One that was written last may not be listed yet.
        own |= {*map(file_of, identities)}
        for path in storage.list(""):
            if path.split("/")[0] not in {CHECKPOINTS, SAMPLES, *own} and not is_temporary(path):
                raise UsageError(
                    f"{storage.uri} holds files but no adapters, such as {path}",
                    hint="choose another --out, or empty the folder",
                )
        planned = [one for one in index.adapters if one.name in identities]
        others = [one.name for one in planned if one.identity != identities[one.name]]
        if others and not replace:
            raise UsageError(
                f"{storage.uri} holds {counted(len(others), 'adapter')} of other images, settings or"
                f" versions, such as {others[0]}",
                hint="choose another --out, or train again with --replace",
            )
        return cls(storage, identities, index)

    def has(self, name: str) -> bool:
        """Whether the adapter is there, with the bytes that were written."""
        known = self._adapters.get(name)
        try:
            return known is not None and self._sha256(known.file) == known.sha256
        except StorageError:
            return False

    def adapters(self) -> tuple[TrainedAdapter, ...]:
        return tuple(self._adapters[name] for name in self._identities if name in self._adapters)

    def read_checkpoint(self, name: str, max_bytes: int) -> bytes | None:
        try:
            return self._storage.read(self._checkpoint(name), max_bytes)
        except MissingFileError:
            return None

    def write_checkpoint(self, name: str, state: bytes) -> None:
        self._storage.replace(self._checkpoint(name), state)

    def add(self, adapter: TrainedAdapter, data: bytes) -> None:
        """The weights first, and what lists them last; then the checkpoint has served its purpose."""
        self._storage.replace(adapter.file, data)
        self._adapters[adapter.name] = adapter
        # Read again: another command may have added its own meanwhile.
        listed = {one.name: one for one in read_index(self._storage).adapters} | {adapter.name: adapter}
        self._storage.replace(INDEX, Index(adapters=list(listed.values())).encode())
        for path in self._storage.list(CHECKPOINTS):
            if path.rpartition("-")[0] == f"{CHECKPOINTS}/{adapter.name}":
                self._storage.delete(path)

    def write_samples(self, name: str, when: When, pixels: Pixels) -> None:
        """Side by side in one file, made small."""
        from PIL import Image

        small = []
        for each in pixels:
            image = Image.fromarray(each)
            image.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
            small.append(np.asarray(image))
        out = io.BytesIO()
        Image.fromarray(np.concatenate(small, axis=1)).save(out, "PNG")
        self._storage.replace(self._sheet(name, when), out.getvalue())

    def read_samples(self, name: str, when: When) -> bytes | None:
        try:
            return self._storage.read(self._sheet(name, when), MAX_SHEET_BYTES)
        except MissingFileError:
            return None

    def write_page(self, page: str) -> None:
        self._storage.replace(PAGE, page.encode())

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for start in range(0, self._storage.info(path).num_bytes, PART_BYTES):
            digest.update(self._storage.read_range(path, start, PART_BYTES))
        return digest.hexdigest()

    def _checkpoint(self, name: str) -> str:
        return f"{CHECKPOINTS}/{name}-{self._identities[name][:16]}.safetensors"

    @staticmethod
    def _sheet(name: str, when: When) -> str:
        return f"{SAMPLES}/{name}-{when}.png"
