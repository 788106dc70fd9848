"""What each pipeline class takes, as plain data: known before anything is loaded or downloaded.

Read from diffusers 0.42, and held against small pipelines of every family by the tests. Many pipelines accept
an argument and ignore it, so their signatures do not tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ConfigOf = Callable[[str], Mapping[str, Any]]
"""The config of a component of a pipeline; empty if there is none."""

ALWAYS: Mapping[str, Any] = {
    "clean_caption": False,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "use_resolution_binning": False,
}
"""Arguments of every call that has them. With their defaults, a pipeline rewrites the prompt, so that the row
would not say what was asked, or makes another size and scales it."""

NO_GRAPH = "torch cannot compile its transformer as one graph"
EACH_LENGTH = "it would be compiled again for each length of a prompt"
UNTIL_LONGEST = "it pads texts to the longest of a batch"
USUAL_FACTOR = 8
MOST_DOUBLINGS = 10
_STAGES = {"temperal_downsample": 0, "block_out_channels": 1, "encoder_block_out_channels": 1}
"""Lists of an autoencoder's config, and how many of their stages keep the size."""

HIDREAM_SIDE = 128
"""Of the latents; HiDream scales every size to that many pixels."""


@dataclass(frozen=True, slots=True)
class Text:
    """Where a prompt is cut: after `limit` tokens of a tokenizer, or after as many as it names itself. The
    pipeline puts it into `template` first."""

    tokenizer: str
    limit: int | None = None
    template: str = "{}"


@dataclass(frozen=True, slots=True)
class Family:
    """`guidance` is the argument of the call that takes the guidance scale, None if none has an effect.
    Guidance acts above `off_at`; None means always, because the model takes the scale as an input.

    Negative prompts act only through guidance. Sizes are multiples of `patch` latents. `alone` says why
    images depend on their neighbours, so that each must be made alone; empty if they do not. `texts` are in
    order of preference: a pipeline may lack some tokenizers.
    """

    name: str
    guidance: str | None = "guidance_scale"
    off_at: float | None = 1.0
    takes_negative: bool = True
    patch: int = 2
    alone: str = ""
    texts: tuple[Text, ...] = (Text("tokenizer"),)
    keeps_embeddings: bool = False
    """Prompts are encoded once, so text encoders may stay in host memory."""
    compile_fault: str = ""
    """Why it cannot be compiled; empty if it can."""
    fixed_pixels: bool = False
    """Every size is scaled to the same number of pixels."""
    variants: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """Other values of these fields where a component has a setting: (component, setting)."""
    note: str = ""
    """How it is known, if not from this table."""

    def guides(self, guidance: float | None) -> bool:
        """Whether a guidance scale acts."""
        if self.guidance is None or guidance is None:
            return False
        return self.off_at is None or guidance > self.off_at

    def uses_negative(self, guidance: float | None) -> bool:
        return self.takes_negative and self.guides(guidance)


_LCM: Mapping[str, Any] = {"off_at": None, "takes_negative": False}
"""A distilled UNet takes the guidance scale as an input."""

_LUMINA = (
    "You are an assistant designed to generate superior images with the superior degree of image-text"
    " alignment based on textual prompts or user prompts. <Prompt Start> {}"
)
_QWEN = "{}<|im_end|>\n<|im_start|>assistant\n"
_QWEN_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion", patch=1, keeps_embeddings=True, variants={("unet", "time_cond_proj_dim"): _LCM}
    ),
    "StableDiffusionXLPipeline": Family(
        "Stable Diffusion XL", patch=1, keeps_embeddings=True, variants={("unet", "time_cond_proj_dim"): _LCM}
    ),
    "LatentConsistencyModelPipeline": Family("Latent Consistency Model", patch=1, **_LCM),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3", texts=(Text("tokenizer_3", 256), Text("tokenizer"))
    ),
    "FluxPipeline": Family(
        "FLUX.1 schnell",
        guidance=None,
        takes_negative=False,
        texts=(Text("tokenizer_2", 512),),
        variants={
            ("transformer", "guidance_embeds"): {
                "name": "FLUX.1 dev",
                "guidance": "guidance_scale",
                "off_at": None,
            }
        },
    ),
    "Flux2KleinPipeline": Family(
        "FLUX.2 klein base",
        takes_negative=False,
        texts=(Text("tokenizer", 512, _QWEN_CHAT),),
        variants={("", "is_distilled"): {"name": "FLUX.2 klein", "guidance": None}},
    ),
    "QwenImagePipeline": Family(
        "Qwen-Image",
        guidance="true_cfg_scale",
        alone=UNTIL_LONGEST,
        compile_fault=EACH_LENGTH,
        texts=(Text("tokenizer", 512, _QWEN),),
    ),
    "ZImagePipeline": Family(
        "Z-Image",
        off_at=0.0,
        alone=UNTIL_LONGEST,
        compile_fault=NO_GRAPH,
        texts=(Text("tokenizer", 512, _QWEN_CHAT),),
    ),
    "ChromaPipeline": Family("Chroma", texts=(Text("tokenizer", 512),)),
    "SanaPipeline": Family("Sana", patch=1, texts=(Text("tokenizer", 300),)),
    "SanaSprintPipeline": Family(
        "Sana Sprint", off_at=None, takes_negative=False, patch=1, texts=(Text("tokenizer", 300),)
    ),
    "PixArtAlphaPipeline": Family("PixArt-alpha", texts=(Text("tokenizer", 120),)),
    "PixArtSigmaPipeline": Family("PixArt-Sigma", texts=(Text("tokenizer", 300),)),
    "Lumina2Pipeline": Family(
        "Lumina 2", alone=UNTIL_LONGEST, compile_fault=NO_GRAPH, texts=(Text("tokenizer", 256, _LUMINA),)
    ),
    "AuraFlowPipeline": Family("AuraFlow", texts=(Text("tokenizer", 256),)),
    "CogView4Pipeline": Family(
        "CogView4", alone=UNTIL_LONGEST, compile_fault=EACH_LENGTH, texts=(Text("tokenizer", 1024),)
    ),
    "HiDreamImagePipeline": Family(
        "HiDream",
        fixed_pixels=True,
        compile_fault=NO_GRAPH,
        texts=(Text("tokenizer_4", 128), Text("tokenizer_3", 128)),
    ),
}

LOADED_BY_NAME = frozenset(
    "BriaPipeline ErnieImagePipeline HiDreamImagePipeline HunyuanImagePipeline LongCatImagePipeline"
    " SanaSprintPipeline".split()
)
"""Text-to-image pipelines that `AutoPipelineForText2Image` does not know."""

_IN_TWO = "its images are made by two pipelines after each other"

REFUSED: Mapping[str, str] = {
    "KandinskyPipeline": _IN_TWO,
    "KandinskyV22Pipeline": _IN_TWO,
    "StableCascadeDecoderPipeline": _IN_TWO,
    "Kandinsky3Pipeline": "it returns pixels that are not from 0 to 1",
}


def recognise(index: Mapping[str, Any], config_of: ConfigOf) -> Family | None:
    """The family of a pipeline by its model_index.json; None if its class is not in the table."""
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        return None
    for (component, setting), changes in family.variants.items():
        if (config_of(component) if component else index).get(setting):
            family = dataclasses.replace(family, **changes)
    return family


def size_multiple(family: Family, config_of: ConfigOf) -> int:
    """Both sides of an image are multiples of this."""
    return family.patch * _vae_factor(config_of("vae"))


def _vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels of a side for each latent, by the rules of the pipelines."""
    for name, kept in _STAGES.items():
        stages = config.get(name)
        if isinstance(stages, list) and stages:
            return int(2 ** min(len(stages) - kept, MOST_DOUBLINGS))
    return USUAL_FACTOR


def sizes_that_work(family: Family, multiple: int, width: int, height: int) -> list[tuple[int, int]]:
    """The given size if the pipeline makes images of it, else the nearest of which it does."""
    if family.fixed_pixels:
        pixels = (HIDREAM_SIDE * multiple // family.patch) ** 2
        scale = (pixels / (width * height)) ** 0.5
        return [(_down(int(width * scale), multiple), _down(int(height * scale), multiple))]
    if width % multiple == height % multiple == 0:
        return [(width, height)]
    return [(_down(width, multiple), _down(height, multiple)), (_up(width, multiple), _up(height, multiple))]


def _down(value: int, multiple: int) -> int:
    return max(multiple, value // multiple * multiple)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
