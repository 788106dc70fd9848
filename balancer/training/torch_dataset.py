"""A manifest as a map-style dataset of PyTorch, and a sampler for it.

torch is imported on use: the class is made a `torch.utils.data.Dataset` when the first one is asked for.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError
from balancer.manifest.rows import REAL, SYNTHETIC
from balancer.training.images import Decoder, check_size, fitted
from balancer.training.labels import Labels
from balancer.training.recommended import draws_by_size, read_recommended
from balancer.training.sampling import exposures, rarely_seen, sample_weights
from balancer.training.selection import select, warn_of_left_out

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.data import Dataset, WeightedRandomSampler

    from balancer.images import Pixels
    from balancer.manifest.query.rows import ManifestRows
    from balancer.training.choice import Choice

    _Dataset = Dataset[tuple[Any, ...]]
    _Sampler = WeightedRandomSampler
else:
    _Dataset = _Sampler = object

MOST_DRAWN_FROM = 2**24
DRAWS_AT_ONCE = 1 << 20

Transform = Callable[[Any], Any]
"""From a Pillow image, as torchvision's transforms take it, to what a batch is made of."""


class ImageDataset(_Dataset):
    """Images with their labels, by index: (image, label), or (image, label, facet labels) if facets were
    asked for.

    Without a transform an image is a float32 tensor (3, height, width) in 0..1. `label` is the place of the
    class in `classes`; facet labels are a dict by facet of places in `facet_values`, -1 where there is none.
    Decoding happens in whatever process asks, forked and spawned workers of a DataLoader included.
    """

    classes: tuple[str, ...]
    facet_values: Mapping[str, tuple[str, ...]]
    targets: NDArray[np.int64]
    """The labels of all images."""

    def __init__(
        self,
        rows: pa.Table,
        labels: Labels,
        decoder: Decoder,
        transform: Transform | None,
        facets: Sequence[str],
        size: int | None = None,
    ) -> None:
        self.classes = labels.classes
        self.facet_values = {name: labels.facets[name] for name in facets}
        self.targets = labels.numbers(rows, CLASS_PROPERTY)
        self.transform = transform
        self.size = size
        self._decoder = decoder
        # Arrow and numpy hold no Python object a row: forked workers go on sharing the memory.
        self._ids, self._names = (rows[name].combine_chunks() for name in ("id", "file_name"))
        self._is_real = np.asarray(rows["source"]) == REAL
        self._facets = {name: labels.numbers(rows, name) for name in facets}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        label = int(self.targets[index])  # first, because it raises IndexError past the end
        source = REAL if self._is_real[index] else SYNTHETIC
        pixels = fitted(self._decoder.pixels(self._names[int(index)].as_py(), source), self.size)
        image = _tensor(pixels) if self.transform is None else self.transform(_pillow(pixels))
        if not self._facets:
            return image, label
        return image, label, {name: int(numbers[index]) for name, numbers in self._facets.items()}

    def id(self, index: int) -> str:
        """The manifest's id of an image."""
        return str(self._ids[int(index)].as_py())


def make_dataset(
    manifest: ManifestRows,
    choice: Choice,
    transform: Transform | None,
    facets: Sequence[str],
    size: int | None,
) -> ImageDataset:
    check_size(size)
    labels = Labels.of(manifest.run)
    labels.check(facets)
    selection = select(manifest, ["id", "file_name", "source", CLASS_PROPERTY, *facets], choice)
    warn_of_left_out(selection)
    decoder = Decoder.of(manifest.uri, manifest.run)
    return _dataset_class()(selection.rows, labels, decoder, transform, facets, size)


def make_sampler(
    manifest: ManifestRows,
    choice: Choice,
    by: Sequence[str] | None,
    seed: int | None,
    real_share: float | None = None,
    real_weight: float | None = None,
) -> ImageSampler:
    import torch

    by_size = False
    if choice.recommended:
        if real_share is not None or real_weight is not None:
            raise UsageError(
                "recommended=True says how often real images are drawn, as do real_share and real_weight",
                hint="give one",
            )
        outcome = read_recommended(manifest)
        real_share, by_size = outcome.recommended.real_share, by is None and draws_by_size(outcome)
    by = [CLASS_PROPERTY] if by is None else by
    rows = select(manifest, [CLASS_PROPERTY, *by], choice).rows
    weights = sample_weights(rows, by, real_share=real_share, real_weight=real_weight, by_size=by_size)
    shown = exposures(rows, weights, len(weights))
    for name, share in rarely_seen(shown).items():
        warnings.warn(
            f"class {name!r}: only {share:.1%} of its draws are real images; raise real_share", stacklevel=3
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return _sampler_class()(torch.from_numpy(weights), generator, shown)


class ImageSampler(_Sampler):
    """Draws the places of images, with replacement. Torch draws from MOST_DRAWN_FROM images at most; of more,
    their summed weights are searched."""

    def __init__(self, weights: Any, generator: Any, shown: pa.Table) -> None:
        super().__init__(weights, len(weights), True, generator)
        self._shown = shown

    def exposures(self) -> pa.Table:
        """How often an epoch is expected to show the images of each class, the real and the generated ones:
        `class`, `source`, `images`, `draws` and `draws_per_image`."""
        return self._shown

    def __iter__(self) -> Iterator[int]:
        import torch

        if len(self.weights) <= MOST_DRAWN_FROM:
            yield from super().__iter__()
            return
        sums = torch.cumsum(self.weights, 0)
        last = int(torch.searchsorted(sums, sums[-1]))  # that has a weight
        for start in range(0, self.num_samples, DRAWS_AT_ONCE):
            count = min(DRAWS_AT_ONCE, self.num_samples - start)
            drawn = torch.rand(count, dtype=sums.dtype, generator=self.generator) * sums[-1]
            yield from torch.searchsorted(sums, drawn, right=True).clamp(max=last).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_sampler, (self.weights, self.generator, self._shown)


@functools.cache
def _sampler_class() -> type[ImageSampler]:
    from torch.utils.data import WeightedRandomSampler

    class TorchImageSampler(ImageSampler, WeightedRandomSampler):
        __doc__ = ImageSampler.__doc__

    return TorchImageSampler


def _made_sampler(*arguments: Any) -> ImageSampler:
    return _sampler_class()(*arguments)


@functools.cache
def _dataset_class() -> type[ImageDataset]:
    from torch.utils.data import Dataset

    class TorchImageDataset(ImageDataset, Dataset):  # type: ignore[type-arg]
        __doc__ = ImageDataset.__doc__

        def __reduce__(self) -> tuple[Any, ...]:
            return _unpickled, (self.__dict__,)  # a class made in a function is not found by its name

    return TorchImageDataset


def _unpickled(state: Mapping[str, Any]) -> ImageDataset:
    dataset = object.__new__(_dataset_class())
    dataset.__dict__.update(state)
    return dataset


def _tensor(pixels: Pixels) -> Any:
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))


def _pillow(pixels: Pixels) -> Any:
    from PIL.Image import fromarray

    return fromarray(pixels)
