"""Small transformers models with random weights, saved in the layout in which real ones are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.utils import logging

SIDE = 32
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER {% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT{% endif %}"
)
ANSWERS = ("Yes", "No", "yes", "no")
WORDS = (
    "<pad> <bos> <eos> <unk> <image> USER ASSISTANT Is this a basic burnt pizza dim backlit slice very one ?"
)


def save_vision_language_model(
    folder: Path, chat_template: str | None = CHAT_TEMPLATE, answers: Sequence[str] = ANSWERS, seed: int = 0
) -> Path:
    """A Llava of two layers that sees images of 32 x 32 pixels as four tokens."""
    logging.disable_progress_bar()
    words = [*WORDS.split(), *answers]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,  # far from even odds
    }
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=16, **sizes),
            text_config=LlamaConfig(vocab_size=len(words), pad_token_id=0, **sizes),
            image_token_id=words.index("<image>"),
        )
    )
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    ).save_pretrained(folder)
    return folder


def save_image_classifier(folder: Path, labels: Sequence[str], seed: int = 0) -> Path:
    """A vision transformer of one layer."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_image_encoder(folder: Path, kind: str = "vit", seed: int = 0) -> Path:
    """`vit`, `registers` (a transformer with register tokens), `convolutional`, or `timm`, of four layers."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    if kind == "timm":
        folder.mkdir(exist_ok=True)
        model = timm.create_model("test_vit", pretrained=False, img_size=SIDE)
        timm.models.save_for_hf(model, str(folder), model_args={"img_size": SIDE}, safe_serialization=True)
        return folder
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE}
    encoders = {
        "vit": lambda: ViTModel(ViTConfig(intermediate_size=32, patch_size=8, **sizes)),
        "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(patch_size=8, **sizes)),
        "convolutional": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4)),
    }
    encoders[kind]().save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
