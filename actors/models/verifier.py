"""The verifier: an open_clip model behind one plain class.

A value has several wordings; its text embedding is the normalised mean of theirs. The probabilities of a
property are the softmax of the model's logits of its values, divided by the property's temperature, or what
its head makes of them.

That holds for models trained with a sigmoid as well (Zhai et al. 2023, Sigmoid Loss for Language Image
Pre-Training, eq. 1): there, the logit z of a text is its own log odds, P = sigmoid(z). The values of a
property exclude each other, and given that exactly one of them is true,
P(i | one) = sigmoid(z_i) prod_j!=i (1 - sigmoid(z_j)) / sum = exp(z_i) / sum_j exp(z_j),
because each term is exp(z_i) times the same product. The bias cancels.
Batches have a fixed size, so a measurement does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from actors.models.device import device_name
from actors.models.vision.encoder import HINT, Encoder, Features, Inputs
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
from balancer.verification.heads import Head
from balancer.verification.negatives import domain_score
from balancer.verification.off_domain import KINDS, SeenImages, SeenReal
from balancer.verification.typicality import Typicality
from balancer.verification.verdict import ImageFlags, Measurement

if TYPE_CHECKING:
    from actors.models.safety import SafetyChecker
    from actors.models.vision.backbone import Backbone
    from actors.models.vlm_judge import VlmJudge

Probabilities = dict[str, dict[str, float]]


NO_HEADS: Mapping[str, Head] = {}
NO_FEATURES: Mapping[str, np.ndarray] = {}


@dataclass(frozen=True, slots=True)
class _View:
    """What the model sees in one image."""

    embedding: np.ndarray
    probabilities: Probabilities
    domain_score: float | None
    typicality: float | None


@dataclass(frozen=True, slots=True)
class _Words:
    """The wordings of a config as a model sees them: `texts` of each property, (values, numbers), and those
    of what images must not show."""

    encoder: Encoder
    values: Mapping[str, tuple[str, ...]]
    texts: Mapping[str, torch.Tensor]
    negatives: torch.Tensor | None

    @classmethod
    def embedded(
        cls,
        encoder: Encoder,
        properties: Mapping[str, Mapping[str, Sequence[str]]],
        negatives: Sequence[str],
    ) -> _Words:
        texts = {
            name: torch.stack([encoder.embed_text(wordings) for wordings in values.values()])
            for name, values in properties.items()
        }
        others = [encoder.embed_text([wording]) for wording in negatives]
        values = {name: tuple(values) for name, values in properties.items()}
        return cls(encoder, values, texts, torch.stack(others) if others else None)

    @torch.inference_mode()
    def likely(
        self,
        embeddings: torch.Tensor,
        temperatures: Mapping[str, float],
        heads: Mapping[str, Head],
        features: Mapping[str, np.ndarray],
    ) -> list[Probabilities]:
        """Probabilities of each image."""
        judged = {
            name: _judged(
                self.encoder.logits(embeddings, texts), temperatures.get(name, 1.0), heads.get(name), features
            )
            for name, texts in self.texts.items()
        }
        return [
            {
                name: dict(zip(self.values[name], images[index], strict=True))
                for name, images in judged.items()
            }
            for index in range(len(embeddings))
        ]

    @torch.inference_mode()
    def domain_scores(self, embeddings: torch.Tensor) -> np.ndarray:
        """The probability of the classes against what images must not show; 1 if there is nothing of it."""
        if self.negatives is None:
            return np.ones(len(embeddings))
        classes, others = (
            self.encoder.logits(embeddings, texts).cpu().numpy()
            for texts in (self.texts[CLASS_PROPERTY], self.negatives)
        )
        return domain_score(classes, others)


def _judged(
    logits: torch.Tensor, temperature: float, head: Head | None, features: Mapping[str, np.ndarray]
) -> list[list[float]]:
    """Probabilities. As doubles, which do not round small ones to zero: calibration takes logarithms."""
    if head is None:
        likely: list[list[float]] = (logits / temperature).softmax(1).tolist()
        return likely
    words = logits.log_softmax(1).cpu().numpy()
    judged: list[list[float]] = np.exp(head.log_probabilities(features, words)).tolist()
    return judged


class Verifier:
    """Measures images with an open_clip model.

    `properties` has the wordings of each value of each property, `temperatures` the calibrated temperature of
    a property (default 1), `negatives` wordings of what images must not show. `second_judge` and `safety` are
    models that judge the same images, `backbone` one that gives features of them.
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
        backbone: Backbone | None = None,
        negatives: Sequence[str] = (),
    ) -> None:
        self._encoder = encoder = Encoder(model, revision, device, threads, backbone)
        self.model, self.revision, self.device = model, encoder.revision, encoder.device
        with wrap_model_errors(encoder.folder, model, HINT):
            self._words = _Words.embedded(encoder, properties, negatives)
        self._temperatures = dict(temperatures or {})
        self.embedding_dim = next(iter(self._words.texts.values())).shape[1]
        self._second_judge, self._safety = second_judge, safety

    def measure(
        self,
        pixels: np.ndarray,
        flags: Sequence[ImageFlags],
        cells: Sequence[Cell],
        typicality: Typicality | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> list[Measurement]:
        """One measurement per image of uint8 (N, height, width, 3); `cells` are those the images are for.
        `heads` judge their properties in the place of the words."""
        images = self._encoder.prepare_all(pixels)
        views = [
            view
            for batch in self._encoder.batches(images)
            for view in self._views(batch, self._temperatures, typicality, heads or {})
        ]
        measured = [_measurement(*each) for each in zip(pixels, flags, views, strict=True)]
        if self._second_judge is not None:
            scores = self._second_judge.scores(pixels, cells)
            measured = [replace(one, second_scores=own) for one, own in zip(measured, scores, strict=True)]
        return measured if self._safety is None else _checked(measured, self._safety.probabilities(pixels))

    def measure_files(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        """One measurement per image file of any size, or the reason why it cannot be read. Probabilities are
        uncalibrated, because calibrations are fitted on them."""
        pictures = [_decoded(data, max_pixels) for data in files]
        readable = [self._encoder.prepare(each[None]) for each in pictures if not isinstance(each, str)]
        batches = self._encoder.batches(Inputs.joined(readable)) if readable else ()
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
        self,
        files: Sequence[bytes],
        max_pixels: int,
        variations: int,
        seed: int,
        head_kinds: Collection[str] = (),
    ) -> list[SeenReal | str]:
        """What each image file and variations of it look like, or the reason why it cannot be read."""
        pictures = [_decoded(data, max_pixels) for data in files]
        readable = [picture for picture in pictures if not isinstance(picture, str)]
        at_once = 1 if variations else max(1, len(readable))  # with variations one fills batches alone
        seen = (
            one
            for start in range(0, len(readable), at_once)
            for one in self._study(readable[start : start + at_once], variations, seed, head_kinds)
        )
        return [picture if isinstance(picture, str) else next(seen) for picture in pictures]

    def challenge(
        self,
        kind: str,
        count: int,
        seed: int,
        files: Sequence[bytes],
        labels: Sequence[str],
        max_pixels: int,
        heads: Mapping[str, Head] = NO_HEADS,
    ) -> SeenImages:
        """What `count` challenge images of a kind look like. They are made from image `files`, where the kind
        takes any. Probabilities are uncalibrated, but for those of `heads`."""
        pictures = zip([_decoded(data, max_pixels) for data in files], labels, strict=True)
        sources = [
            (self._encoder.shrink(image), label) for image, label in pictures if not isinstance(image, str)
        ]
        size = self._encoder.size
        images = make_challenges(
            kind, count, seed, size, [image for image, _ in sources], [label for _, label in sources]
        )
        embeddings, features = self.look(images, {*KINDS, *_kinds(heads)})
        views = self._read(embeddings, {}, heads=heads, features=features)
        luminance = np.array([luminance_stats(image) for image in images])
        return SeenImages(
            features=_of_kinds(features, KINDS),
            probabilities={
                name: np.array([[*view.probabilities[name].values()] for view in views])
                for name in self._words.values
            },
            domain_scores=self._words.domain_scores(embeddings),
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

    def _study(
        self, pictures: Sequence[Pixels], variations: int, seed: int, head_kinds: Collection[str]
    ) -> list[SeenReal]:
        rows, images = 1 + variations, []
        for picture in pictures:
            shrunk = self._encoder.shrink(picture)
            images += [picture, *make_variations(shrunk, variations, seed, shrunk.shape[:2])]
        inputs = Inputs.joined([self._encoder.prepare(each[None]) for each in images])
        embeddings, features = self._encoder.look(inputs, {*KINDS, *head_kinds})
        scores = self._words.domain_scores(embeddings[::rows]).tolist()
        return [
            SeenReal(
                _of_kinds(features, KINDS, slice(number * rows, (number + 1) * rows)),
                score,
                _of_kinds(features, head_kinds, number * rows),
            )
            for number, score in enumerate(scores)
        ]

    def _views(
        self,
        images: Inputs,
        temperatures: Mapping[str, float],
        typicality: Typicality | None = None,
        heads: Mapping[str, Head] = NO_HEADS,
    ) -> list[_View]:
        """Of each of at most INTERNAL_BATCH inputs."""
        kinds = {*(typicality.distances if typicality else ()), *_kinds(heads)}
        embeddings, features = self._encoder.look_at_batch(images, kinds)
        p_values = None if typicality is None else typicality.p_values(features).tolist()
        return self._read(embeddings, temperatures, p_values, heads, features)[: len(images)]

    @torch.inference_mode()
    def _read(
        self,
        embeddings: torch.Tensor,
        temperatures: Mapping[str, float],
        p_values: Sequence[float] | None = None,
        heads: Mapping[str, Head] = NO_HEADS,
        features: Mapping[str, np.ndarray] = NO_FEATURES,
    ) -> list[_View]:
        likely = self._words.likely(embeddings, temperatures, heads, features)
        domain_scores = None if self._words.negatives is None else self._words.domain_scores(embeddings)
        rows = embeddings.cpu().numpy()
        return [
            _View(
                embedding=rows[index],
                probabilities=likely[index],
                domain_score=None if domain_scores is None else float(domain_scores[index]),
                typicality=None if p_values is None else p_values[index],
            )
            for index in range(len(rows))
        ]


def _checked(measured: Sequence[Measurement], unsafe: Sequence[float]) -> list[Measurement]:
    """With the higher of both scores of safety."""
    both = zip(measured, unsafe, strict=True)
    return [replace(one, unsafe=max(own, one.unsafe or 0.0)) for one, own in both]


def _of_kinds(features: Features, kinds: Collection[str], rows: int | slice = slice(None)) -> Features:
    """As far as the model has them."""
    return {kind: features[kind][rows] for kind in kinds if kind in features}


def _kinds(heads: Mapping[str, Head]) -> set[str]:
    return {kind for head in heads.values() for kind in head.kinds}


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
