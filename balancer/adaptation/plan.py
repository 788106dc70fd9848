"""Which adapters are trained, and how long: one task for each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.adaptation.images import TrainingImage, combine
from balancer.errors import UsageError
from balancer.storage import slug
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.adaptation import AdaptationConfig
    from balancer.config.schema import Config

DATASET = "dataset"

PRIOR_IMAGES = 100
SAMPLES = 12
"""Images of the page for each adapter, before and after."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image to show: its prompt and its seed."""

    class_name: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter to train. `classes` are those of its images. Plain values, for other processes."""

    name: str
    classes: tuple[str, ...]
    images: tuple[TrainingImage, ...]
    settings: AdaptationConfig
    steps: int
    width: int
    height: int
    prior: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    inference_steps: int
    guidance: float

    @property
    def data_sha256(self) -> str:
        """Over the pixels and the captions of all images."""
        lines = [[one.class_name, one.picture, list(one.captions)] for one in self.images]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()

    def identity(self, models: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
        """All that its weights follow from, in plain values."""
        settings = self.settings.model_dump(mode="json", exclude={"checkpoint_every", "scope", "min_images"})
        return {
            "name": self.name,
            "data": self.data_sha256,
            "settings": settings | {"steps": self.steps},
            "size": [self.width, self.height],
            "prior": [dataclasses.asdict(one) for one in self.prior],
            "model": dict(models),
            "versions": dict(versions),
        }

    def by_class(self) -> dict[str, int]:
        counts = Counter(image.class_name for image in self.images)
        return {name: counts[name] for name in self.classes}


def plan_adapters(config: Config, images: Sequence[TrainingImage]) -> tuple[Task, ...]:
    """The one of the dataset first, then those of classes in the config's order. UsageError if there are too
    few images for any."""
    wanted = config.adaptation
    groups: list[tuple[str, tuple[str, ...], list[TrainingImage]]] = []
    if wanted.scope in ("dataset", "both"):
        having = tuple(name for name in config.classes if any(one.class_name == name for one in images))
        groups.append((DATASET, having, list(images)))
    if wanted.scope in ("class", "both"):
        groups += [
            (f"class-{slug(name)}", (name,), [one for one in images if one.class_name == name])
            for name in config.classes
        ]
    tasks = tuple(
        _task(config, name, classes, own, images)
        for name, classes, own in groups
        if len(own) >= wanted.min_images
    )
    if not tasks:
        most = max((len(own) for _, _, own in groups), default=0)
        raise UsageError(
            f"no adapter can be trained: {counted(most, 'training image')} at most, and adaptation.min_images"
            f" is {wanted.min_images}",
            hint="images of validation, test and hold-out, and their near-duplicates, are no training images",
        )
    return tasks


def left_out(config: Config, tasks: Sequence[Task], images: Sequence[TrainingImage]) -> dict[str, int]:
    """The classes that no adapter has seen, with their training images."""
    seen = {name for task in tasks for name in task.classes}
    counts = Counter(image.class_name for image in images)
    return {name: counts[name] for name in config.classes if name not in seen}


def _task(
    config: Config,
    name: str,
    classes: tuple[str, ...],
    own: list[TrainingImage],
    everything: Sequence[TrainingImage],
) -> Task:
    wanted, made = config.adaptation, config.generation
    steps = wanted.steps or -(-len(own) * wanted.epochs // wanted.batch_size)
    prompts = [(one, prompt) for one in classes for prompt in config.classes[one].prompts]
    prior = (wanted.prior_images or PRIOR_IMAGES) if wanted.prior_weight else 0
    return Task(
        name=name,
        classes=classes,
        images=tuple(own),
        settings=wanted,
        steps=steps,
        width=made.width,
        height=made.height,
        prior=tuple(
            Sample(*prompts[place % len(prompts)], _seed("prior", wanted.seed, place))
            for place in range(prior)
        ),
        samples=tuple(_samples(config, classes, everything)),
        inference_steps=made.steps,
        guidance=made.guidance,
    )


def _samples(config: Config, classes: tuple[str, ...], images: Sequence[TrainingImage]) -> list[Sample]:
    """Classes in turn, each in the contexts of images of all classes."""
    contexts = sorted({one.contexts for one in images if one.contexts}) or [()]
    order = sorted(range(len(contexts)), key=lambda place: _seed("context", config.adaptation.seed, place))
    axes = config.facet_axes()
    applying = {one: {axis.name for axis in axes if axis.applies_to(one)} for one in classes}
    samples = []
    for place in range(SAMPLES):
        name, turn = classes[place % len(classes)], place // len(classes)
        context = contexts[order[(place % len(classes) + turn) % len(order)]]
        words = [words for facet, words in context if facet in applying[name]]
        captions = combine([config.classes[name].prompts, *words])
        seed = _seed("sample", config.adaptation.seed, place)
        samples.append(Sample(name, captions[turn % len(captions)], seed))
    return samples


def _seed(purpose: str, seed: int, place: int) -> int:
    text = f"{purpose}\n{seed}\n{place}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"balancer.adapt")
    return int.from_bytes(digest.digest(), "big")
