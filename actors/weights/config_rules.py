"""Refuse model configs that name code, another repository, a path or a kernel.

Model libraries look for these in many places that change with their versions. So the rules do not follow the
libraries but check every key and every string at any depth. open_clip has a closed set of keys; all others
are refused.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from actors.weights.file_rules import NO_CODE_HINT, TOKENIZER
from balancer.errors import WeightsError

_CODE = frozenset(
    "auto_map trust_remote_code code_revision custom_pipeline custom_generate kernel_config"
    " use_kernels".split()
)

_ORIGINS = frozenset("_name_or_path name_or_path special_tokens_map_file origin_url _ignore_files".split())
"""The publisher's own paths. Most published configs have some; they are hidden from loaders."""

_DEEPEST = 50

_MOST_VALUES = 200_000
"""Values per config. Published ones have up to 45,000: two per label of 21,843. Each takes 0.04 ms."""

_LONGEST_KEY = 200
"""Keys of model libraries are words; every rule checks every key."""

_ELSEWHERE_KEY = re.compile(
    r"(.*_)?(files?|paths?|dirs?|directory|folder|subfolder|revision|repo|repo_id|repository|url|uri|hub_id)"
    r"|.*name_or_path|init_inputs"
)
_ELSEWHERE = re.compile(
    r"[\w.@-]+/[\w./@:-]*[\w@:]"  # organisation/name, folder/file, owner/kernel:function
    r"|[/~\\].*|\.{1,2}[/\\].*"
    r"|(hf[-_]hub|local[-_]dir|file|https?|s3|gs|az)[:].*"  # also in capitals, for timm
    r"|.*\.(py|pyc|so)",
    re.DOTALL | re.IGNORECASE,
)
_TEXT = re.compile(
    r"id2label|label2id|label_names|label_descriptions|chat_template|.*_tokens?|added_tokens_decoder"
    r"|task_specific_params|license|description|hf_tokenizer_name"
)
"""Keys of free text. `hf_tokenizer_name` is one: the tokenizer always comes from the folder."""

_SLUG = re.compile(r"[\w.-]+")
_BUILT_IN = re.compile(r"architecture|timm_model_name|(.*_)?backbone")
"""Keys that name a model of timm or transformers. With a colon or a slash they would name one elsewhere."""

_CLASS_NAME = re.compile(r"\w+")

_ATTENTION = re.compile(r"_?attn_implementation(_internal)?|_?experts_implementation")
_BUILT_IN_ATTENTION = frozenset({"eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm"})
_FLASH_ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""If the package is missing, transformers downloads the kernel from the hub."""

_COUNT = re.compile(r"(.*_)?(layers?|blocks?|depths?|heads?|experts?|repeats?)(_per_block)?")
_MOST_COUNTED = 10_000
"""Published models have up to 130 layers and 512 experts. `build_limit` limits the product of all sizes."""

_IMAGE_SIDE = re.compile(r"height|width|size|crop_size|image_size|(shortest|longest)_edge")
_LARGEST_SIDE = 8_192
"""Every image is resized to this before the model sees it. Published models have up to 2,048."""

_MOST_PATCHES = 2**16
"""Of an image: a processor writes a token for each into the question. Published models have up to 17,000."""

_IN_PIXELS = re.compile(r"Qwen|Glm|Ernie|Paddle|Keye|Video")
"""Processors whose edges are limits on the number of pixels of an image."""

_PROCESSORS = ("image_processor_type", "video_processor_type")

_MEAN_OR_STD = re.compile(r"(image_)?(mean|std)")

_FACTOR = re.compile(r"(up|down)sampl\w*_factor")
_LARGEST_FACTOR = 64
"""Published autoencoders have up to 32."""

_STAGE_FACTOR = re.compile(r"upsampling_scaling_factor")
_LARGEST_STAGE_FACTOR = 2
"""Every stage but the last enlarges the image by this; published models have 2."""

_STAGES = re.compile(r"(.*_)?block_out_channels|num_(en|de)coder_blocks|(up|down)_block_types")
"""Lists with an entry per stage of an autoencoder or U-Net. Each additional stage of a decoder quadruples the
pixels of an image, whatever size was asked for."""

_SCHEDULER = {"num_train_timesteps": (1, 100_000), "original_inference_steps": (1, 100_000)}
"""Published models have 1,000 and 50. Loaders build lists of this length, some in loops."""

_ORDER = re.compile(r"(.*_)?order")
_HIGHEST_ORDER = 10
"""Order of a solver; published models have 3."""

_PREDICTIONS = frozenset("epsilon sample v_prediction flow_prediction flow trigflow".split())

_SIZE = re.compile(r"(.*_)?(size|dim|dims|channels?|width|features?|resolution|positions?|length)")
_LARGEST_SIZE = 2**26
"""Vocabularies have up to 300,000 words, contexts up to 10 million."""

_NO_LIMIT_BELOW = 10**29
"""transformers writes 10**30 as `model_max_length` if there is no limit."""

_PADDED = re.compile(r"model_max_length")
_LONGEST_PADDED = 2**20
"""Pipelines pad each text of a batch to this length, in Python lists. Published ones have up to 131,072."""

_LISTED = re.compile(r"num_.*|extra_ids|offset")
_MOST_LISTED = 300_000
"""Labels and tokens that a loader creates one by one in Python, before any tensor: as many as the largest
vocabularies have."""

_PLAIN = re.compile(r".*(theta|base|scale|pixels|factor|max_period).*")
_LARGEST_WHOLE = 2**27
"""Limit of all other integers; no published config exceeds it."""

_LIMITS = (
    (_COUNT, _MOST_COUNTED),
    (_SIZE, _LARGEST_SIZE),
    (_FACTOR, _LARGEST_FACTOR),
    (_STAGE_FACTOR, _LARGEST_STAGE_FACTOR),
    (_LISTED, _MOST_LISTED),
)

_OF_IMAGES = ("open_clip_config.json", "preprocessor_config.json", "processor_config.json")

_QUANTISED = frozenset({"awq", "bitsandbytes", "compressed-tensors", "gptq"})
"""Other methods download kernels from the hub, or name classes."""

_Keys = tuple[str, ...]


def checked_config(config: Mapping[str, Any], name: str, model: str) -> dict[str, Any]:
    """The part of the file `name` that a loader may see. Raises WeightsError with model, file and key."""
    for number, (keys, value) in enumerate(_walk(config, ()), start=1):
        if number > _MOST_VALUES:
            _refuse(f"{name} has more than {_MOST_VALUES:,} values", model)
        _refuse_key(keys, value, name, model)
        if name.endswith(_OF_IMAGES):
            _refuse_image(keys, value, config, name, model)
        elif name.endswith("scheduler_config.json"):
            _refuse_schedule(keys, value, name, model)
    _refuse_uneven_stages(config, name, model)
    if name.endswith(_OF_IMAGES[1:]) and not _counts_pixels(config):
        _refuse_small_patches(config, name, model)
    if name == "open_clip_config.json":
        return _open_clip_config(config, name, model)
    kept = _without_origins(config)
    assert isinstance(kept, dict)
    if isinstance(arguments := kept.get("model_args"), dict):
        arguments.pop("num_classes", None)  # timm writes it, and transformers passes its own
    return kept


def _walk(value: Any, keys: _Keys) -> Iterator[tuple[_Keys, Any]]:
    """Every value below a key, at any depth; list items have the key of their list."""
    if len(keys) > _DEEPEST:
        raise RecursionError
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield (*keys, key), part
            yield from _walk(part, (*keys, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield keys, part
            yield from _walk(part, keys)


def _without_origins(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without_origins(part)
            for key, part in value.items()
            if key not in _ORIGINS and not key.endswith("_file")  # loaders find these files themselves
        }
    return [_without_origins(part) for part in value] if isinstance(value, list) else value


def _refuse_key(keys: _Keys, value: Any, name: str, model: str) -> None:
    key = keys[-1]
    if len(key) > _LONGEST_KEY:
        _refuse(f"{name}: a key has {len(key):,} characters, it begins with {key[:40]!r}", model)
    if key in _ORIGINS or not value:
        return
    if key in _CODE:
        at = f" at {_dotted(keys)}" if len(keys) > 1 else ""
        _refuse(f"{name} has {'an' if key[0] in 'aeiou' else 'a'} {key}{at}, so the model brings code", model)
    if isinstance(value, str):
        _refuse_string(keys, value, name, model)
    elif isinstance(value, int | float):
        _refuse_number(keys, value, name, model)
    elif key == "_class_name":
        _refuse(f"{name}: {_dotted(keys)} is not a class name", model)
    elif key == "quantization_config" and isinstance(value, Mapping):
        method = str(value.get("quant_method"))
        if method not in _QUANTISED:
            _refuse(f"{name}: {_dotted(keys)} is of method {method!r}, which may download kernels", model)


def _refuse_number(keys: _Keys, value: float, name: str, model: str) -> None:
    if keys[-1] == "model_max_length" and value > _NO_LIMIT_BELOW:
        return
    limits = _LIMITS if "/" not in name else (*_LIMITS, (_PADDED, _LONGEST_PADDED))
    for pattern, limit in limits:
        if _matches(pattern, keys[-1]) and not abs(value) <= limit:
            _refuse(f"{name}: {_dotted(keys)} is {value:.4g}; the limit is {limit:,}", model)
    if isinstance(value, int) and abs(value) > _LARGEST_WHOLE and not _matches(_PLAIN, keys[-1]):
        _refuse(f"{name}: {_dotted(keys)} is {value:.4g}; the limit is {_LARGEST_WHOLE:,}", model)


def _refuse_uneven_stages(config: Mapping[str, Any], name: str, model: str) -> None:
    stages = {
        key: len(value) for key, value in config.items() if isinstance(value, list) and _matches(_STAGES, key)
    }
    if len(set(stages.values())) > 1:
        listed = ", ".join(f"{key} {count}" for key, count in sorted(stages.items()))
        _refuse(f"{name}: its lists of stages differ in length: {listed}", model)


def _refuse_image(keys: _Keys, value: Any, config: Mapping[str, Any], name: str, model: str) -> None:
    """Check the numbers of image preprocessing."""
    key = keys[-1]
    if _matches(_MEAN_OR_STD, key) and value is not None and not _is_level(value, key.endswith("std")):
        least = ", above 0" if key.endswith("std") else ""
        _refuse(f"{name}: {_dotted(keys)} is not one finite number or three of them{least}", model)
    if _matches(_IMAGE_SIDE, key) and "text_cfg" not in keys and type(value) in (int, float):
        if "_edge" in key and _counts_pixels(config):
            return
        if not 1 <= value <= _LARGEST_SIDE:
            _refuse(
                f"{name}: {_dotted(keys)} is {value:.4g}; an image has from 1 to {_LARGEST_SIDE:,} pixels"
                " a side",
                model,
            )


def _refuse_small_patches(config: Mapping[str, Any], name: str, model: str) -> None:
    numbers = [(keys[-1], value) for keys, value in _walk(config, ()) if type(value) in (int, float)]
    patches = [value for key, value in numbers if key == "patch_size" and value > 0]
    sides = [value for key, value in numbers if _matches(_IMAGE_SIDE, key)]
    if patches and sides and (count := (max(sides) / min(patches)) ** 2) > _MOST_PATCHES:
        _refuse(f"{name}: an image would have {count:,.0f} patches; the limit is {_MOST_PATCHES:,}", model)


def _counts_pixels(config: Mapping[str, Any]) -> bool:
    """Whether all processors read edges as numbers of pixels."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    kinds = {str(part[key]) for part in parts for key in _PROCESSORS if part.get(key)}
    return bool(kinds) and all(map(_IN_PIXELS.match, kinds))


def _is_level(value: Any, is_std: bool) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) in (1, 3) and all(
        type(one) in (int, float) and math.isfinite(one) and (one > 0 or not is_std) for one in values
    )


def _refuse_schedule(keys: _Keys, value: Any, name: str, model: str) -> None:
    key = keys[-1]
    bounds = (0, _HIGHEST_ORDER) if _matches(_ORDER, key) else _SCHEDULER.get(key)
    if bounds and value is not None and not (isinstance(value, int) and bounds[0] <= value <= bounds[1]):
        _refuse(
            f"{name}: {_dotted(keys)} is {_quoted(value)}; it must be from {bounds[0]} to {bounds[1]:,}",
            model,
        )
    if key == "prediction_type" and value is not None and not _is_prediction(value):
        _refuse(
            f"{name}: {_dotted(keys)} is {_quoted(value)}, not one of {', '.join(sorted(_PREDICTIONS))}",
            model,
        )


def _is_prediction(value: Any) -> bool:
    return isinstance(value, str) and value in _PREDICTIONS


def _quoted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else repr(value)[:80]


@functools.lru_cache(maxsize=10_000)
def _matches(pattern: re.Pattern[str], key: str) -> bool:
    return pattern.fullmatch(key) is not None


def _refuse_string(keys: _Keys, value: str, name: str, model: str) -> None:
    key = keys[-1]
    if any(_matches(_ATTENTION, part) for part in keys) and not _is_built_in_attention(value):
        _refuse(f"{name}: {_dotted(keys)} names {value[:80]!r}, a kernel that is not built in", model)
    if key == "model_type" and not _SLUG.fullmatch(value):
        _refuse(f"{name}: {_dotted(keys)} {value[:80]!r} is not a model type of transformers", model)
    if key == "_class_name" and not _CLASS_NAME.fullmatch(value):
        _refuse(f"{name}: {_dotted(keys)} {value[:80]!r} is not a class name", model)
    if any(_matches(_TEXT, part) for part in keys) or (key.endswith("_file") and value in TOKENIZER):
        return
    if _ELSEWHERE_KEY.fullmatch(key) or _ELSEWHERE.fullmatch(value):
        _refuse(f"{name}: {_dotted(keys)} names {value[:80]!r}, another repository, path or file", model)
    if _matches(_BUILT_IN, key) and not _SLUG.fullmatch(value):
        _refuse(f"{name}: {_dotted(keys)} names {value[:80]!r}, which is no model of a library", model)


def _is_built_in_attention(value: str) -> bool:
    if value in _FLASH_ATTENTION:
        return importlib.util.find_spec(_FLASH_ATTENTION[value]) is not None
    return value in _BUILT_IN_ATTENTION


def _refuse(reason: str, model: str) -> NoReturn:
    raise WeightsError(f"{model}: {reason}", hint=NO_CODE_HINT)


def _dotted(keys: _Keys) -> str:
    """The path of a key, shortened to one line."""
    text = ".".join(keys)
    return text if text.isprintable() and len(text) <= 100 else repr(text[:100])


_LONGEST_LIST = 100
"""Numbers per list in a verifier's config. Published ones: four stages, three colours."""

# open_clip; it has defaults for missing keys.

_TOWER = (
    "act_kwargs norm_kwargs width layers heads mlp_ratio ls_init_value pool_type final_ln_after_pool"
    " output_tokens block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"
)
_TEXT_TOWER = "context_length vocab_size embed_cls pad_id eos_id no_causal_mask proj_bias proj_type"
_PARTS: Mapping[str, frozenset[str]] = {
    "model_cfg": frozenset(
        "embed_dim vision_cfg text_cfg multimodal_cfg quick_gelu custom_text init_logit_scale init_logit_bias"
        " nonscalar_logit_scale".split()
    ),
    "vision_cfg": frozenset(
        f"{_TOWER} head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries"
        " attn_pooler_heads no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool"
        " timm_proj timm_proj_bias timm_drop timm_drop_path".split()
    ),
    "text_cfg": frozenset(
        f"{_TOWER} {_TEXT_TOWER} hf_tokenizer_name tokenizer_mode tokenizer_kwargs hf_model_name"
        " hf_model_pretrained hf_proj_type hf_pooler_type".split()
    ),
    "multimodal_cfg": frozenset(
        f"{_TOWER} {_TEXT_TOWER} dim_head n_queries attn_pooler_heads hf_tokenizer_name".split()
    ),
    "preprocess_cfg": frozenset("size mode mean std interpolation resize_mode fill_color".split()),
    "tokenizer_kwargs": frozenset({"clean", "strip_sep_token", "language"}),
    "act_kwargs": frozenset({"approximate"}),
    "norm_kwargs": frozenset({"eps", "elementwise_affine", "bias"}),
}


def _open_clip_config(config: Mapping[str, Any], name: str, model: str) -> dict[str, Any]:
    kept = {key: config.get(key) for key in ("model_cfg", "preprocess_cfg") if config.get(key) is not None}
    for key, part in kept.items():
        _refuse_unknown(key, part, name, model)
    return kept


def _refuse_unknown(part_name: str, part: Any, name: str, model: str) -> None:
    if not isinstance(part, Mapping):
        _refuse(f"{name}: {part_name} is not an object", model)
    for key, value in part.items():
        if key not in _PARTS[part_name]:
            _refuse(f"{name}: {part_name}.{key} is unknown to open_clip, or not supported", model)
        if key == "hf_model_name" and value:
            _refuse(f"{name}: {part_name}.{key} names {value[:80]!r}, another repository", model)
        if key in _PARTS and value is not None:
            _refuse_unknown(key, value, name, model)
        elif not _is_plain(value):
            _refuse(f"{name}: {part_name}.{key} is not a number, a word or a short list of numbers", model)


def _is_plain(value: Any) -> bool:
    """Whether the value is a number, a word or a short list of numbers."""
    if isinstance(value, list):
        return len(value) <= _LONGEST_LIST and all(isinstance(one, bool | int | float) for one in value)
    return value is None or isinstance(value, bool | int | float | str)
