"""Adapters that were trained on a dataset: whether it has changed since, or keeps their images apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from actors.weights import loras
from actors.weights.headers import read_metadata
from balancer.adaptation.images import divide_images
from balancer.adaptation.record import METADATA_KEY, TrainedOn, compare, trained_on
from balancer.config.schema import SIMULATED, Config
from balancer.dataset.audit import Audit
from balancer.errors import UsageError
from balancer.text.quantities import counted


def compare_adapters(
    config: Config, audit: Audit, holdout: Audit | None, splits: Mapping[str, str]
) -> list[str]:
    """A line for each adapter whose training images have changed. UsageError for one that was trained on an
    image which is kept apart by now: its images would show what a classifier is tested on."""
    known = dict(_trained_here(config))
    if not known:
        return []
    images, apart = divide_images(config, audit, holdout, splits)
    lines = []
    for model, trained in known.items():
        change = compare(trained, images, apart, config.verification.copies)
        if change.held_out:
            raise UsageError(
                f"generation.loras: {model} was trained on {counted(change.held_out, 'image')} of validation,"
                " test or hold-out as they are now, or near-duplicates of these",
                hint="train it again (`balancer adapt CONFIG --replace`), or leave it out",
            )
        if str(change):
            lines.append(
                f"{model} is stale, its training images have changed since ({change}); `balancer adapt CONFIG"
                " --replace` trains it again"
            )
    return lines


def _trained_here(config: Config) -> Iterator[tuple[str, TrainedOn]]:
    """Those that `balancer adapt` has trained, by name."""
    if config.actors.kind == SIMULATED:
        return
    for wanted in config.generation.loras:
        if (file := loras.find(wanted)) is not None:
            metadata, _ = read_metadata(file.folder / file.name)
            if (trained := trained_on(metadata)) is not None:
                yield wanted.model, trained
            elif METADATA_KEY in metadata:
                raise UsageError(
                    f"generation.loras: {wanted.model} is of `balancer adapt`, and what it was trained"
                    " on cannot be read: its metadata are damaged, or of a newer version",
                    hint="train it again (`balancer adapt CONFIG --replace`), or leave it out",
                )
