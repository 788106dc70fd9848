"""The verifier: an open_clip model behind one plain class.

A value has several wordings; its text embedding is the normalised mean of theirs. The probabilities of a
property are the softmax of the scaled similarities to its values, divided by the property's temperature.
Batches have a fixed size, so a measurement does not depend on the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

from actors.models.device import device_name, pick_device, use_threads
from actors.weights import resolve as weights
from actors.weights.view import wrap_model_errors
from balancer.cells import Cell
from balancer.images import (
    Pixels,
    UnreadableImage,
    decode_image,
    luminance_stats,
    perceptual_hash,
    pixel_sha256,
)
from balancer.verification.typicality import pixel_features
from balancer.verification.verdict import ImageFlags, Measurement

if TYPE_CHECKING:
    from actors.models.safety import SafetyChecker
    from actors.models.vlm_judge import VlmJudge

INTERNAL_BATCH = {"cpu": 4, "cuda": 16}
"""Images per batch: a CPU needs few, a GPU several."""

LAYERS = 4
LAGS = (1, 2, 4)
GRID = 4
"""What typicality looks at: layers, distances between positions, parts of an image per side."""

_HINT = "verification.model must name an open_clip model"

Preprocess = Callable[[torch.Tensor], torch.Tensor]
Probabilities = dict[str, dict[str, float]]


class Verifier:
    """A model on one device, always in float32: half precision would move scores across thresholds.

    `properties` has the wordings of each value of each property, `temperatures` the calibrated temperature of
    a property (default 1). `second_judge` and `safety` are models that judge the same images.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        properties: Mapping[str, Mapping[str, Sequence[str]]],
        device: str = "auto",
        threads: int | None = None,
        temperatures: Mapping[str, float] | None = None,
        second_judge: VlmJudge | None = None,
        safety: SafetyChecker | None = None,
    ) -> None:
        self.device = pick_device(device)
        use_threads(self.device, threads)
        self.model = model
        self._folder = folder = weights.resolve(model, revision, None, "verifier")
        self.revision = weights.identity(model, revision, folder)
        self._model, self._tokenize, transform = _load(folder, model, self.device)
        with wrap_model_errors(folder, model, _HINT), torch.inference_mode():
            self._preprocess = batched(transform)
            self._scale = self._model.logit_scale.exp()
            self._texts = {
                name: torch.stack([self._text_embedding(labels) for labels in values.values()])
                for name, values in properties.items()
            }
        self._values = {name: tuple(values) for name, values in properties.items()}
        self._temperatures = dict(temperatures or {})
        self.embedding_dim = next(iter(self._texts.values())).shape[1]
        self._second_judge, self._safety = second_judge, safety

    def measure(
        self, pixels: np.ndarray, flags: Sequence[ImageFlags], cells: Sequence[Cell]
    ) -> list[Measurement]:
        """One measurement per image of uint8 (N, height, width, 3); `cells` are those the images are for."""
        size = INTERNAL_BATCH[self.device.type]
        seen = [
            one
            for start in range(0, len(pixels), size)
            for one in self._see(self._prepared(pixels[start : start + size]), self._temperatures)
        ]
        measured = [
            _measurement(image, flag, embedding, probabilities)
            for image, flag, (embedding, probabilities) in zip(pixels, flags, seen, strict=True)
        ]
        if self._second_judge is not None:
            scores = self._second_judge.scores(pixels, cells)
            measured = [replace(one, second_scores=own) for one, own in zip(measured, scores, strict=True)]
        if self._safety is not None:
            unsafe = self._safety.probabilities(pixels)
            measured = [
                replace(one, unsafe=max(own, one.unsafe or 0.0))
                for one, own in zip(measured, unsafe, strict=True)
            ]
        return measured

    def measure_files(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        """One measurement per image file of any size, or the reason why it cannot be read. Probabilities are
        uncalibrated, because calibrations are fitted on them."""
        size = INTERNAL_BATCH[self.device.type]
        return [
            measurement
            for start in range(0, len(files), size)
            for measurement in self._measure_some_files(files[start : start + size], max_pixels)
        ]

    def measure_files_here(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        """Like `measure_files`, but any failure is a WeightsError, because nothing retries the call."""
        with wrap_model_errors(self._folder, self.model, _HINT, problem="cannot be used"):
            return self.measure_files(files, max_pixels)

    def _measure_some_files(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        pictures: list[Pixels | str] = [_decoded(data, max_pixels) for data in files]
        readable = [picture for picture in pictures if not isinstance(picture, str)]
        if not readable:
            return [picture for picture in pictures if isinstance(picture, str)]
        seen = iter(self._see(torch.cat([self._prepared(picture[None]) for picture in readable]), {}))
        return [
            picture if isinstance(picture, str) else _measurement(picture, ImageFlags(), *next(seen))
            for picture in pictures
        ]

    def typicality_features(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of images (N, height, width, 3) for `balancer.verification.typicality`, float64 by kind.

        From up to four layers, evenly spaced in depth, if the model gives them out: `block1.moments` and so
        on. The others are the final embedding, and those of the pixels as the model sees them.
        """
        size = INTERNAL_BATCH[self.device.type]
        batches = [
            self._typicality_features(self._prepared(pixels[start : start + size]))
            for start in range(0, len(pixels), size)
        ]
        return {kind: np.concatenate([batch[kind] for batch in batches]) for kind in batches[0]}

    def describe(self) -> dict[str, str]:
        """Model, revision, device and embedding size, for the manifest."""
        return {
            "model": self.model,
            "revision": self.revision,
            "device": device_name(self.device),
            "embedding_dim": str(self.embedding_dim),
        }

    @torch.inference_mode()
    def _prepared(self, pixels: np.ndarray) -> torch.Tensor:
        """Images of one size as input of the model."""
        # A copy, because arrays from an object store or a decoder are read-only.
        images = torch.from_numpy(pixels.copy()).to(self.device).permute(0, 3, 1, 2)
        return self._preprocess(images)

    @torch.inference_mode()
    def _see(
        self, images: torch.Tensor, temperatures: Mapping[str, float]
    ) -> list[tuple[np.ndarray, Probabilities]]:
        """Embedding and probabilities of each of at most INTERNAL_BATCH prepared images."""
        missing = INTERNAL_BATCH[self.device.type] - len(images)
        filled = torch.cat([images, *[images[-1:]] * missing])
        embeddings = self._model.encode_image(filled, normalize=True)
        # Doubles, which do not round small probabilities to zero: calibration takes logarithms.
        scaled = {
            name: (self._scale * embeddings @ texts.T).double() / temperatures.get(name, 1.0)
            for name, texts in self._texts.items()
        }
        likely = {name: logits.softmax(dim=1).cpu().tolist() for name, logits in scaled.items()}
        rows = embeddings[: len(images)].cpu().numpy()
        return [
            (row, {name: self._by_value(name, images[index]) for name, images in likely.items()})
            for index, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def _typicality_features(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Of at most INTERNAL_BATCH prepared images."""
        missing = INTERNAL_BATCH[self.device.type] - len(images)
        filled = torch.cat([images, *[images[-1:]] * missing])
        if _gives_layers(self._model.visual):
            seen = self._model.forward_intermediates(image=filled)
            found = layer_features(seen["image_intermediates"])
            found["final"] = seen["image_features"]
        else:
            found = {"final": self._model.encode_image(filled, normalize=True)}
        kept = {kind: values[: len(images)].double().cpu().numpy() for kind, values in found.items()}
        return kept | pixel_features(images.permute(0, 2, 3, 1).cpu().numpy())

    def _by_value(self, name: str, probabilities: Sequence[float]) -> dict[str, float]:
        return dict(zip(self._values[name], probabilities, strict=True))

    def _text_embedding(self, labels: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenize(list(labels)).to(self.device)
        return F.normalize(self._model.encode_text(tokens, normalize=True).mean(dim=0), dim=0)


def layer_features(layers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Features of the maps (N, channels, height, width) of some of a model's layers.

    `moments` are mean and spread of each channel, `variogram` how much it differs over 1, 2 and 4 positions,
    relative to its spread, and `grid` its means in 4 x 4 parts of the image.
    """
    found = {}
    for number in range(1, min(LAYERS, len(layers)) + 1):
        layer = layers[math.ceil(number * len(layers) / min(LAYERS, len(layers))) - 1].float()
        spread = layer.std((2, 3), unbiased=False)
        found[f"block{number}.moments"] = torch.cat([layer.mean((2, 3)), spread], dim=1)
        if steps := [_step(layer, lag) / (spread + 1e-4) for lag in LAGS if lag < min(layer.shape[2:])]:
            found[f"block{number}.variogram"] = torch.cat(steps, dim=1)
        found[f"block{number}.grid"] = F.adaptive_avg_pool2d(layer, GRID).flatten(1)
    return found


def _step(layer: torch.Tensor, lag: int) -> torch.Tensor:
    across = (layer[:, :, :, lag:] - layer[:, :, :, :-lag]).square().mean((2, 3))
    down = (layer[:, :, lag:] - layer[:, :, :-lag]).square().mean((2, 3))
    return ((across + down) / 2 + 1e-6).sqrt()


def _gives_layers(tower: Any) -> bool:
    """Whether an open_clip image tower can return its layers; one of timm can if its trunk can."""
    return hasattr(getattr(tower, "trunk", tower), "forward_intermediates")


def batched(transform: Compose) -> Preprocess:
    """An open_clip image transform for batches: uint8 (N, 3, H, W) on any device.

    torchvision resizes and crops tensors on the device; transforms that open_clip has for PIL images only are
    applied image by image.
    """
    normalize = next(step for step in transform.transforms if isinstance(step, Normalize))
    shaping = [step for step in transform.transforms if isinstance(step, Resize | CenterCrop)]
    if any(type(step).__name__ in {"ResizeKeepRatio", "CenterCropOrPad"} for step in transform.transforms):
        return lambda images: _one_by_one(transform, images)
    return lambda images: normalize(Compose(shaping)(images).float().div(255))


def _one_by_one(transform: Compose, images: torch.Tensor) -> torch.Tensor:
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy())
    return torch.stack([transform(picture) for picture in pictures]).to(images.device)


def _decoded(data: bytes, max_pixels: int) -> Pixels | str:
    try:
        return decode_image(data, max_pixels=max_pixels)
    except UnreadableImage as error:
        return error.reason


def _measurement(
    image: Pixels, flags: ImageFlags, embedding: np.ndarray, probabilities: Probabilities
) -> Measurement:
    brightness, deviation = luminance_stats(image)
    return Measurement(
        probabilities=probabilities,
        brightness=brightness,
        deviation=deviation,
        flags=flags,
        phash=perceptual_hash(image),
        embedding=embedding.astype("<f2").tobytes(),
        pixel_sha256=pixel_sha256(image),
        unsafe=flags.unsafe,
    )


def _load(folder: Path, model: str, device: torch.device) -> tuple[Any, Any, Compose]:
    """Model, tokenizer and image transform."""
    transformers.utils.logging.disable_progress_bar()
    with weights.shown_to_loader(folder, model, None, "verifier", _HINT) as view:
        # Never create_model_and_transforms: it fills missing weights with random numbers.
        loaded, transform = open_clip.create_model_from_pretrained(f"local-dir:{view}", device=device)
        tokenizer = _tokenizer(view)
    return loaded.eval(), tokenizer, transform


def _tokenizer(view: Path) -> Any:
    """Like open_clip.get_tokenizer, which would pass all options of the model's config to transformers,
    including those that run code. `config_rules` checks the options."""
    text = open_clip.get_model_config(f"local-dir:{view}")["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **options)
    return open_clip.tokenizer.HFTokenizer(
        view,
        context_length=length,
        tokenizer_mode=text.get("tokenizer_mode"),
        trust_remote_code=False,
        local_files_only=True,
        **options,
    )
