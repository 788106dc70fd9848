"""Find near-duplicates: of a candidate among known images, and among the accepted images.

Two images are compared by the differing bits of their perceptual hashes and by the cosine of their
embeddings; either alone is wrong too often. An image without an embedding is judged by its hash alone.

Candidates are compared with references during the run, with each other only at its end: their order of
arrival is random, and the result must not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.verification.verdict import Flaw, Nearest, is_near_copy

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.config.schema import CopiesConfig

HASH_BITS = 64

COMPARED = ("id", "phash", "pixel_sha256", "embedding")
"""Columns of the manifest that `known_images` needs."""
PAIRS_AT_ONCE = 2_000_000
"""Pairs compared at once. Bounds the memory if many hashes share a band."""

Indices = NDArray[np.intp]


class Comparable(Protocol):
    """The fields that images are compared by. `embedding` is little-endian float16."""

    @property
    def phash(self) -> str: ...
    @property
    def embedding(self) -> bytes | None: ...
    @property
    def pixel_sha256(self) -> str: ...


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that must not be made again. All embeddings have the same length."""

    id: str
    phash: str
    pixel_sha256: str
    embedding: bytes | None = None


class NearDuplicateIndex:
    """Known images of all classes: a duplicate under another label counts, too.

    Each lookup compares all hashes: 100,000 take about 0.1 ms.
    """

    def __init__(self, images: Sequence[KnownImage], limits: CopiesConfig) -> None:
        self._images = tuple(images)
        self._limits = limits
        self._hashes = np.array([int(image.phash, 16) for image in images], np.uint64)
        self._embeddings = _embeddings(images)
        self._by_pixels: dict[str, list[int]] = {}
        for position, image in enumerate(images):
            if image.pixel_sha256:
                self._by_pixels.setdefault(image.pixel_sha256, []).append(position)
        self._positions = {image.id: position for position, image in enumerate(images)}

    def __len__(self) -> int:
        return len(self._images)

    def nearest(self, picture: Comparable, besides: str | None = None) -> Nearest | None:
        """The known image most similar to `picture`, `besides` the one with this id; None if there is none.

        An image with the same pixels comes first, then images within both limits, then the smallest distance,
        the greatest similarity, and the given order.
        """
        without = self._positions.get(besides or "")
        if len(self._images) <= (without is not None):
            return None
        same = [one for one in self._by_pixels.get(picture.pixel_sha256, ()) if one != without]
        if same:
            return self._best(picture, np.array(same[:1]), same_pixels=True)
        distances = self._distances(picture)
        if without is not None:
            distances[without] = HASH_BITS + 1
        return self._best(
            picture, np.flatnonzero(distances <= max(distances.min(), self._limits.max_distance))
        )

    def compare(self, picture: Comparable, other: str) -> Nearest:
        """The known image with the id `other`, compared with `picture`."""
        position = self._positions[other]
        same = bool(picture.pixel_sha256) and self._images[position].pixel_sha256 == picture.pixel_sha256
        return self._best(picture, np.array([position]), same_pixels=same)

    def is_duplicate(self, nearest: Nearest) -> bool:
        limits = self._limits
        return nearest.same_pixels or is_near_copy(nearest, limits.max_distance, limits.min_similarity)

    def _distances(self, picture: Comparable, among: Indices | slice = slice(None)) -> NDArray[np.uint8]:
        differing = self._hashes[among] ^ np.uint64(int(picture.phash, 16))
        distances: NDArray[np.uint8] = np.bitwise_count(differing)
        return distances

    def _best(self, picture: Comparable, among: Indices, same_pixels: bool = False) -> Nearest:
        distances = self._distances(picture, among)
        similarities = self._similarities(picture, among)
        limits = self._limits
        outside = (distances > limits.max_distance) | ~(similarities >= limits.min_similarity)
        best = np.lexsort((-similarities, distances, outside))[0]  # stable; the last key comes first
        return Nearest(
            id=self._images[among[best]].id,
            distance=int(distances[best]),
            similarity=float(similarities[best]),
            same_pixels=same_pixels,
        )

    def _similarities(self, picture: Comparable, among: Indices) -> NDArray[np.float32]:
        """Cosines; 1 if either embedding is missing, so the hash decides."""
        if not picture.embedding or self._embeddings is None:
            return np.ones(len(among), np.float32)
        wanted = np.frombuffer(picture.embedding, "<f2").astype(np.float32)
        others = self._embeddings[among].astype(np.float32)
        norms = np.linalg.norm(others, axis=1) * np.linalg.norm(wanted)
        cosines: NDArray[np.float32] = np.ones(len(among), np.float32)
        np.divide(others @ wanted, norms, out=cosines, where=norms != 0)
        return np.minimum(cosines, 1)


def find_near_duplicates(images: Sequence[KnownImage], limits: CopiesConfig) -> dict[str, Nearest]:
    """Images that duplicate an earlier one that is no duplicate itself: id -> the nearest of those.

    If two hashes differ in at most k bits, one of k + 1 bands of bits is equal. So only images that share a
    band are compared: with 6 bits, about one pair in seventy.
    """
    index = NearDuplicateIndex(images, limits)
    kept = np.ones(len(images), bool)
    kept_by_pixels: dict[str, int] = {}
    duplicates: dict[str, Nearest] = {}
    for position, (image, earlier) in enumerate(
        zip(images, _sharing_a_band(index, limits.max_distance), strict=True)
    ):
        same = kept_by_pixels.get(image.pixel_sha256) if image.pixel_sha256 else None
        if same is None:
            near = index._distances(image, earlier) <= limits.max_distance
            among = earlier[near & kept[earlier]]
        else:
            among = np.array([same])
        nearest = index._best(image, among, same_pixels=same is not None) if len(among) else None
        if nearest is not None and index.is_duplicate(nearest):
            kept[position] = False
            duplicates[image.id] = nearest
        else:
            kept_by_pixels[image.pixel_sha256] = position
    return duplicates


def group_near_duplicates(images: Sequence[KnownImage], limits: CopiesConfig) -> Indices:
    """A number for each image, the same for all that a chain of near-duplicates connects. Compares every
    pair: a thousand images take a tenth of a second."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not images:
        return np.empty(0, np.intp)
    index, pixels = NearDuplicateIndex(images, limits), dict[str, int]()
    ones, others = [], []
    for position, image in enumerate(images):
        near = np.flatnonzero(index._distances(image) <= limits.max_distance)
        near = near[index._similarities(image, near) >= limits.min_similarity]
        same = pixels.setdefault(image.pixel_sha256, position) if image.pixel_sha256 else position
        others.append(np.append(near, same))
        ones.append(np.full(len(near) + 1, position))
    edges = np.concatenate(ones), np.concatenate(others)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(len(images), len(images)))
    numbers: Indices = connected_components(graph, directed=False)[1].astype(np.intp)
    return numbers


def find_near_duplicates_across(
    images: Sequence[KnownImage], others: Sequence[KnownImage], limits: CopiesConfig
) -> dict[str, Nearest]:
    """The `images` that duplicate one of `others`: id -> the nearest of those."""
    hashes, other_hashes = (hash_numbers([image.phash for image in of]) for of in (images, others))
    near, other_near = near_any(hashes, other_hashes, limits.max_distance)
    index = NearDuplicateIndex(
        [other for other, is_near in zip(others, other_near, strict=True) if is_near], limits
    )
    duplicates = {}
    for image in (image for image, is_near in zip(images, near, strict=True) if is_near):
        nearest = index.nearest(image)
        if nearest is not None and index.is_duplicate(nearest):
            duplicates[image.id] = nearest
    return duplicates


def near_any(
    hashes: NDArray[np.uint64], others: NDArray[np.uint64], max_distance: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the `hashes` within `max_distance` bits of one of `others`, and of the `others` near a hash.

    Only pairs that share a band of bits are compared, as in `find_near_duplicates`: a million hashes against
    a thousand take about a second.
    """
    values, places = np.unique(hashes, return_inverse=True)  # all blank images have the same hash
    other_values, other_places = np.unique(others, return_inverse=True)
    near, other_near = np.zeros(len(values), bool), np.zeros(len(other_values), bool)
    for mask in _bands(max_distance):
        for ones, among in _sharing(values & mask, other_values & mask):
            matches = np.bitwise_count(values[ones] ^ other_values[among]) <= max_distance
            near[ones[matches]] = True
            other_near[among[matches]] = True
    return near[places], other_near[other_places]


def find_near_hashes(hashes: NDArray[np.uint64], max_distance: int) -> list[tuple[int, int]]:
    """The pairs of places, the smaller first, whose hashes differ in at most `max_distance` bits, up to about
    PAIRS_AT_ONCE."""
    pairs: set[tuple[int, int]] = set()
    for mask in _bands(max_distance):
        for ones, among in _sharing(hashes & mask, hashes & mask):
            near = (ones < among) & (np.bitwise_count(hashes[ones] ^ hashes[among]) <= max_distance)
            pairs.update(zip(ones[near].tolist(), among[near].tolist(), strict=True))
            if len(pairs) > PAIRS_AT_ONCE:
                return sorted(pairs)
    return sorted(pairs)


def _sharing(keys: NDArray[np.uint64], others: NDArray[np.uint64]) -> Iterator[tuple[Indices, Indices]]:
    """Positions of all pairs of equal keys, in chunks of about PAIRS_AT_ONCE."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others, keys, "left", sorter=order)
    counts = np.searchsorted(others, keys, "right", sorter=order) - first
    with_any = np.flatnonzero(counts)
    numbers = np.cumsum(counts[with_any]) // PAIRS_AT_ONCE
    for part in np.split(with_any, np.flatnonzero(np.diff(numbers)) + 1):
        ones = np.repeat(part, counts[part])
        ranks = np.arange(len(ones)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        yield ones, order[first[ones] + ranks]


def hash_numbers(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """Convert perceptual hashes of 16 hex digits to numbers."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)


def duplicate_flaw(nearest: Nearest) -> Flaw:
    """The rejection reason of a duplicate of `nearest`."""
    return Flaw.DUPLICATE if nearest.same_pixels else Flaw.NEAR_COPY


def known_images(rows: pa.Table) -> list[KnownImage]:
    """Convert manifest rows to images to compare with."""
    embeddings: list[bytes | None] = [None] * rows.num_rows
    if rows.num_rows:
        column = rows["embedding"].combine_chunks()
        vectors = np.asarray(column.flatten(), "<f2").reshape(-1, column.type.list_size)
        for place, vector in zip(np.flatnonzero(column.is_valid()), vectors, strict=True):
            embeddings[place] = vector.tobytes()
    columns = (rows[name].to_pylist() for name in ("id", "phash", "pixel_sha256"))
    return [KnownImage(*values) for values in zip(*columns, embeddings, strict=True)]


def _sharing_a_band(index: NearDuplicateIndex, max_distance: int) -> Iterator[Indices]:
    """For each image the earlier ones that share a band of bits with it; some occur more than once."""
    bands = [_grouped(index._hashes, mask) for mask in _bands(max_distance)]
    for position in range(len(index)):
        yield np.concatenate([order[first[position] : rank[position]] for order, first, rank in bands])


def _bands(max_distance: int) -> list[np.uint64]:
    """Masks that cut a hash into `max_distance + 1` bands: near hashes have an equal one. An empty band is
    equal for all hashes."""
    bands = np.array_split(np.arange(HASH_BITS), max_distance + 1)
    return [np.uint64(sum(1 << int(bit) for bit in bits)) for bits in bands]


def _grouped(hashes: NDArray[np.uint64], mask: np.uint64) -> tuple[Indices, Indices, Indices]:
    """Sort images by a band of bits, then by position. Returns the order, and for each image the start of its
    group and its own rank in that order."""
    keys = hashes & mask
    order = np.argsort(keys, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return order, np.searchsorted(keys[order], keys), rank


def _embeddings(images: Sequence[KnownImage]) -> NDArray[np.float16] | None:
    """One row per image, zeros for a missing embedding; None if all are missing."""
    size = max((len(image.embedding) for image in images if image.embedding), default=0)
    if not size:
        return None
    missing = bytes(size)
    data = b"".join(image.embedding or missing for image in images)
    return np.frombuffer(data, "<f2").reshape(len(images), -1)
