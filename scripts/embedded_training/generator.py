"""Stage 3: the text encoders and the denoising UNet, and the pipeline they are saved as."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from embedded_training import captions
from embedded_training.autoencoder import LATENT_CHANNELS
from embedded_training.checkpoints import load_checkpoint, publish, save_checkpoint
from embedded_training.data import SIZE, Renders
from embedded_training.loop import Loop, step_generator, worker, workers
from embedded_training.tokens import build_tokenizer

BATCH = 32
LEARNING_RATE = 1e-3
EMPTY_CAPTIONS = 0.1
EMA_DECAY = 0.999
# Caps the weight of nearly clean latents, whose loss says little about what the picture shows.
SNR_CAP = 5.0
TEXT_WIDTH = 64
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


class Denoiser(nn.Module):
    """The trained part of the pipeline, called as `StableDiffusionXLPipeline` calls it. `size` is the side of
    a picture in pixels; the text encoders know the words of `vocabulary`."""

    def __init__(
        self,
        size: int = SIZE,
        vocabulary: tuple[str, ...] = captions.vocabulary(),
        channels: tuple[int, int, int] = (48, 96, 128),
    ) -> None:
        super().__init__()
        tokenizer = build_tokenizer(vocabulary)
        # How the pipeline states size and crop to the UNet: the whole picture, uncropped.
        self.time_ids = (size, size, 0, 0, size, size)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=captions.MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        self.text_encoder = CLIPTextModel(text)
        self.text_encoder_2 = CLIPTextModelWithProjection(text)
        self.unet = UNet2DConditionModel(
            sample_size=size // 8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * TEXT_WIDTH,
            attention_head_dim=4,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=TEXT_WIDTH + 8 * len(self.time_ids),
        )

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        time_ids = torch.tensor([self.time_ids], dtype=latents.dtype, device=latents.device)
        added = {
            "text_embeds": second.text_embeds,
            "time_ids": time_ids.expand(len(latents), -1),
        }
        prediction: torch.Tensor = self.unet(latents, timesteps, words, added_cond_kwargs=added).sample
        return prediction


def train_generator(
    renders: Renders,
    latents: torch.Tensor,
    autoencoder: AutoencoderTiny,
    work: Path,
    folder: Path,
    loop: Loop,
) -> None:
    torch.manual_seed(1)
    model = Denoiser().to(loop.device).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    path = work / "generator.pt"
    done = 0
    if (state := load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    batches = Batches(renders, latents, autoencoder.config.scaling_factor, loop.device)

    if worker() == 0:
        export_pipeline(averaged, autoencoder, folder)

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        save_checkpoint(path, state)
        export_pipeline(averaged, autoencoder, folder)

    def loss_at(step: int) -> torch.Tensor:
        return batches.loss(model, step)

    def average(step: int) -> None:
        if worker() == 0:
            update_average(averaged, model, step)

    loop.run("generator", done, optimizer, LEARNING_RATE, loss_at, save, average)


class Batches:
    """Latents with captions, noised; a step's batch depends on its number alone."""

    def __init__(self, renders: Renders, latents: torch.Tensor, scale: float, device: torch.device) -> None:
        self._renders = renders
        self._latents = (latents * scale).contiguous(memory_format=torch.channels_last)
        self._device = device
        self._tokenizer = build_tokenizer(captions.vocabulary())
        self._noise = DDPMScheduler(**NOISE_SCHEDULE)
        self._tables = [renders.table(index) for index in range(len(latents))]

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        count = BATCH // workers()
        draw = step * workers() + worker()
        generator = step_generator("generator", draw)
        indices = torch.randint(len(self._latents), (count,), generator=generator)
        clean = self._latents[indices]
        tokens = self._tokens(indices.tolist(), random.Random(draw))
        return denoising_loss(model, self._noise, clean, tokens, generator, self._device)

    def _tokens(self, indices: list[int], rng: random.Random) -> torch.Tensor:
        texts = [self._caption(index, rng) for index in indices]
        encoded = self._tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=captions.MAX_TOKENS,
            return_tensors="pt",
        )
        tokens: torch.Tensor = encoded.input_ids
        return tokens

    def _caption(self, index: int, rng: random.Random) -> str:
        if rng.random() < EMPTY_CAPTIONS:
            return ""
        cell = self._renders.cell(index)
        return captions.random_caption(
            cell.class_name, cell.lighting, cell.burn_level, self._tables[index], rng
        )


def denoising_loss(
    model: nn.Module,
    schedule: DDPMScheduler,
    clean: torch.Tensor,
    tokens: torch.Tensor,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Error of the velocity that the model predicts for noised latents, weighted by their share of signal."""
    noise = torch.randn(clean.shape, generator=generator)
    # One timestep from each of as many even parts: less noise in the loss than free draws.
    spread = (torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) / len(clean)
    timesteps = (spread * schedule.config.num_train_timesteps).long()
    noisy = schedule.add_noise(clean, noise, timesteps)
    target = schedule.get_velocity(clean, noise, timesteps)
    signal = schedule.alphas_cumprod[timesteps]
    snr = signal / (1.0 - signal)
    weight = snr.clamp(max=SNR_CAP) / (snr + 1.0)
    prediction = model(noisy.to(device), timesteps.to(device), tokens.to(device))
    error = F.mse_loss(prediction, target.to(device), reduction="none")
    return (error.mean((1, 2, 3)) * weight.to(device)).mean()


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(EMA_DECAY, 1.0 - 1.0 / (step / 10 + 1))
    kept: list[torch.Tensor] = list(averaged.parameters())
    current: list[torch.Tensor] = list(model.parameters())
    torch._foreach_lerp_(kept, current, 1.0 - decay)


def export_pipeline(
    denoiser: Denoiser,
    autoencoder: AutoencoderTiny,
    folder: Path,
    vocabulary: tuple[str, ...] = captions.vocabulary(),
) -> None:
    """The pipeline in half precision, where `from_pretrained` finds it."""
    parts = copy.deepcopy(denoiser).half()
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(autoencoder).half(),
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=build_tokenizer(vocabulary),
        tokenizer_2=build_tokenizer(vocabulary),
        unet=parts.unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing"),
        # An empty caption was trained, so its embedding means "anything"; zeros would not.
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    publish(folder, lambda partial: pipeline.save_pretrained(partial, safe_serialization=True))
