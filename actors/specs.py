"""Specs of workers: plain values that say what to load, and load it.

A spec is pickled to its actor and loads the worker there, so building one imports no model library, and this
module nothing that only building one needs: every actor imports it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from actors.models.families.checks import Asked
    from actors.models.generator import Generator
    from actors.models.safety import SafetyChecker
    from actors.models.simulated import Fault, SimulatedGenerator, SimulatedVerifier
    from actors.models.verifier import Verifier
    from actors.models.vision.backbone import Backbone
    from actors.models.vlm_judge import VlmJudge
    from actors.models.writer import Writer
    from balancer.config.loras import LoraConfig
    from balancer.config.schema import BackboneConfig, Config, SafetyConfig, SecondJudgeConfig
    from balancer.training.images import Decoder

CPU_THREADS = 1
"""Threads of an actor on CPU. Several single-threaded generators make more images than one with several
threads, and an image does not depend on how many cores a machine has."""

Properties = Mapping[str, Mapping[str, Sequence[str]]]
"""The wordings of every value of every property."""


class WorkerSpec(Protocol):
    """Must be picklable. `load` runs in the actor's process."""

    def load(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec:
    """A diffusers pipeline; see `Generator`."""

    model: str
    width: int
    height: int
    steps: int
    batch_size: int | Literal["auto"]
    revision: str | None = None
    variant: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    offload: str = "auto"
    compiled: bool = False
    asked: Asked | None = None
    """What a generator refuses if it has no effect."""
    parents: Decoder | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    """Name and options."""
    loras: tuple[LoraConfig, ...] = ()
    lora_hashes: tuple[str, ...] = ()
    """The sha256 of each, as rows name it; without them no file is compared."""
    gpu_share: float = 1.0
    """Of a GPU's memory."""
    quantization: str = "none"

    def load(self) -> Generator:
        from actors.models.generator import Generator
        from actors.models.scheduler import SchedulerChoice
        from actors.weights.loras import refuse_changed

        generator = Generator(
            model=self.model,
            revision=self.revision,
            variant=self.variant,
            width=self.width,
            height=self.height,
            steps=self.steps,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            offload=self.offload,
            compiled=self.compiled,
            asked=self.asked,
            parents=self.parents,
            scheduler=None if self.scheduler is None else SchedulerChoice(*self.scheduler),
            loras=self.loras,
            gpu_share=self.gpu_share,
            quantization=self.quantization,
        )
        refuse_changed(self.loras, self.lora_hashes)  # now, as a file may change until it is read
        return generator


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmJudgeSpec:
    """A vision-language model that looks at the verifier's images; see `VlmJudge`."""

    model: str
    question: str
    revision: str | None = None

    def load(self, properties: Properties, device: str) -> VlmJudge:
        from actors.models.vlm_judge import VlmJudge

        return VlmJudge(self.model, self.revision, self.question, properties, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetySpec:
    """A classifier that looks at the verifier's images; see `SafetyChecker`."""

    model: str
    labels: Sequence[str]
    revision: str | None = None

    def load(self, device: str) -> SafetyChecker:
        from actors.models.safety import SafetyChecker

        return SafetyChecker(self.model, self.revision, self.labels, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """An image encoder beside the verifier's own; see `Backbone`."""

    model: str
    revision: str | None = None

    def load(self, device: str) -> Backbone:
        from actors.models.vision.backbone import Backbone

        return Backbone(self.model, self.revision, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSpec:
    """An open_clip model; see `Verifier`."""

    model: str
    properties: Properties
    revision: str | None = None
    device: str = "auto"
    threads: int | None = None
    temperatures: Mapping[str, float] | None = None
    second_judge: VlmJudgeSpec | None = None
    safety: SafetySpec | None = None
    backbone: BackboneSpec | None = None
    negatives: Sequence[str] = ()

    def load(self) -> Verifier:
        from actors.models.verifier import Verifier

        return Verifier(
            model=self.model,
            revision=self.revision,
            properties=self.properties,
            device=self.device,
            threads=self.threads,
            temperatures=self.temperatures,
            second_judge=second.load(self.properties, self.device) if (second := self.second_judge) else None,
            safety=safety.load(self.device) if (safety := self.safety) else None,
            backbone=backbone.load(self.device) if (backbone := self.backbone) else None,
            negatives=self.negatives,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSpec:
    """A writer into a run folder; see `Writer`."""

    storage_uri: str
    image_format: str = "png"

    def load(self) -> Writer:
        from actors.models.writer import Writer

        return Writer(self.storage_uri, self.image_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGeneratorSpec:
    """A stand-in that draws noise; see `SimulatedGenerator`."""

    batch_size: int
    width: int
    height: int
    service_s: float = 0.0
    start_s: float = 0.0
    faults: Sequence[Fault] = ()

    def load(self) -> SimulatedGenerator:
        from actors.models.simulated import SimulatedGenerator

        return SimulatedGenerator(
            self.batch_size, self.width, self.height, self.service_s, self.start_s, self.faults
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedVerifierSpec:
    """A stand-in that draws verdicts; see `SimulatedVerifier`."""

    properties: Properties
    pass_rate: float
    service_s: float = 0.0
    start_s: float = 0.0
    faults: Sequence[Fault] = ()
    pass_rates: Mapping[int, float] | None = None
    strengthened_gain: float = 0.0

    def load(self) -> SimulatedVerifier:
        from actors.models.simulated import SimulatedVerifier

        return SimulatedVerifier(
            self.properties,
            self.pass_rate,
            self.service_s,
            self.start_s,
            self.faults,
            pass_rates=self.pass_rates,
            strengthened_gain=self.strengthened_gain,
        )


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a run."""

    generator: WorkerSpec
    verifier: WorkerSpec
    writer: WorkerSpec


# ---- from a config -------------------------------------------------------------------------------


def generator_spec(config: Config, on_gpu: bool = False, storage_uri: str | None = None) -> GeneratorSpec:
    """`storage_uri` is the run folder, from which parents are read."""
    from actors.models.families.checks import asked

    wanted = config.generation
    return GeneratorSpec(
        model=located(wanted.model),
        revision=wanted.revision,
        variant=wanted.variant,
        width=wanted.width,
        height=wanted.height,
        steps=wanted.steps,
        batch_size=wanted.batch_size,
        dtype=wanted.dtype,
        device=_device(config, on_gpu),
        threads=CPU_THREADS,
        offload=wanted.offload,
        compiled=wanted.compile and on_gpu,
        asked=asked(config),
        parents=_parents(config, storage_uri),
        scheduler=scheduler_choice(config),
        loras=tuple(lora.model_copy(update={"model": located(lora.model)}) for lora in wanted.loras),
        gpu_share=min(1.0, config.actors.gpus_per_generator) if on_gpu else 1.0,
        quantization=wanted.quantization,
    )


def _parents(config: Config, storage_uri: str | None) -> Decoder | None:
    if storage_uri is None or config.generation.conditioning == "text":
        return None
    from balancer.manifest.image_files import ImageFiles
    from balancer.training.images import Decoder

    limits, by_reference = config.dataset, config.output.real_images == "reference"
    max_bytes, max_pixels = limits.max_image_megabytes * 1e6, limits.max_image_megapixels * 1e6
    # A file that was converted to PNG can be larger than the dataset's.
    files = ImageFiles(storage_uri, by_reference, round(max_bytes + 4 * max_pixels))
    return Decoder(files, round(max_pixels))


def verifier_spec(config: Config, on_gpu: bool = False) -> VerifierSpec:
    from balancer.verification.calibration import load_temperatures
    from balancer.verification.negatives import negatives_of

    wanted = config.verification
    return VerifierSpec(
        model=located(wanted.model),
        revision=wanted.revision,
        properties=config.properties(),
        device=_device(config, on_gpu),
        threads=CPU_THREADS,
        temperatures=load_temperatures(config),
        second_judge=_second_judge(wanted.second_judge),
        safety=_safety(wanted.safety),
        backbone=backbone_spec(wanted.backbone),
        negatives=negatives_of(config),
    )


def _second_judge(wanted: SecondJudgeConfig | None) -> VlmJudgeSpec | None:
    if wanted is None:
        return None
    return VlmJudgeSpec(model=located(wanted.model), revision=wanted.revision, question=wanted.question)


def _safety(wanted: SafetyConfig | None) -> SafetySpec | None:
    if wanted is None:
        return None
    return SafetySpec(model=located(wanted.model), revision=wanted.revision, labels=wanted.labels)


def backbone_spec(wanted: BackboneConfig | None) -> BackboneSpec | None:
    return None if wanted is None else BackboneSpec(model=located(wanted.model), revision=wanted.revision)


def simulated_generator_spec(config: Config) -> SimulatedGeneratorSpec:
    wanted = config.generation
    return SimulatedGeneratorSpec(
        batch_size=wanted.usual_batch,
        width=wanted.width,
        height=wanted.height,
        service_s=(config.planning.seconds_per_candidate or 0.0) * wanted.usual_batch,
    )


def simulated_verifier_spec(config: Config) -> SimulatedVerifierSpec:
    return SimulatedVerifierSpec(properties=config.properties(), pass_rate=config.planning.acceptance)


def workers_for(
    config: Config, storage_uri: str, *, generators_on_gpu: bool, verifiers_on_gpu: bool
) -> Workers:
    return Workers(
        generator=generator_for(config, generators_on_gpu, storage_uri),
        verifier=verifier_for(config, verifiers_on_gpu),
        writer=WriterSpec(storage_uri=storage_uri, image_format=config.output.image_format),
    )


def with_lora_hashes(workers: Workers, hashes: Sequence[str]) -> Workers:
    """Workers whose generator takes no other LoRAs than those."""
    generator = workers.generator
    if not isinstance(generator, GeneratorSpec):
        return workers
    return replace(workers, generator=replace(generator, lora_hashes=tuple(hashes)))


def generator_for(
    config: Config, on_gpu: bool, storage_uri: str | None = None
) -> GeneratorSpec | SimulatedGeneratorSpec:
    """As `actors.kind` says."""
    simulated = config.actors.kind == "simulated"
    return simulated_generator_spec(config) if simulated else generator_spec(config, on_gpu, storage_uri)


def verifier_for(config: Config, on_gpu: bool) -> VerifierSpec | SimulatedVerifierSpec:
    """As `actors.kind` says."""
    simulated = config.actors.kind == "simulated"
    return simulated_verifier_spec(config) if simulated else verifier_spec(config, on_gpu)


def scheduler_choice(config: Config) -> tuple[str, Mapping[str, Any]] | None:
    """Name and options of `generation.scheduler`."""
    wanted = config.generation.scheduler
    return None if wanted is None else (wanted.name, wanted.options)


def located(model: str) -> str:
    """A folder or file by its full path: actors do not work in the driver's folder."""
    return os.path.abspath(model) if os.path.exists(model) else model


def _device(config: Config, on_gpu: bool) -> str:
    """`cuda` only if the config insists: a GPU that Ray counts may still be unusable for torch."""
    return config.actors.device if on_gpu else "cpu"
