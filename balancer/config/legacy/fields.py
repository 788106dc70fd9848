"""Names of the legacy fields, their current settings, and why some have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from balancer.config.yaml_reading import KeyPath

BLOCK = "dataset_balancing_config"

TARGETS: KeyPath = (BLOCK, "target_distribution")
PROMPTS: KeyPath = (BLOCK, "class_specific_prompts")

SECTIONS: tuple[KeyPath, ...] = (
    (BLOCK,),
    (BLOCK, "quality_control"),
    (BLOCK, "quality_control", "fallback_strategies"),
    (BLOCK, "generation_parameters"),
    (BLOCK, "success_criteria"),
    (BLOCK, "validation_metrics", "primary_success"),
    ("model_config",),
)
"""Sections that may hold single settings. Files differ in where they put them."""

SETTINGS: Mapping[KeyPath, tuple[str, ...]] = {
    ("name",): ("name", "description"),
    ("seed",): ("seed", "random_seed"),
    ("dataset", "path"): ("dataset_path", "dataset_dir", "input_dir", "input_path", "data_dir", "source_dir"),
    ("target", "per_class"): ("target_per_class", "images_per_class", "target_images_per_class"),
    ("generation", "model"): ("model_id", "model", "model_name", "model_path", "base_model"),
    ("generation", "revision"): ("revision", "model_revision"),
    ("generation", "variant"): ("variant",),
    ("generation", "width"): ("width", "image_width"),
    ("generation", "height"): ("height", "image_height"),
    ("generation", "steps"): ("num_inference_steps", "inference_steps", "num_steps", "steps"),
    ("generation", "guidance"): ("guidance_scale", "guidance", "cfg_scale"),
    ("generation", "batch_size"): ("batch_size",),
    ("generation", "negative_prompt"): ("negative_prompt", "negative_prompts"),
    ("verification", "threshold"): (
        "verification_threshold", "property_verification_threshold", "clip_threshold", "threshold",
        "min_score", "quality_threshold",
    ),
    # The earlier tool counted the first attempt as a retry, too.
    ("attempts", "max"): ("max_attempts", "max_attempts_per_image", "max_retries", "retries"),
    ("attempts", "fallback", "threshold"): ("fallback_threshold", "lower_threshold"),
    ("review", "fraction"): (
        "manual_review_percentage", "manual_review_fraction", "manual_review_rate", "manual_review",
        "review_fraction",
    ),
    ("criteria", "success_rate"): (
        "success_rate_target", "verification_success_rate", "min_success_rate", "success_rate",
    ),
}  # fmt: skip
"""Each setting and its legacy names. The first one that is present wins."""

IMAGE_SIZE = ("image_size", "resolution", "size")
TARGET = ("target", "target_count", "target_images", "images", "count")
CURRENT = ("current", "current_count", "current_images")
TO_GENERATE = ("generate", "generate_count", "to_generate")
SHARE = ("share", "ratio", "percentage", "weight")
WORDINGS = ("base_prompts", "prompts", "base_prompt", "prompt")
FALLBACK_WORDINGS = ("fallback_prompts", "alternative_prompts")

_COUNTED = "not trusted: `plan` and `run` count the images of the dataset"
_MEMORY = "generation.batch_size and the GPU shares under actors determine the memory"
_RUN_FOLDER = "a run folder has its own layout; choose it with `balancer run --out`"
_ALWAYS_VERIFIED = "every image is verified, and one that fails is never kept"

REASONS: Mapping[str, str] = {
    **dict.fromkeys(CURRENT, _COUNTED),
    **dict.fromkeys(TO_GENERATE, "`plan` computes it from the target and the counted images"),
    **dict.fromkeys(("output_dir", "output_structure", "output"), _RUN_FOLDER),
    **dict.fromkeys(("verification_enabled", "verify_target_properties"), _ALWAYS_VERIFIED),
    **dict.fromkeys(("enable_cpu_offload", "use_cpu_offload", "enable_attention_slicing"), _MEMORY),
    **dict.fromkeys(("memory_optimization", "expand_segments"), _MEMORY),
    "priority": "`plan` sets priorities by how much a class lacks",
    "generation_sequence": "a run fills all classes to the same share",
    "estimated_resources": "`plan` estimates images, candidates, time and disk",
    "execution_commands": "`balancer run` does it all",
    "save_metadata": "every candidate is a row of the manifest",
    "model_type": "the id alone identifies the model",
    "alternative_prompts": "every attempt takes the next wording; others go into fallback_prompts",
    "traditional_augmentation": "only generated images are added",
    "transitions": "add them to classes.NAME.variations in words",
    "min_images_per_class": "it becomes a fraction of the target, and the target is unknown",
}
"""Why a legacy field is not used, by its name."""

NO_SETTING = "there is no such setting"


@dataclass(frozen=True, slots=True)
class LegacyFacet:
    """`section` holds the shares of a facet; any of `wordings` its prompts, for all classes or within one."""

    name: str
    section: str
    wordings: tuple[str, ...]
    suffix: str = ""
    only_class: str | None = None


FACETS = (
    LegacyFacet(
        "lighting",
        "lighting_distribution",
        ("lighting_specific", "lighting_prompts", "lighting_conditions"),
        suffix=" lighting",
    ),
    LegacyFacet(
        "burn_level",
        "burn_level_distribution",
        ("burn_specific", "burn_prompts", "burn_level_prompts"),
        only_class="burnt",
    ),
)
