"""Compare an image that was generated again with the kept one."""

from __future__ import annotations

import enum
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.images import pixel_sha256

if TYPE_CHECKING:
    from balancer.images import Pixels

DECISIVE_PACKAGES = ("balancer", "torch", "diffusers", "transformers")
"""Another version of these may move pixels."""


class Outcome(enum.StrEnum):
    IDENTICAL = "identical"
    DIFFERENT = "different"
    INCOMPARABLE = "cannot be compared"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of generating an image again; `detail` says how much it differs, or why it cannot be
    compared."""

    id: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.id}: {self.outcome}{f': {self.detail}' if self.detail else ''}"


def compare(image_id: str, made: Pixels, kept: Pixels | None, kept_sha256: str | None) -> Reproduction:
    """`kept` are the pixels of the file, None if the image was not kept, or not losslessly; `kept_sha256` is
    `pixel_sha256` of its row."""
    if kept is None:
        return _by_hash(image_id, made, kept_sha256)
    if made.shape != kept.shape:
        sizes = (f"{one.shape[1]} x {one.shape[0]}" for one in (made, kept))
        return Reproduction(image_id, Outcome.DIFFERENT, " pixels now, kept: ".join(sizes))
    distances = np.abs(made.astype(np.int16) - kept)
    if not (changed := np.count_nonzero(distances)):
        return Reproduction(image_id, Outcome.IDENTICAL)
    detail = f"{changed} of {distances.size} values differ, by {distances.max()} of 255 at most"
    return Reproduction(image_id, Outcome.DIFFERENT, f"{detail}, {distances.mean():.2g} on average")


def _by_hash(image_id: str, made: Pixels, kept_sha256: str | None) -> Reproduction:
    if kept_sha256 is None:
        return Reproduction(image_id, Outcome.INCOMPARABLE, "neither its pixels nor their hash were kept")
    if pixel_sha256(made) == kept_sha256:
        return Reproduction(image_id, Outcome.IDENTICAL)
    detail = "the hash of its pixels differs; the pixels were not kept"
    return Reproduction(image_id, Outcome.DIFFERENT, detail)


def excused(reproduction: Reproduction, versions: Mapping[str, str]) -> Reproduction:
    """A difference becomes incomparable if other versions of the libraries may explain it."""
    if reproduction.outcome is not Outcome.DIFFERENT:
        return reproduction
    others = []
    for name in DECISIVE_PACKAGES:
        then, now = versions.get(name, ""), _version(name)
        if then and then != now:
            others.append(f"{name} was {then}, is {now or 'missing'}")
    if not others:
        return reproduction
    detail = f"{', '.join(others)}; {reproduction.detail}"
    return Reproduction(reproduction.id, Outcome.INCOMPARABLE, detail)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
