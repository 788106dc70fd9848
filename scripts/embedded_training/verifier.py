"""Stage 2: the open_clip model that judges class, lighting and burn level of a picture."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from open_clip.model import CLIP
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from balancer.dataset.sample import BURN_LEVELS, CLASSES, LIGHTINGS, Picture
from balancer.verification.negatives import NEGATIVES
from embedded_training import captions
from embedded_training.checkpoints import load_checkpoint, publish, save_checkpoint
from embedded_training.data import SIZE, Cell, Renders
from embedded_training.loop import Loop, pixels, step_generator
from embedded_training.rubbish import KINDS, Rubbish
from embedded_training.tokens import build_tokenizer

BATCH = 64
KEPT_RUBBISH = 20
"""Beside BATCH true pictures and the rubbish that is made from them."""
LEARNING_RATE = 1.5e-3
LABEL_SMOOTHING = 0.02
FEWEST_NEGATIVES = 8
TRUE_WEIGHT = 0.3
"""Of the loss that teaches which negative is true: less than whether any is."""


@dataclass(frozen=True, slots=True)
class Property:
    """One thing to judge. Pictures that lack it have no label: -1."""

    name: str
    wordings: Mapping[str, tuple[str, ...]]

    def label(self, cell: Cell) -> int:
        value = {
            "class": cell.class_name,
            "lighting": cell.lighting,
            "burn_level": cell.burn_level,
        }[self.name]
        return -1 if value is None else list(self.wordings).index(value)


PROPERTIES = (
    Property("class", {name: captions.CLASS_WORDINGS[name] for name in CLASSES}),
    Property("lighting", {name: captions.LIGHTING_WORDINGS[name] for name in LIGHTINGS}),
    Property("burn_level", {name: captions.BURN_LEVEL_WORDINGS[name] for name in BURN_LEVELS}),
)


def model_config() -> dict[str, Any]:
    tokenizer = build_tokenizer(captions.verifier_vocabulary())
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 4,
            "width": 96,
            "head_width": 32,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": captions.MAX_TOKENS,
            "vocab_size": len(tokenizer),
            "width": 64,
            "heads": 2,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
            # Any name will do: for a local folder, open_clip takes the tokenizer in that folder.
            "hf_tokenizer_name": "word-level",
        },
    }


def train_verifier(
    renders: Renders,
    calibration: Renders,
    imitations: torch.Tensor,
    rubbish: Rubbish,
    work: Path,
    folder: Path,
    loop: Loop,
) -> None:
    """`imitations` are uint8 pictures (N, 3, H, W) of the first N renders as a generator would
    show them; half of the true pictures of every batch are of that kind."""
    torch.manual_seed(2)
    model = CLIP(**model_config()).to(loop.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    path = work / "verifier.pt"
    done = 0
    if (state := load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    export_verifier(model, folder)

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        save_checkpoint(path, state)

    def loss_at(step: int) -> torch.Tensor:
        pictures, cells = _batch(renders, imitations, step)
        generator = step_generator("rubbish", step)
        junk, kinds = rubbish.draw(KEPT_RUBBISH, pictures, step, generator)
        seen = torch.cat([pictures, _augmented(junk, generator)]).to(loop.device)
        return _loss(model, seen, cells, kinds, random.Random(step))

    loop.run("verifier", done, optimizer, LEARNING_RATE, loss_at, save)
    calibrate(model, calibration, loop.device)
    export_verifier(model, folder)


@torch.no_grad()
def imitate(autoencoder: AutoencoderTiny, renders: Renders, count: int) -> torch.Tensor:
    """Renders decoded from slightly wrong latents: soft and a little off, as generated ones are."""
    generator = step_generator("imitations", 0)
    parts = []
    for start in range(0, count, 64):
        soft = [_softened(renders.pictures[index], index) for index in range(start, min(start + 64, count))]
        part = autoencoder.encode(pixels(np.stack(soft), autoencoder.device)).latents.cpu()
        amount = 0.3 * torch.rand(len(part), 1, 1, 1, generator=generator)
        part = part + amount * part.std() * torch.randn(part.shape, generator=generator)
        decoded = autoencoder.decode(part).sample.clamp(-1.0, 1.0)
        parts.append(((decoded + 1.0) * 127.5).to(torch.uint8))
    return torch.cat(parts)


def _softened(picture: Picture, number: int) -> Picture:
    """As it is, blurred, or without its grain and small parts, in turn; far less than blurred rubbish."""
    random = np.random.default_rng(number)
    filters = (
        ImageFilter.GaussianBlur(0.0),
        ImageFilter.GaussianBlur(random.uniform(0.0, 2.5)),
        ImageFilter.MedianFilter(int(random.choice([3, 5, 7]))),
    )
    return np.asarray(Image.fromarray(picture).filter(filters[random.integers(len(filters))]))


def _batch(renders: Renders, imitations: torch.Tensor, step: int) -> tuple[torch.Tensor, list[Cell]]:
    generator = step_generator("verifier", step)
    plain = torch.randint(len(renders.pictures), (BATCH // 2,), generator=generator)
    soft = torch.randint(len(imitations), (BATCH // 2,), generator=generator)
    pictures = torch.cat(
        [
            pixels(renders.pictures[plain.sort().values.numpy()], torch.device("cpu")),
            imitations[soft].float() / 127.5 - 1.0,
        ]
    )
    indices = [*plain.sort().values.tolist(), *soft.tolist()]
    return _augmented(pictures, generator), [renders.cell(index) for index in indices]


def _augmented(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Small changes of contrast, brightness, tint, sharpness, place and grain."""
    count = len(pictures)

    def around_zero(spread: float, channels: int) -> torch.Tensor:
        shape = (count, channels, 1, 1)
        return spread * (2.0 * torch.rand(shape, generator=generator) - 1.0)

    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = 0.7 * torch.rand((count, 1, 1, 1), generator=generator)
    pictures = pictures + blur * (soft - pictures)
    pictures = (pictures + 1.0) * (1.0 + around_zero(0.06, 1) + around_zero(0.03, 3)) - 1.0
    down, right = (torch.randint(-4, 5, (2,), generator=generator)).tolist()
    pictures = F.pad(pictures, (4, 4, 4, 4), mode="replicate")
    pictures = pictures[:, :, 4 + down : 4 + down + SIZE, 4 + right : 4 + right + SIZE]
    grain = 0.03 * torch.rand((count, 1, 1, 1), generator=generator)
    return pictures + grain * torch.randn(pictures.shape, generator=generator)


def _loss(
    model: CLIP, pictures: torch.Tensor, cells: Sequence[Cell], kinds: Sequence[str], rng: random.Random
) -> torch.Tensor:
    """`pictures` are true ones, of `cells`, then rubbish of `kinds`."""
    every = model.encode_image(pictures, normalize=True)
    images, scale = every[: len(cells)], model.logit_scale.exp()
    total = images.new_zeros(())
    texts = {}
    for judged in PROPERTIES:
        labels = torch.tensor([judged.label(cell) for cell in cells], device=images.device)
        known = labels >= 0
        chosen = [_some(wordings, rng) for wordings in judged.wordings.values()]
        texts[judged.name] = text_embeddings(model, chosen)
        logits = scale * images[known] @ texts[judged.name].T
        total = total + F.cross_entropy(logits, labels[known], label_smoothing=LABEL_SMOOTHING)
    negatives = scale * every @ text_embeddings(model, [[wording] for wording in NEGATIVES]).T
    classes = scale * every @ texts[PROPERTIES[0].name].T
    total = total + _domain_loss(classes, negatives, len(cells), rng)
    return total + TRUE_WEIGHT * _true_negatives_loss(negatives[len(cells) :], kinds)


def _domain_loss(
    classes: torch.Tensor, negatives: torch.Tensor, true_pictures: int, rng: random.Random
) -> torch.Tensor:
    """Minus the logarithm of the classes' share for true pictures, which come first, and of the negatives'
    share for rubbish. Some negatives only: users add theirs, and drop those that name their classes."""
    some = rng.sample(range(len(NEGATIVES)), rng.randint(FEWEST_NEGATIVES, len(NEGATIVES)))
    odds = classes.logsumexp(1) - negatives[:, some].logsumexp(1)
    return F.softplus(-odds[:true_pictures]).mean() + F.softplus(odds[true_pictures:]).mean()


def _true_negatives_loss(negatives: torch.Tensor, kinds: Sequence[str]) -> torch.Tensor:
    """Minus the logarithm of the share of the negatives that are true, of pictures that have any."""
    described = [number for number, kind in enumerate(kinds) if KINDS[kind].true]
    true = torch.zeros_like(negatives, dtype=torch.bool)
    for number in described:
        true[number, [NEGATIVES.index(wording) for wording in KINDS[kinds[number]].true]] = True
    shares = negatives.log_softmax(1).masked_fill(~true, -torch.inf).logsumexp(1)
    return -shares[described].mean()


def _some(wordings: Sequence[str], rng: random.Random) -> list[str]:
    """Some of the wordings, with any opening: each alone has to work, and so has their mean."""
    chosen = rng.sample(wordings, rng.randint(1, len(wordings)))
    return [f"{rng.choice(captions.OPENINGS)} {wording}".strip() for wording in chosen]


def text_embeddings(model: CLIP, wordings: Sequence[Sequence[str]]) -> torch.Tensor:
    """For each value, the normalised mean of its wordings' normalised embeddings."""
    tokenizer = build_tokenizer(captions.verifier_vocabulary())
    tokens = tokenizer(
        [wording for value in wordings for wording in value],
        padding="max_length",
        truncation=True,
        max_length=captions.MAX_TOKENS,
        return_tensors="pt",
    ).input_ids.to(model.logit_scale.device)
    embedded = model.encode_text(tokens, normalize=True)
    means = [part.mean(0) for part in embedded.split([len(value) for value in wordings])]
    return F.normalize(torch.stack(means), dim=-1)


@torch.no_grad()
def calibrate(model: CLIP, renders: Renders, device: torch.device) -> None:
    """Set the logit scale to the one with the lowest loss on unseen renders."""
    model.eval()
    count = len(renders.pictures)
    images = torch.cat(
        [
            model.encode_image(pixels(renders.pictures[i : i + 64], device), normalize=True)
            for i in range(0, count, 64)
        ]
    )
    cells = [renders.cell(index) for index in range(count)]
    scales = torch.logspace(0.3, 2.3, 200, device=device)
    surprise = torch.zeros(len(scales), device=device)
    for judged in PROPERTIES:
        labels = torch.tensor([judged.label(cell) for cell in cells], device=device)
        known = labels >= 0
        cosines = images[known] @ text_embeddings(model, list(judged.wordings.values())).T
        losses = [F.cross_entropy(scale * cosines, labels[known]) for scale in scales]
        surprise += torch.stack(losses)
    best = scales[surprise.argmin()]
    print(f"logit scale {model.logit_scale.exp().item():.1f} calibrated to {best.item():.1f}")
    model.logit_scale.copy_(best.log())


def export_verifier(model: CLIP, folder: Path) -> None:
    """Weights in half precision, config and tokenizer, where open_clip's `local-dir:` finds them."""
    config = model_config()
    content = {
        "model_cfg": config,
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    weights = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}

    def write(partial: Path) -> None:
        (partial / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")
        save_file(weights, partial / "open_clip_model.safetensors")
        build_tokenizer(captions.verifier_vocabulary()).save_pretrained(partial)

    publish(folder, write)
