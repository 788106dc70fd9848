"""Load a diffusers text-to-image pipeline from a folder and prepare it for its device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from actors.models.families.checks import Recognised, is_loaded_by_name, recognise_folder
from actors.models.families.quantization import NONE, quantization_config, refuse_without_effect
from actors.models.loras import load_loras
from actors.models.memory.limits import free_memory
from actors.models.node_lock import one_at_a_time
from actors.models.offload import Offloading, choose_offloading
from actors.models.pretrained import lacking_weights, refuse_missing_weights
from actors.models.prompt_embeddings import PromptEmbeddings
from actors.models.scheduler import SchedulerChoice, exchange
from actors.weights import resolve as weights
from actors.weights.file_rules import INCOMPLETE_HINT
from actors.weights.vocabulary import refuse_empty_vocabulary
from balancer.config.loras import LoraConfig
from balancer.errors import UnavailableError
from balancer.storage.cache import private_folder

MODEL_HINT = "generation.model must name a text-to-image pipeline in diffusers layout"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a pipeline; `model` is its name in the config."""

    folder: Path
    model: str
    variant: str | None
    scheduler: SchedulerChoice | None = None
    loras: tuple[LoraConfig, ...] = ()
    quantization: str = NONE


@dataclass(frozen=True, slots=True)
class Loaded:
    """`embeddings` is None if the pipeline takes its prompts as text."""

    pipeline: Any
    recognised: Recognised
    embeddings: PromptEmbeddings | None
    offloading: Offloading


def load_pipeline(
    source: Source, dtype: torch.dtype, device: torch.device, *, pixels: int, offload: str, compiled: bool
) -> Loaded:
    """Load a pipeline and move it to its device; `pixels` are those of one image.

    One process per node at a time, because loading goes through host memory.
    """
    with one_at_a_time("load"):
        recognised = recognise_folder(source.folder, source.model)
        pipeline = _from_folder(source, recognised.class_name, dtype, device)
        if source.scheduler is not None:
            exchange(pipeline, source.scheduler)
        load_loras(pipeline, source.loras, dtype)
        offloading = _move(pipeline, device, pixels, offload)
    _prefer_channels_last(pipeline)
    if compiled:
        _compile(pipeline, source, offloading)
    embeddings = None
    if PromptEmbeddings.supports(pipeline):
        on_cpu = offloading.mode == "text_encoders"
        embeddings = PromptEmbeddings(pipeline, torch.device("cpu") if on_cpu else device, dtype=dtype)
    return Loaded(pipeline, recognised, embeddings, offloading)


def _from_folder(source: Source, class_name: str, dtype: torch.dtype, device: torch.device) -> Any:
    by_name = is_loaded_by_name(class_name)
    loader = diffusers.DiffusionPipeline if by_name else diffusers.AutoPipelineForText2Image
    shown = weights.shown_to_loader(source.folder, source.model, source.variant, "generator", MODEL_HINT)
    quantised = quantization_config(source.quantization, dtype, device)
    with _quiet(), shown as view, refuse_missing_weights(source.model):
        pipeline = loader.from_pretrained(
            view,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            variant=source.variant,
            trust_remote_code=False,
            quantization_config=quantised,
            **_without_watermark(class_name),
        )
    for name, part in _modules(pipeline).items():
        _refuse_unloaded(part, source.model, name)
    refuse_without_effect(pipeline, source.quantization, source.model)
    pipeline.set_progress_bar_config(disable=True)
    for name, part in pipeline.components.items():
        refuse_empty_vocabulary(part, source.model, name)
    return pipeline


def _refuse_unloaded(part: torch.nn.Module, model: str, component: str) -> None:
    """diffusers leaves what the weights lack without numbers."""
    if lacking := [name for name, tensor in part.named_parameters() if tensor.is_meta]:
        raise lacking_weights(f"{model}: the weights of {component}", lacking, INCOMPLETE_HINT)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it warns of every autoencoder but the usual one
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity_warning()  # of prompts that are too long, for example


def _without_watermark(class_name: str) -> dict[str, bool]:
    # SDXL would add an invisible watermark, on the CPU, if a package for it is installed; provenance is
    # written into the file instead. Other pipelines do not take the argument.
    return {"add_watermarker": False} if class_name.startswith("StableDiffusionXL") else {}


def _move(pipeline: Any, device: torch.device, pixels: int, offload: str) -> Offloading:
    if device.type != "cuda":
        pipeline.to(device)
        return Offloading("none", "")
    free_bytes = free_memory(device)
    offloading = choose_offloading(
        component_bytes(pipeline),
        pixels,
        free_bytes,
        offload,
        keeps_embeddings=PromptEmbeddings.supports(pipeline),
    )
    if offloading.mode == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offloading.mode == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        place_parts(pipeline, device, keep_encoders=offloading.mode == "text_encoders")
    return offloading


def place_parts(pipeline: Any, device: torch.device, *, keep_encoders: bool) -> None:
    """Move a pipeline to a device; text encoders that are kept off it compute on all cores, in float32.

    CPUs are slow in half precision, and Ray gives an actor one thread.
    """
    for name, part in _modules(pipeline).items():
        if keep_encoders and name.startswith("text_encoder"):
            part.to("cpu", torch.float32)
        else:
            part.to(device)
    if keep_encoders:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def _modules(pipeline: Any) -> Mapping[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def component_bytes(pipeline: Any) -> dict[str, int]:
    """The size of each part's loaded weights."""
    return {
        name: sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
        for name, part in _modules(pipeline).items()
    }


def _prefer_channels_last(pipeline: Any) -> None:
    if getattr(pipeline, "unet", None) is not None:  # convolutions; transformers have none to speed up
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)


def _compile(pipeline: Any, source: Source, offloading: Offloading) -> None:
    """As whole graphs, one for each shape; all batches have the same shape. Compilation happens at the first
    batch."""
    if offloading.mode in ("model", "sequential"):
        raise UnavailableError(
            f"{source.model}: a pipeline that is moved to the GPU part by part cannot be compiled"
            f" ({offloading.reason})",
            hint="set generation.compile to false, or use a GPU with more memory",
        )
    _use_own_compile_cache()
    compile_parts(pipeline)


def compile_parts(pipeline: Any, **options: Any) -> None:
    """Have the denoiser and the decoder compiled at their first call; `options` are torch.compile's."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if denoiser is not None:
        denoiser.compile(fullgraph=True, dynamic=False, **options)
    if getattr(pipeline, "vae", None) is not None:
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, fullgraph=True, dynamic=False, **options)


def _use_own_compile_cache() -> None:
    """torch runs code from its cache, by default in the shared temporary folder: whoever creates that first
    could run code as this user."""
    for name, part in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        if name not in os.environ:
            os.environ[name] = str(private_folder("compile") / part)
