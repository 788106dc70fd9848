"""Train a small pipeline of SDXL's architecture on pictures of clothes: a stand-in for a model that knows
them, or for one that has seen a user's few images alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler
from numpy.typing import NDArray
from PIL import Image

from balancer.dataset.sample import Picture
from embedded_training.autoencoder import LATENT_CHANNELS, reconstruction_loss
from embedded_training.captions import MAX_TOKENS, SPECIAL_TOKENS, words
from embedded_training.generator import (
    EMPTY_CAPTIONS,
    NOISE_SCHEDULE,
    Denoiser,
    denoising_loss,
    export_pipeline,
    update_average,
)
from embedded_training.loop import Loop, pixels, step_generator
from embedded_training.tokens import build_tokenizer

SIDE = 64
"""Of a picture in pixels: the smallest that a run makes."""

BATCH = 32
AUTOENCODER_STEPS, DENOISER_STEPS = 400, 1_500
CHANNELS = 32, 64, 96
AUTOENCODER_RATE, DENOISER_RATE = 2e-3, 1e-3
CPU = torch.device("cpu")

DONE = "model_index.json"


def enlarged(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def train_pipeline(
    pictures: Picture,
    labels: NDArray[np.int64],
    wordings: Sequence[str],
    folder: Path,
    *,
    quick: bool = False,
) -> Path:
    """`pictures` are (n, height, width, 3); label i is called `wordings[i]`. Does nothing if `folder` has a
    pipeline."""
    if (folder / DONE).exists():
        return folder
    vocabulary = (*SPECIAL_TOKENS, *sorted({word for text in wordings for word in words(text)}))
    autoencoder = _train_autoencoder(pictures, Loop(AUTOENCODER_STEPS, CPU, 10**9))
    latents = _encode(autoencoder, pictures)
    autoencoder.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    texts = _tokens(wordings, vocabulary)
    model = _train_denoiser(
        latents * autoencoder.config.scaling_factor,
        texts[torch.as_tensor(labels)],
        texts[len(wordings)],
        vocabulary,
        Loop(DENOISER_STEPS, CPU, 10**9),
    )
    export_pipeline(model, autoencoder, folder, vocabulary)
    return folder


def _train_autoencoder(pictures: Picture, loop: Loop) -> AutoencoderTiny:
    torch.manual_seed(0)
    model = AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24, 24),
        decoder_block_out_channels=(24, 24, 24, 24),
        num_encoder_blocks=(0, 0, 1, 2),
        num_decoder_blocks=(2, 1, 0, 0),
        latent_channels=LATENT_CHANNELS,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), AUTOENCODER_RATE, weight_decay=1e-4)

    def loss_at(step: int) -> torch.Tensor:
        drawn = torch.randint(len(pictures), (BATCH,), generator=step_generator("autoencoder", step))
        return reconstruction_loss(model, _large(pictures, drawn.numpy()))

    loop.run("autoencoder", 0, optimizer, AUTOENCODER_RATE, loss_at, lambda _: None)
    return model.eval().requires_grad_(False)


def _large(pictures: Picture, places: NDArray[np.int64]) -> torch.Tensor:
    return pixels(np.stack([enlarged(pictures[place]) for place in places]), CPU)


@torch.no_grad()
def _encode(model: AutoencoderTiny, pictures: Picture) -> torch.Tensor:
    places = np.arange(len(pictures))
    parts = np.array_split(places, -(-len(places) // 256))
    return torch.cat([model.encode(_large(pictures, part)).latents for part in parts])


def _tokens(wordings: Sequence[str], vocabulary: tuple[str, ...]) -> torch.Tensor:
    """Of each wording, and last of an empty caption, which stands for anything."""
    encoded = build_tokenizer(vocabulary)(
        [*wordings, ""], padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    tokens: torch.Tensor = encoded.input_ids
    return tokens


def _train_denoiser(
    latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor, vocabulary: tuple[str, ...], loop: Loop
) -> Denoiser:
    torch.manual_seed(1)
    model = Denoiser(SIDE, vocabulary, CHANNELS).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), DENOISER_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = DDPMScheduler(**NOISE_SCHEDULE)

    def loss_at(step: int) -> torch.Tensor:
        generator = step_generator("generator", step)
        drawn = torch.randint(len(latents), (BATCH,), generator=generator)
        chance = random.Random(step)
        said = torch.stack([empty if chance.random() < EMPTY_CAPTIONS else tokens[one] for one in drawn])
        return denoising_loss(model, schedule, latents[drawn], said, generator, CPU)

    loop.run(
        "generator",
        0,
        optimizer,
        DENOISER_RATE,
        loss_at,
        lambda _: None,
        lambda step: update_average(averaged, model, step),
    )
    return averaged
