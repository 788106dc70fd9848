"""A judge of labels that shares nothing with the verifier: its own network, renders and blur.

It is a small convolutional network, trained on renders alone. It has seen no picture of the generator,
none of the autoencoder, and none that the verifier was trained, calibrated or measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from balancer.dataset.sample import BURN_LEVELS, CLASSES, LIGHTINGS, Picture
from embedded_training.data import Cell, Renders
from embedded_training.loop import Loop, pixels, step_generator

BATCH = 64
LEARNING_RATE = 2e-3
WIDTHS = (24, 48, 96, 128, 128)
BLUR_KERNEL = 9
MAX_BLUR = 1.6
"""Standard deviation in pixels; generated pictures are softer than renders."""
MAX_NOISE = 0.06
"""Standard deviation, where black and white are 2 apart."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "class": tuple(CLASSES),
    "lighting": tuple(LIGHTINGS),
    "burn_level": tuple(BURN_LEVELS),
}


class LabelJudge(nn.Module):
    """Five strided convolutions, the mean and the maximum of what they see, one head per property."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * WIDTHS[-1], len(values)) for name, values in VALUES.items()}
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.body(images)
        summary = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1)
        return {name: head(summary) for name, head in self.heads.items()}

    @torch.inference_mode()
    def answers(self, pictures: Picture) -> dict[str, list[str]]:
        """For each property the likeliest value of each picture, whether the property applies or not."""
        self.eval()
        answers: dict[str, list[str]] = {name: [] for name in VALUES}
        for start in range(0, len(pictures), BATCH):
            images = pixels(pictures[start : start + BATCH], torch.device("cpu"))
            for name, logits in self(images).items():
                answers[name] += [VALUES[name][index] for index in logits.argmax(1).tolist()]
        return answers


def wanted_value(cell: Cell, name: str) -> str | None:
    return {"class": cell.class_name, "lighting": cell.lighting, "burn_level": cell.burn_level}[name]


def train_judge(renders: Renders, steps: int) -> LabelJudge:
    """Train on softened and noisy `renders`, whose cells must come in a fixed turn."""
    torch.manual_seed(5)
    judge = LabelJudge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=0.02)

    def loss_at(step: int) -> torch.Tensor:
        generator = step_generator("label judge", step)
        chosen = torch.randint(len(renders.pictures), (BATCH,), generator=generator).tolist()
        images = pixels(renders.pictures[chosen], torch.device("cpu"))
        return _loss(judge(soften(images, generator)), [renders.cell(index) for index in chosen])

    judge.train()
    loop = Loop(steps, torch.device("cpu"))
    loop.run("label judge", 0, optimizer, LEARNING_RATE, loss_at, save=lambda step: None)
    return judge.eval()


def soften(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur each half of the batch by an amount of its own, and add noise to every image."""
    blurred = []
    for half in images.chunk(2):
        sigma = 0.1 + MAX_BLUR * torch.rand(1, generator=generator).item()
        blurred.append(gaussian_blur(half, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma]))
    amount = MAX_NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return (torch.cat(blurred) + amount * noise).clamp(-1.0, 1.0)


def _loss(logits: Mapping[str, torch.Tensor], cells: Sequence[Cell]) -> torch.Tensor:
    total = torch.zeros(())
    for name, values in VALUES.items():
        wanted = [wanted_value(cell, name) for cell in cells]
        known = [index for index, value in enumerate(wanted) if value is not None]
        labels = torch.tensor([values.index(value) for value in wanted if value is not None])
        total = total + F.cross_entropy(logits[name][known], labels)
    return total
