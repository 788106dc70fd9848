"""Stage 1: the tiny autoencoder between 128 x 128 pictures and 16 x 16 latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from embedded_training.checkpoints import load_checkpoint, save_checkpoint
from embedded_training.data import Renders
from embedded_training.loop import Loop, pixels, step_generator

CROP = 64
BATCH = 16
LEARNING_RATE = 2e-3
# Room for three colours, two slopes and some texture of each 8 x 8 patch. With four channels,
# green was learned last; with many, a small denoiser makes more mistakes.
LATENT_CHANNELS = 6


def build_autoencoder() -> AutoencoderTiny:
    """No blocks at full size, where they would cost more than all the others together."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )


def train_autoencoder(renders: Renders, work: Path, loop: Loop) -> AutoencoderTiny:
    torch.manual_seed(0)
    model = build_autoencoder().to(loop.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4)
    path = work / "autoencoder.pt"
    done = 0
    if (state := load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]

    def save(step: int) -> None:
        save_checkpoint(
            path,
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
        )

    def loss_at(step: int) -> torch.Tensor:
        return reconstruction_loss(model, _crops(renders, step, loop.device))

    loop.run("autoencoder", done, optimizer, LEARNING_RATE, loss_at, save)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def encode_all(model: AutoencoderTiny, renders: Renders, path: Path) -> torch.Tensor:
    """Latents of every render, kept in a file since each epoch uses them again."""
    if (state := load_checkpoint(path)) is not None:
        return state["latents"]
    count = len(renders.pictures)
    parts = [
        model.encode(pixels(renders.pictures[i : i + 64], model.device)).latents.cpu()
        for i in range(0, count, 64)
    ]
    latents = torch.cat(parts)
    save_checkpoint(path, {"latents": latents})
    return latents


def _crops(renders: Renders, step: int, device: torch.device) -> torch.Tensor:
    random = step_generator("autoencoder", step)
    indices = torch.randint(len(renders.pictures), (BATCH,), generator=random).sort().values
    pictures = pixels(renders.pictures[indices.numpy()], device)
    # Latent cells are 8 pixels wide; crops keep to that grid.
    top, left = (8 * torch.randint(9, (2,), generator=random)).tolist()
    crops = pictures[:, :, top : top + CROP, left : left + CROP]
    return crops.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    latents = model.encode(pictures).latents
    decoded = model.decode(latents).sample
    error = decoded - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    # Hue on its own: in brightness, a green leaf and a black olive are nearly the same.
    hue = (error[:, :2] - error[:, 1:]).abs().mean()
    fidelity = error.square().mean() + 0.3 * error.abs().mean() + 0.5 * edges + 0.3 * hue
    # The denoiser expects latents of mean 0 and spread 1 in every channel.
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return fidelity + 1e-2 * (mean.square().mean() + (spread - 1.0).square().mean())
