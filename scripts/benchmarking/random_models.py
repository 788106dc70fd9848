"""SDXL and CLIP ViT-L/14 as published, but with random weights: the same arithmetic, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# From config.json of each part of stabilityai/stable-diffusion-xl-base-1.0.
UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
TEXT_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}

# The same at a thousandth of the size, to test the benchmark without a GPU.
TINY_UNET = UNET | {
    "block_out_channels": (32, 32, 32),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 32 + 6 * 256,
}
TINY_VAE = VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}

TOKENS = 77
VERIFIER = "ViT-L-14"
TINY_VERIFIER = "ViT-S-32-alt"


def save_sdxl(folder: Path, dtype: torch.dtype, device: torch.device, tiny: bool = False) -> None:
    """Everything in diffusers layout, as safetensors of `dtype`."""
    unet, vae, text, text_2 = (
        (TINY_UNET, TINY_VAE, TINY_TEXT, TINY_TEXT) if tiny else (UNET, VAE, TEXT, TEXT_2)
    )
    with device:
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=diffusers.AutoencoderKL(**vae),
            text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
            text_encoder_2=transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text_2)),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=diffusers.UNet2DConditionModel(**unet),
            scheduler=diffusers.EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
    pipeline.to(dtype=dtype).save_pretrained(folder, safe_serialization=True)


def save_verifier(folder: Path, tiny: bool = False) -> None:
    """In open_clip layout."""
    name = TINY_VERIFIER if tiny else VERIFIER
    model, _, _ = open_clip.create_model_and_transforms(name)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    document = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word each of a handful, in CLIP's number of tokens: what the words are makes no difference here."""
    words = ["<pad>", "<bos>", "<eos>", *"a photo of pizza burnt dim bright , .".split()]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<pad>",
        model_max_length=TOKENS,
    )
