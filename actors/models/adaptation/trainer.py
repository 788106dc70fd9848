"""Train one adapter after the other on one device.

A step follows from the task, its number and the state before it, so neither a restart nor the number of steps
of a call changes the weights. What is kept between two calls is checked against what the call names; a new
actor is as good as the old one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.models.adaptation.denoisers import DENOISERS, Embedded
from actors.models.adaptation.latents import Moments, encode_image, scale
from actors.models.adaptation.lora import LoraParts, encode
from actors.models.adaptation.objective import Noised, objective_of
from actors.models.adaptation.sampling import Sampler
from actors.models.adaptation.state import State, most_bytes
from actors.models.device import device_name, pick_device, pick_dtype, use_threads
from actors.models.memory.limits import is_out_of_memory
from actors.models.pipeline import Source, load_pipeline
from actors.models.scheduler import SchedulerChoice, exchange
from actors.weights import resolve as weights
from balancer.adaptation.plan import Task
from balancer.config.adaptation import AdaptationConfig
from balancer.errors import UnavailableError
from balancer.images import Pixels

WEIGHT_DECAY = 1e-2


@dataclass(frozen=True, slots=True)
class Progress:
    """The state after some steps, and the loss of all steps until then."""

    state: bytes
    losses: list[float]


@dataclass(slots=True)
class _Training:
    """An adapter at work. Latents are as the denoiser sees them, by image; `optimizer` has made as many
    steps as there are `losses`."""

    task: Task
    latents: torch.Tensor
    spread: torch.Tensor
    prior: torch.Tensor | None
    optimizer: torch.optim.AdamW
    losses: list[float]
    state: bytes


class AdapterTrainer:
    """A pipeline with LoRA matrices; `settings` say where. UnavailableError for what does not fit."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        variant: str | None,
        width: int,
        height: int,
        settings: AdaptationConfig,
        text_encoders: bool,
        scheduler: SchedulerChoice | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.device = pick_device(device)
        use_threads(self.device, threads)
        dtype, _ = pick_dtype("auto", self.device)
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # float16 loses small gradients
        self._model, self._width, self._height = model, width, height
        self._settings = settings
        source = Source(weights.resolve(model, revision, variant, "generator"), model, variant)
        self.revision = weights.identity(model, revision, source.folder)
        loaded = load_pipeline(
            source, self.dtype, self.device, pixels=width * height, offload="none", compiled=False
        )
        self._pipeline = loaded.pipeline
        self._sampler = Sampler(loaded.pipeline, loaded.recognised.family, model)
        self._objective = objective_of(self._pipeline.scheduler, model)
        if scheduler is not None:
            exchange(self._pipeline, scheduler)
        self._denoiser = DENOISERS[loaded.recognised.class_name](self._pipeline, width, height, self.device)
        texts = self._denoiser.text_encoders()
        self._trains_texts = text_encoders
        for part in (self._pipeline.vae, *texts.values()):
            part.requires_grad_(False)
        self._lora = LoraParts(
            {self._denoiser.part: self._denoiser.module},
            texts if text_encoders else {},
            settings.rank,
            settings.layers,
        )
        if settings.gradient_checkpointing:
            self._denoiser.module.enable_gradient_checkpointing()
            self._denoiser.module.train()  # it is off in evaluation; there is no dropout
        self._part_size = settings.batch_size
        self._embedded: dict[str, Embedded] = {}
        self._training: _Training | None = None

    def describe(self) -> dict[str, str]:
        return {
            "model": self._model,
            "revision": self.revision,
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    # ---- images ------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, files: Sequence[bytes], max_pixels: int) -> list[Moments | str]:
        """The latents of each file, scaled to the size of the model as a parent is; the reason for one that
        is no image. Each is encoded on its own."""
        vae, dtype = self._pipeline.vae, self._pipeline.vae.dtype
        size = (self._width, self._height)
        if dtype == torch.float32:
            return [encode_image(vae, file, size, max_pixels) for file in files]
        vae.to(torch.float32)  # many autoencoders overflow in half precision
        try:
            return [encode_image(vae, file, size, max_pixels) for file in files]
        finally:
            vae.to(dtype)

    # ---- training ----------------------------------------------------------------------------

    def train(self, work: tuple[Task, Sequence[Moments]], state: bytes | None, steps: int) -> Progress | str:
        """Go on from `state`, from the beginning without one, until `steps` are made. The moments are those
        of the task's images. The reason for a state that cannot be used."""
        task, moments = work
        try:
            training = self._prepared(task, moments, state)
        except ValueError as error:
            return str(error)
        while len(training.losses) < steps:
            training.losses.append(self._step(training, len(training.losses)))
        training.state = State.of(self._lora.parameters, training.optimizer, training.losses).encode()
        return Progress(training.state, [*training.losses])

    def state_bytes(self, steps: int) -> int:
        """Size of a state after so many steps, at most."""
        return most_bytes(self._lora.parameters, steps)

    def _prepared(self, task: Task, moments: Sequence[Moments], state: bytes | None) -> _Training:
        now = self._training
        if now is not None and state is not None and now.task == task and now.state == state:
            return now
        self._training = None
        self._lora.initialise(_generator(task, "weights", 0))
        optimizer = torch.optim.AdamW(
            self._lora.parameters.values(), task.settings.learning_rate, weight_decay=WEIGHT_DECAY
        )
        prior = self._sampler.latents(task.prior, task) if task.prior else None
        losses: list[float] = []
        if state is not None:
            restored = State.decode(state, self._lora.parameters, task.steps)
            self._lora.load(restored.parameters)
            restored.restore(self._lora.parameters, optimizer)
            losses = restored.losses.tolist()
        latents, spread = scale(moments, self._pipeline.vae.config)
        self._training = _Training(task, latents, spread, prior, optimizer, losses, state or b"")
        return self._training

    def _step(self, training: _Training, number: int) -> float:
        task = training.task
        for group in training.optimizer.param_groups:
            group["lr"] = task.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * number / task.steps))
        generator = _generator(task, "step", number)
        rows = _rows(task, number, len(task.images))
        clean = training.latents[rows] + training.spread[rows] * torch.randn(
            training.latents[rows].shape, generator=generator
        )
        captions = [_drawn(task.images[row].captions, generator) for row in rows]
        noised = self._objective.noised(clean, generator)
        parts = [(noised, captions, 1.0)]
        if training.prior is not None:
            own = torch.randint(len(task.prior), (len(rows),), generator=generator).tolist()
            words = [task.prior[row].prompt for row in own]
            weight = task.settings.prior_weight
            parts.append((self._objective.noised(training.prior[own], generator), words, weight))
        while True:
            try:
                training.optimizer.zero_grad(set_to_none=True)
                loss = sum(self._accumulate(*part) for part in parts)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self._part_size == 1:
                    raise _too_large(self._width, self._height, self.device) from error
            # Outside the handler: its traceback keeps the tensors of the failed part alive.
            torch.cuda.empty_cache()
            self._part_size = -(-self._part_size // 2)
        training.optimizer.step()
        return loss

    def _accumulate(self, noised: Noised, captions: Sequence[str], weight: float) -> float:
        """Add the gradients of the mean loss of a batch, part by part; returns the loss."""
        count, total = len(captions), 0.0
        for start in range(0, count, self._part_size):
            part = slice(start, start + self._part_size)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                embedded = self._embed(captions[part])
                predicted = self._denoiser.predict(
                    noised.latents[part].to(self.device, self.dtype),
                    noised.timesteps[part].to(self.device),
                    embedded,
                )
            target = noised.target[part].to(self.device)
            errors = (predicted.float() - target).square().flatten(1).mean(1)
            loss = weight * errors.sum() / count
            loss.backward()
            total += float(loss.detach())
        return total

    def _embed(self, captions: Sequence[str]) -> Embedded:
        """Each caption on its own, the same in every batch; kept unless encoders are trained."""
        if self._trains_texts:
            return self._denoiser.embed(captions)
        for caption in captions:
            if caption not in self._embedded:
                with torch.no_grad():
                    self._embedded[caption] = self._denoiser.embed([caption])
        parts = zip(*(self._embedded[caption] for caption in captions), strict=True)
        return tuple(torch.cat(part) for part in parts)

    # ---- results -----------------------------------------------------------------------------

    def export(self, work: tuple[Task, Sequence[Moments]], state: bytes, metadata: dict[str, str]) -> bytes:
        """The adapter as a safetensors file, as diffusers reads it."""
        self._restore(state)
        return encode(self._lora.export(), {"format": "pt", **metadata})

    def sample(self, work: tuple[Task, Sequence[Moments]], state: bytes | None) -> Pixels:
        """The task's samples: uint8 (N, height, width, 3). Without a state, as the model makes them."""
        task, _ = work
        if state is None:
            self._training = None
            self._lora.initialise(_generator(task, "weights", 0))
        else:
            self._restore(state)
        return self._sampler.pixels(task.samples, task)

    def _restore(self, state: bytes) -> None:
        self._training = None
        self._lora.load(State.decode(state, self._lora.parameters).parameters)


def _too_large(width: int, height: int, device: torch.device) -> UnavailableError:
    return UnavailableError(
        f"a training step of one image of {width} x {height} does not fit into the memory of"
        f" {device_name(device)}",
        hint="set adaptation.gradient_checkpointing: true, lower generation.width and height, or"
        " adaptation.rank",
    )


def _rows(task: Task, number: int, count: int) -> list[int]:
    """The images of a step: in every epoch each once, in another order."""
    batch = task.settings.batch_size
    orders: dict[int, list[int]] = {}
    rows = []
    for place in range(number * batch, (number + 1) * batch):
        epoch, at = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count, generator=_generator(task, "epoch", epoch)).tolist()
        rows.append(orders[epoch][at])
    return rows


def _drawn(captions: Sequence[str], generator: torch.Generator) -> str:
    return captions[int(torch.randint(len(captions), (1,), generator=generator))]


def _generator(task: Task, purpose: str, number: int) -> torch.Generator:
    """On the CPU, so that every device starts from the same numbers."""
    text = f"{task.settings.seed}\n{task.name}\n{purpose}\n{number}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"balancer.train").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
