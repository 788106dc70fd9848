"""The verifier: an open_clip model behind one plain class.

A value has several wordings; its text embedding is the normalised mean of theirs. The probabilities of a
property are the softmax of the scaled similarities to its values, divided by the property's temperature.
Batches have a fixed size, so a measurement does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from actors.models.device import device_name
from actors.models.encoder import HINT, Encoder, Features
from actors.weights.view import wrap_model_errors
from balancer.cells import CLASS_PROPERTY, Cell
from balancer.images import (
    Pixels,
    UnreadableImage,
    decode_image,
    luminance_stats,
    perceptual_hash,
    pixel_sha256,
)
from balancer.verification.challenges import make_challenges, make_variations
from balancer.verification.negatives import domain_score
from balancer.verification.off_domain import KINDS, SeenImages, SeenReal
from balancer.verification.typicality import Typicality
from balancer.verification.verdict import ImageFlags, Measurement

if TYPE_CHECKING:
    from actors.models.safety import SafetyChecker
    from actors.models.vlm_judge import VlmJudge

Probabilities = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class _View:
    """What the model sees in one image."""

    embedding: np.ndarray
    probabilities: Probabilities
    domain_score: float | None
    typicality: float | None


class Verifier:
    """Measures images with an open_clip model.

    `properties` has the wordings of each value of each property, `temperatures` the calibrated temperature of
    a property (default 1), `negatives` wordings of what images must not show. `second_judge` and `safety` are
    models that judge the same images.
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
        negatives: Sequence[str] = (),
    ) -> None:
        self._encoder = encoder = Encoder(model, revision, device, threads)
        self.model, self.revision, self.device = model, encoder.revision, encoder.device
        with wrap_model_errors(encoder.folder, model, HINT):
            self._texts = {
                name: torch.stack([encoder.embed_text(wordings) for wordings in values.values()])
                for name, values in properties.items()
            }
            others = [encoder.embed_text([wording]) for wording in negatives]
        self._negatives = torch.stack(others) if others else None
        self._values = {name: tuple(values) for name, values in properties.items()}
        self._temperatures = dict(temperatures or {})
        self.embedding_dim = next(iter(self._texts.values())).shape[1]
        self._second_judge, self._safety = second_judge, safety

    def measure(
        self,
        pixels: np.ndarray,
        flags: Sequence[ImageFlags],
        cells: Sequence[Cell],
        typicality: Typicality | None = None,
    ) -> list[Measurement]:
        """One measurement per image of uint8 (N, height, width, 3); `cells` are those the images are for."""
        images = self._encoder.prepare_all(pixels)
        views = [
            view
            for batch in self._encoder.batches(images)
            for view in self._views(batch, self._temperatures, typicality)
        ]
        measured = [_measurement(*each) for each in zip(pixels, flags, views, strict=True)]
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
        pictures = [_decoded(data, max_pixels) for data in files]
        readable = [self._encoder.prepare(each[None]) for each in pictures if not isinstance(each, str)]
        batches = self._encoder.batches(torch.cat(readable)) if readable else ()
        views = (view for batch in batches for view in self._views(batch, {}))
        return [
            picture if isinstance(picture, str) else _measurement(picture, ImageFlags(), next(views))
            for picture in pictures
        ]

    def measure_files_here(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        """Like `measure_files`, but any failure is a WeightsError, because nothing retries the call."""
        with wrap_model_errors(self._encoder.folder, self.model, HINT, problem="cannot be used"):
            return self.measure_files(files, max_pixels)

    def study_files(
        self, files: Sequence[bytes], max_pixels: int, variations: int, seed: int
    ) -> list[SeenReal | str]:
        """What each image file and variations of it look like, or the reason why it cannot be read."""
        return [self._study(_decoded(data, max_pixels), variations, seed) for data in files]

    def challenge(
        self, kind: str, count: int, seed: int, files: Sequence[bytes], labels: Sequence[str], max_pixels: int
    ) -> SeenImages:
        """What `count` challenge images of a kind look like. They are made from image `files`, where the kind
        takes any. Probabilities are uncalibrated."""
        pictures = zip([_decoded(data, max_pixels) for data in files], labels, strict=True)
        sources = [(self._shrunk(image), label) for image, label in pictures if not isinstance(image, str)]
        size = self._encoder.size
        images = make_challenges(
            kind, count, seed, size, [image for image, _ in sources], [label for _, label in sources]
        )
        embeddings, features = self.look(images, KINDS)
        views = self._read(embeddings, {})
        luminance = np.array([luminance_stats(image) for image in images])
        return SeenImages(
            features=features,
            probabilities={
                name: np.array([[*view.probabilities[name].values()] for view in views])
                for name in self._values
            },
            domain_scores=self._domain_scores(embeddings),
            brightness=luminance[:, 0],
            deviation=luminance[:, 1],
        )

    def look(self, pixels: np.ndarray, kinds: Collection[str]) -> tuple[torch.Tensor, Features]:
        """Embeddings of images (N, height, width, 3), and features of some kinds; see `Encoder.look`."""
        return self._encoder.look(self._encoder.prepare_all(pixels), kinds)

    def describe(self) -> dict[str, str]:
        """Model, revision, device and embedding size, for the manifest."""
        return {
            "model": self.model,
            "revision": self.revision,
            "device": device_name(self.device),
            "embedding_dim": str(self.embedding_dim),
        }

    def _study(self, picture: Pixels | str, variations: int, seed: int) -> SeenReal | str:
        if isinstance(picture, str):
            return picture
        shrunk = self._shrunk(picture)
        varied = make_variations(shrunk, variations, seed, shrunk.shape[:2])
        images = torch.cat([self._encoder.prepare(each[None]) for each in (picture, *varied)])
        embeddings, features = self._encoder.look(images, KINDS)
        return SeenReal(features, float(self._domain_scores(embeddings[:1])[0]))

    def _shrunk(self, picture: Pixels) -> Pixels:
        """No larger than the model needs, in the same proportions."""
        scale = max(self._encoder.size) / min(picture.shape[:2])
        if scale >= 1.0:
            return picture
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))

    def _views(
        self, images: torch.Tensor, temperatures: Mapping[str, float], typicality: Typicality | None = None
    ) -> list[_View]:
        """Of each of at most INTERNAL_BATCH inputs."""
        embeddings, features = self._encoder.look_at_batch(images, typicality.distances if typicality else ())
        p_values = None if typicality is None else typicality.p_values(features).tolist()
        return self._read(embeddings, temperatures, p_values)[: len(images)]

    @torch.inference_mode()
    def _read(
        self,
        embeddings: torch.Tensor,
        temperatures: Mapping[str, float],
        p_values: Sequence[float] | None = None,
    ) -> list[_View]:
        likely = {
            # Doubles, which do not round small probabilities to zero: calibration takes logarithms.
            name: (self._encoder.logits(embeddings, texts) / temperatures.get(name, 1.0)).softmax(1).tolist()
            for name, texts in self._texts.items()
        }
        domain_scores = self._domain_scores(embeddings).tolist() if self._negatives is not None else None
        rows = embeddings.cpu().numpy()
        return [
            _View(
                embedding=rows[index],
                probabilities={name: self._by_value(name, images[index]) for name, images in likely.items()},
                domain_score=None if domain_scores is None else domain_scores[index],
                typicality=None if p_values is None else p_values[index],
            )
            for index in range(len(rows))
        ]

    @torch.inference_mode()
    def _domain_scores(self, embeddings: torch.Tensor) -> np.ndarray:
        """The probability of the classes against what images must not show; 1 if there is nothing of it."""
        if self._negatives is None:
            return np.ones(len(embeddings))
        classes, others = (
            self._encoder.logits(embeddings, texts).cpu().numpy()
            for texts in (self._texts[CLASS_PROPERTY], self._negatives)
        )
        return domain_score(classes, others)

    def _by_value(self, name: str, probabilities: Sequence[float]) -> dict[str, float]:
        return dict(zip(self._values[name], probabilities, strict=True))


def _decoded(data: bytes, max_pixels: int) -> Pixels | str:
    try:
        return decode_image(data, max_pixels=max_pixels)
    except UnreadableImage as error:
        return error.reason


def _measurement(image: Pixels, flags: ImageFlags, view: _View) -> Measurement:
    brightness, deviation = luminance_stats(image)
    return Measurement(
        probabilities=view.probabilities,
        brightness=brightness,
        deviation=deviation,
        flags=flags,
        phash=perceptual_hash(image),
        embedding=view.embedding.astype("<f2").tobytes(),
        pixel_sha256=pixel_sha256(image),
        unsafe=flags.unsafe,
        typicality=view.typicality,
        domain_score=view.domain_score,
    )
