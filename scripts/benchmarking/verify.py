"""The verifier against the usual ways to judge images with CLIP: images a second, from pixels to scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
import transformers
from PIL import Image

import balancer
from actors.models.verifier import Verifier
from actors.specs import verifier_spec
from balancer.cells import Cell
from balancer.config.load import load_config
from balancer.verification.off_domain import WITH_PLACES
from balancer.verification.typicality import Typicality, fit_typicality
from balancer.verification.verdict import ImageFlags
from benchmarking.record import keep_option, save

ROOT = Path(balancer.__file__).resolve().parent.parent
WORDINGS = 3
VALUES = 6


@click.command("verify")
@keep_option
@click.option("--images", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def command(images: int, repeats: int) -> None:
    """On one CPU thread: the embedded verifier, and a full-size ViT-B/32 with random weights."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    cases = [_embedded(images, repeats), _full_size(min(images, 16), repeats)]
    save("verify", {"threads": 1, "cases": cases})


def _embedded(images: int, repeats: int) -> dict[str, Any]:
    config = load_config(ROOT / "configs" / "demo.yaml")
    verifier = verifier_spec(config).load()
    texts = {name: list(values.values()) for name, values in config.properties().items()}
    folder = ROOT / "balancer" / "embedded" / "verifier"
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = _pictures(images, 128)
    cell = Cell("basic", (("lighting", "dim_ambient"),))

    given = (pixels, [ImageFlags()] * len(pixels), [cell] * len(pixels))
    typicality = _typicality(verifier, pixels)
    loop = _PlainLoop(model, transform, tokenize, texts)
    ways: dict[str, Callable[[], object]] = {
        "balancer": lambda: verifier.measure(*given, typicality),
        "balancer, without typicality": lambda: verifier.measure(*given),
        "open_clip, texts encoded with each image": lambda: loop.with_texts_each_time(pixels),
        "open_clip, texts encoded once": lambda: loop.with_texts_once(pixels),
    }
    return {"model": "embedded", "side": 128, "images": images} | _rates(ways, images, repeats)


def _typicality(verifier: Verifier, pixels: np.ndarray) -> Typicality:
    """By as many features as may be picked."""
    kinds = WITH_PLACES[-1]
    _, features = verifier.look(pixels, kinds)
    return fit_typicality(features, np.arange(len(pixels)), kinds)


def _full_size(images: int, repeats: int) -> dict[str, Any]:
    """The work all three have in common: preprocessing, image embeddings, probabilities of one property."""
    from actors.models.vision.encoder import preprocessed

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    texts = {
        "class": [[f"a photo of thing {v}, wording {w}" for w in range(WORDINGS)] for v in range(VALUES)]
    }
    pixels = _pictures(images, 512)
    embeddings = _text_embeddings(model, tokenize, texts["class"])

    @torch.inference_mode()
    def ours() -> None:
        for start in range(0, images, 4):
            seen = model.encode_image(preprocessed(transform, pixels[start : start + 4]), normalize=True)
            (100 * seen @ embeddings.T).softmax(-1)

    processor = transformers.CLIPImageProcessor()
    clip = transformers.CLIPModel(transformers.CLIPConfig()).eval()

    @torch.inference_mode()
    def with_transformers() -> None:
        ids = torch.ones((VALUES, 77), dtype=torch.long)
        for picture in pixels:
            inputs = processor(Image.fromarray(picture), return_tensors="pt")
            clip(input_ids=ids, **inputs).logits_per_image.softmax(-1)

    loop = _PlainLoop(model, transform, tokenize, texts)
    ways: dict[str, Callable[[], object]] = {
        "balancer": ours,
        "open_clip, texts encoded with each image": lambda: loop.with_texts_each_time(pixels),
        "open_clip, texts encoded once": lambda: loop.with_texts_once(pixels),
        "transformers CLIPProcessor loop": with_transformers,
    }
    return {"model": "ViT-B/32, random weights", "side": 512, "images": images} | _rates(
        ways, images, repeats
    )


class _PlainLoop:
    """One image after another, as open_clip's README shows it: there, texts are encoded with each image."""

    def __init__(self, model: Any, transform: Any, tokenize: Any, texts: dict[str, Any]) -> None:
        self._model, self._transform, self._tokenize, self._texts = model, transform, tokenize, texts

    @torch.inference_mode()
    def with_texts_each_time(self, pixels: np.ndarray) -> None:
        for picture in pixels:
            self._judge(picture, self._words())

    @torch.inference_mode()
    def with_texts_once(self, pixels: np.ndarray) -> None:
        words = self._words()
        for picture in pixels:
            self._judge(picture, words)

    def _words(self) -> list[torch.Tensor]:
        return [
            self._model.encode_text(
                self._tokenize([text for value in values for text in value]), normalize=True
            )
            for values in self._texts.values()
        ]

    def _judge(self, picture: np.ndarray, words: list[torch.Tensor]) -> None:
        image = self._transform(Image.fromarray(picture)).unsqueeze(0)
        seen = self._model.encode_image(image, normalize=True)
        for of_property in words:
            (100 * seen @ of_property.T).softmax(-1)


@torch.inference_mode()
def _text_embeddings(model: Any, tokenize: Any, values: list[list[str]]) -> torch.Tensor:
    return torch.stack([model.encode_text(tokenize(value), normalize=True).mean(0) for value in values])


def _pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def _rates(ways: Mapping[str, Callable[[], object]], images: int, repeats: int) -> dict[str, Any]:
    """Images a second of CPU time, the best of some runs, and how many times the first way's rate that is."""
    rates = {name: images / min(_cpu_s(way) for _ in range(repeats)) for name, way in ways.items()}
    ours = rates["balancer"]
    return {
        "ways": [
            {"way": name, "images_per_cpu_s": round(rate, 2), "balancer_is_faster_by": round(ours / rate, 2)}
            for name, rate in rates.items()
        ]
    }


def _cpu_s(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began
