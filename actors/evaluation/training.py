"""Train one arm with one seed, and predict the classes of held-out images."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from actors.evaluation.recipe import Looked, Recipe
from actors.models.device import pick_device
from actors.models.memory.limits import is_out_of_memory
from balancer.errors import UnavailableError, UsageError, WeightsError
from balancer.evaluation.arms import Job, Pool, draw, members_of
from balancer.storage.regular_files import read_regular

WEIGHT_DECAY = 0.01

EVALUATED_AT_ONCE = 128

CHANGED_ALIKE = 4
"""RandAugment takes a few operations for so many images together: one call an image takes most of the time of
a small network."""

MAX_WEIGHT_BYTES = 10_000_000_000

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that published weights were trained on."""


def prepare(recipe: Recipe) -> None:
    """What holds for the process of a training: its threads, and that the same seed gives the same."""
    if not recipe.num_gpus:
        torch.set_num_threads(max(1, int(recipe.num_cpus)))
    torch.use_deterministic_algorithms(True, warn_only=True)


def train(recipe: Recipe, pool: Pool, training: Looked, held_out: Looked, job: Job) -> list[int]:
    """The predicted label of each held-out image. The same arguments give the same on one CPU."""
    device = pick_device("cuda" if recipe.num_gpus else "cpu")
    with torch.random.fork_rng(), _out_of_memory_told(recipe):
        torch.manual_seed(job.seed)
        model = make_model(recipe, training, len(recipe.classes)).to(device)
        seen, prior = _seen(job, pool, len(recipe.classes))
        shift = (torch.log(prior) if job.arm.adjusted else torch.zeros(len(prior))).to(device)
        # Fused: the usual one takes a third of the time of a small network.
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=job.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.learning_rate, total_steps=recipe.steps)
        batches = draw(job, pool, recipe.steps * recipe.batch_size).reshape(recipe.steps, -1)
        model.train()
        for places in batches:
            # Indexing copies: what comes from an object store is read-only.
            images = _changed(torch.from_numpy(training[places]), job.arm.augmented).to(device)
            labels = torch.from_numpy(pool.labels[places]).to(device)
            loss = F.cross_entropy(model(_as_input(images)) + shift, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return predict(model, held_out, seen, device)


@torch.inference_mode()
def predict(model: nn.Module, images: Looked, seen: torch.Tensor, device: torch.device) -> list[int]:
    """Among the classes `seen` in training: of another one a model can say nothing."""
    model.eval()
    predicted: list[int] = []
    for start in range(0, len(images), EVALUATED_AT_ONCE):
        part = torch.from_numpy(images[start : start + EVALUATED_AT_ONCE].copy())
        logits = torch.nan_to_num(model(_as_input(_changed(part, False).to(device))).float(), nan=-1e30)
        predicted += logits.masked_fill(~seen.to(device), -math.inf).argmax(1).tolist()
    return predicted


def _seen(job: Job, pool: Pool, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which classes have training images, and how frequent each is; one without is taken for rare."""
    counts = torch.from_numpy(np.bincount(pool.labels[members_of(job, pool)], minlength=classes)).float()
    return counts > 0, (counts / counts.sum()).clamp(min=1e-6)


def _changed(images: torch.Tensor, augmented: bool) -> torch.Tensor:
    """By RandAugment, if asked for: pixels now, embeddings as one of their changed copies."""
    if images.dim() == 3:
        copies = images.shape[1]
        which = torch.randint(1, copies, (len(images),)) if augmented and copies > 1 else None
        return images[:, 0] if which is None else images[torch.arange(len(images)), which]
    if not augmented:
        return images
    return torch.cat([rand_augment()(part) for part in images.split(CHANGED_ALIKE)])


def rand_augment() -> Any:
    from torchvision.transforms.v2 import RandAugment

    return RandAugment(num_ops=2, magnitude=9)


def _as_input(images: torch.Tensor) -> torch.Tensor:
    if images.dim() == 2:
        return images.float()
    scaled = images.float().div(255)
    mean, deviation = (torch.tensor(each, device=images.device)[:, None, None] for each in (MEAN, DEVIATION))
    return (scaled - mean) / deviation


def make_model(recipe: Recipe, images: Looked, classes: int) -> nn.Module:
    if images.ndim == 3:
        return nn.Linear(images.shape[2], classes)
    if recipe.architecture is None:
        return small_network(classes)
    return named_network(recipe.architecture, classes, recipe.weights)


def small_network(classes: int) -> nn.Module:
    """For images of 32 x 32 pixels, of about 25,000 weights."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    features = [*layer(3, 16), *layer(16, 32), *layer(32, 64)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def named_network(name: str, classes: int, weights: str | None) -> nn.Module:
    """An architecture of torchvision, or `timm:NAME`. UsageError if there is none of that name, WeightsError
    if the weights are not its own."""
    model: nn.Module
    if name.startswith("timm:"):
        import timm

        plain = name.removeprefix("timm:")
        if not timm.is_model(plain):
            raise UsageError(
                f"evaluation.architecture: timm has no {plain!r}", hint=_like(plain, timm.list_models())
            )
        model = timm.create_model(plain, pretrained=False, num_classes=classes)
    else:
        from torchvision import models

        if name not in models.list_models(module=models):
            raise UsageError(
                f"evaluation.architecture: torchvision has no {name!r}",
                hint=_like(name, models.list_models(module=models)),
            )
        model = models.get_model(name, weights=None, num_classes=classes)
    if weights is not None:
        load_weights(model, Path(weights))
    return model


def _like(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else "timm:NAME names an architecture of timm"


def load_weights(model: nn.Module, path: Path) -> None:
    """All but the last layer's, if those are of other classes. WeightsError if others are missing."""
    try:
        tensors = load(read_regular(path, max_bytes=MAX_WEIGHT_BYTES, follow_links=True))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors: {error}") from error
    own = model.state_dict()
    fitting = {name: each for name, each in tensors.items() if name in own and own[name].shape == each.shape}
    last = {name for name in own if own[name].shape[:1] and name.rpartition(".")[0] in _last_layers(model)}
    missing = [name for name in own if name not in fitting and name not in last]
    if missing:
        raise WeightsError(
            f"{path}: lacks {len(missing)} tensors of this architecture, such as {missing[0]}",
            hint="evaluation.weights must be the weights of evaluation.architecture",
        )
    model.load_state_dict(fitting, strict=False)


def _last_layers(model: nn.Module) -> set[str]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return set(linear[-1:])


@contextlib.contextmanager
def _out_of_memory_told(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"the GPU has too little memory for batches of {recipe.batch_size} images of"
            f" {recipe.image_size} pixels",
            hint="lower evaluation.batch_size or evaluation.image_size",
        ) from error
