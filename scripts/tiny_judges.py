"""Small vision-language models with random weights, one for each family, laid out as published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.utils import logging

SIDE, PATCH = 32, 16
ANSWERS = ("Yes", "No", "yes", "no")
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SPREAD = {"initializer_range": 0.2}  # far from even odds

Save = Callable[[Path], None]


def _tokenizer(
    image: Sequence[str] = ("<image>",), begin: bool = False, named: Mapping[str, str] | None = None
) -> Any:
    """Every byte is a token, and so are the answers and the tokens that stand for an image."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*_SPECIAL, *image, *alphabet, *ANSWERS]
    made = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if begin:
        made.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(image),
        **({"extra_special_tokens": dict(named)} if named else {}),
    )


def _text(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return {
        **_SHAPE,
        **_SPREAD,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | settings


_VISION = {**_SHAPE, **_SPREAD, "image_size": SIDE, "patch_size": PATCH}
_PIXELS = {"size": {"height": SIDE, "width": SIDE}}


def _chat(image: str) -> str:
    return _CHAT.replace("IMAGE", image)


def _llava(folder: Path) -> None:
    tokenizer = _tokenizer(begin=True)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat("<image>"),
    ).save_pretrained(folder)


def _llava_next(folder: Path) -> None:
    tokenizer = _tokenizer(begin=True)
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.MistralConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    transformers.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=grid
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat("<image>\n"),
    ).save_pretrained(folder)


def _llava_onevision(folder: Path) -> None:
    tokenizer = _tokenizer(("<image>", "<video>"))
    grid = [[SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    transformers.LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(**_PIXELS, image_grid_pinpoints=grid),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(**_PIXELS),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>\n"),
    ).save_pretrained(folder)


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_PIXELS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}


def _qwen(kind: str, text: Mapping[str, Any], vision: Mapping[str, Any], pixels: Mapping[str, Any]) -> Save:
    def save(folder: Path) -> None:
        tokenizer = _tokenizer(_QWEN_TOKENS)
        start, end, image, video = map(tokenizer.convert_tokens_to_ids, _QWEN_TOKENS)
        config = getattr(transformers, f"{kind}Config")(
            text_config={**_text(tokenizer), **text},
            vision_config={**_SPREAD, "depth": 2, "num_heads": 2, **vision},
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
        )
        getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
        processor = {"Qwen2_5_VL": "Qwen2_5_VL", "Qwen3VL": "Qwen3VL"}.get(kind, "Qwen2VL")
        getattr(transformers, f"{processor}Processor")(
            transformers.Qwen2VLImageProcessor(**pixels),
            tokenizer,
            getattr(
                transformers, "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor"
            )(),
            chat_template=_chat(_QWEN_IMAGE),
        ).save_pretrained(folder)

    return save


_ROPE = {"rope_parameters": {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e6}}


def _idefics3(kind: str) -> Save:
    def save(folder: Path) -> None:
        named = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>")
        tokenizer = _tokenizer(named)
        config = getattr(transformers, f"{kind}Config")(
            vision_config=_VISION,
            text_config=transformers.LlamaConfig(**_text(tokenizer)),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
        getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
        pixels = getattr(transformers, f"{kind}ImageProcessor")(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        )
        more = [transformers.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
        getattr(transformers, f"{kind}Processor")(
            pixels, tokenizer, *more, image_seq_len=1, chat_template=_chat("<image>")
        ).save_pretrained(folder)

    return save


def _internvl(folder: Path) -> None:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(tuple(named.values()), named=named)
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            **{**_VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
        ),
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )
    transformers.InternVLForConditionalGeneration(config).save_pretrained(folder)
    transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(**_PIXELS, crop_to_patches=False),
        tokenizer,
        transformers.InternVLVideoProcessor(**_PIXELS),
        image_seq_length=1,
        chat_template=_chat("<IMG_CONTEXT>\n"),
    ).save_pretrained(folder)


def _paligemma(folder: Path) -> None:
    tokenizer = _tokenizer()
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=transformers.GemmaConfig(**_text(tokenizer, head_dim=16)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    pixels = transformers.SiglipImageProcessor(**_PIXELS)
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    processor = transformers.PaliGemmaProcessor(pixels, tokenizer)  # adds its tokens for places
    config.text_config.vocab_size = len(processor.tokenizer)
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def _gemma3(folder: Path) -> None:
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = _tokenizer(tuple(named.values()), begin=True, named=named)
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(**_text(tokenizer, head_dim=16)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        mm_tokens_per_image=4,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(**_PIXELS),
        tokenizer,
        chat_template="{{ bos_token }}" + _chat("<start_of_image>"),
        image_seq_length=4,
    ).save_pretrained(folder)


def _pixtral(folder: Path) -> None:
    named = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = _tokenizer(named, begin=True)
    config = transformers.LlavaConfig(
        vision_config=transformers.PixtralVisionConfig(**_VISION, head_dim=16),
        text_config=transformers.MistralConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 2 * SIDE}, patch_size=PATCH),
        tokenizer,
        patch_size=PATCH,
        chat_template="{{ bos_token }}" + _chat("[IMG]"),
    ).save_pretrained(folder)


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 64, **more}


JUDGES: Mapping[str, Save] = {
    "LLaVA": _llava,
    "LLaVA-NeXT": _llava_next,
    "LLaVA-OneVision": _llava_onevision,
    "Pixtral": _pixtral,
    "Qwen2-VL": _qwen("Qwen2VL", _ROPE, {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, _QWEN_PIXELS),
    "Qwen2.5-VL": _qwen("Qwen2_5_VL", _ROPE, _qwen_vision(out_hidden_size=32), _QWEN_PIXELS),
    "Qwen3-VL": _qwen(
        "Qwen3VL",
        {**_ROPE, "head_dim": 16},
        _qwen_vision(
            out_hidden_size=32, patch_size=PATCH, num_position_embeddings=64, deepstack_visual_indexes=[0]
        ),
        _QWEN_PIXELS | {"patch_size": PATCH},
    ),
    "Idefics3": _idefics3("Idefics3"),
    "SmolVLM": _idefics3("SmolVLM"),
    "InternVL": _internvl,
    "PaliGemma": _paligemma,
    "Gemma 3": _gemma3,
}


def save_judge(name: str, folder: Path, seed: int = 0) -> Path:
    """A judge of this family."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    JUDGES[name](folder)
    return folder
