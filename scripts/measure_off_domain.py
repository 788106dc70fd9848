"""Measure how many images of none of the classes the embedded verifier takes for one, before and after
typicality, and how many true images typicality costs.

Prints one JSON object. Six kinds are never chosen on: text, photographs, textile, clothes, and two ways in
which a generator fails.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image
from sklearn.datasets import load_sample_images

from actors.models.verifier import Verifier
from balancer.cells import CLASS_PROPERTY, Cell
from balancer.config.load import load_config
from balancer.dataset.sample import CLASSES, Picture, write_dataset
from balancer.images import Pixels
from balancer.verification.challenges import BLENDED, KINDS, make_challenges, make_variations
from balancer.verification.typicality import Typicality, choose, fit_typicality
from balancer.verification.verdict import ImageFlags
from embedded_training.data import CELLS, SIZE, render_set
from measure_embedded import EMBEDDED, PASS_SCORE, prompt

PROJECT = Path(__file__).resolve().parent.parent
RENDER_SEEDS = 2**47
VARIATIONS = 6
CHOOSING_SEED, MEASURING_SEED = 7, 101
STEPS, UNFINISHED = 10, 4
BATCH = 16
MAX_LOST = 4.0
"""Per cent of held-out images, of which there are only 120."""

PIXELS = ("sharpness", "relative_sharpness", "seams")
PLACES = ("block1.moments", "block1.variogram", "block2.variogram")
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("final",),
    "moments": ("block1.moments",),
    "moments, pixels": ("block1.moments", *PIXELS),
    "places, pixels": (*PLACES, *PIXELS),
    "places, pixels, cuts": (*PLACES, *PIXELS, "cuts"),
    "places, grid, pixels": (*PLACES, "block1.grid", *PIXELS),
    "places, grid, pixels, cuts": (*PLACES, "block1.grid", *PIXELS, "cuts"),
}
HELD_BACK = ("text", BLENDED)
"""Challenges that nothing is chosen on: one as a test, one because it is half right."""

Features = dict[str, np.ndarray]


class Seen:
    """What the verifier sees in one set of pictures: features, and whether it accepts them as some class, and
    as the cell that was asked for."""

    def __init__(self, verifier: Verifier, pictures: Picture, asked: list[int] | None = None) -> None:
        self.features = verifier.typicality_features(pictures)
        cells = [Cell(CLASSES[0])] * len(pictures)  # for a second judge, which there is not
        measured = verifier.measure(pictures, [ImageFlags()] * len(pictures), cells)
        likely = [one.probabilities for one in measured]
        self.accepted = np.array([max(one[CLASS_PROPERTY].values()) >= PASS_SCORE for one in likely])
        if asked is not None:
            wanted = [CELLS[number] for number in asked]
            self.accepted = np.array(
                [_score(*pair) >= PASS_SCORE for pair in zip(likely, wanted, strict=True)]
            )

    def share(self, model: Typicality, alpha: float) -> float:
        """Of all pictures, those accepted that are typical as well; in per cent."""
        return _per_cent(self.accepted & (model.p_values(self.features) > alpha))

    def lost(self, model: Typicality, alpha: float) -> float:
        """Of the accepted pictures, those that are not typical; in per cent."""
        return _per_cent((model.p_values(self.features) <= alpha)[self.accepted])


def _score(likely: Mapping[str, Mapping[str, float]], cell: Any) -> float:
    wanted = {CLASS_PROPERTY: cell.class_name, "lighting": cell.lighting, "burn_level": cell.burn_level}
    return min(likely[name][value] for name, value in wanted.items() if value is not None)


def _per_cent(chosen: np.ndarray) -> float:
    return round(100.0 * float(chosen.mean()), 1)


@click.command()
@click.option("--per-kind", default=300, show_default=True)
@click.option("--renders", default=2016, show_default=True)
@click.option("--alpha", default=0.02, show_default=True)
@click.option(
    "--clothes", type=click.Path(path_type=Path), help="t10k-images-idx3-ubyte.gz of Fashion-MNIST."
)
def main(per_kind: int, renders: int, alpha: float, clothes: Path | None) -> None:
    torch.set_num_threads(1)
    verifier = Verifier("embedded", None, load_config(PROJECT / "configs/demo.yaml").properties(), "cpu", 1)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "sample")
        train, holdout = (_read(Path(folder) / "sample" / split) for split in ("train", "holdout"))
    choosing = {
        kind: Seen(verifier, make_challenges(kind, 64, CHOOSING_SEED, (SIZE, SIZE), *train))
        for kind in KINDS
        if kind not in HELD_BACK
    }
    generated, unseen = _generate(per_kind), _unseen(per_kind, clothes)
    challenges = {
        kind: Seen(verifier, pictures)
        for kind, pictures in {
            **{kind: make_challenges(kind, per_kind, MEASURING_SEED, (SIZE, SIZE), *train) for kind in KINDS},
            **unseen,
            "unfinished": generated["unfinished"],
            "random_latents": generated["random_latents"],
        }.items()
    }
    fresh = render_set(RENDER_SEEDS, renders)
    true = {
        "renders": Seen(verifier, fresh.pictures, [number % len(CELLS) for number in range(renders)]),
        "generated": Seen(verifier, generated["finished"], _cells(per_kind)),
    }
    held_out = Seen(verifier, np.stack(holdout[0]))
    results = {
        "training images": _measure(
            _reference(verifier, train[0]), held_out, choosing, challenges, true, alpha
        ),
        "all labelled images": _measure(
            _reference(verifier, train[0] + holdout[0]), None, choosing, challenges, true, alpha
        ),
    }
    now = {kind: _per_cent(seen.accepted) for kind, seen in challenges.items()}
    click.echo(json.dumps({"alpha": alpha, "per_kind": per_kind, "accepted_now": now, **results}, indent=2))


def _measure(
    reference: tuple[Features, np.ndarray],
    held_out: Seen | None,
    choosing: Mapping[str, Seen],
    challenges: Mapping[str, Seen],
    true: Mapping[str, Seen],
    alpha: float,
) -> dict[str, Any]:
    """`held_out` are true images that were not fitted on; without any, the p-value says what is lost."""
    models = {name: fit_typicality(*reference, kinds) for name, kinds in CANDIDATES.items()}
    kept = {
        name: {kind: seen.share(model, alpha) for kind, seen in choosing.items()}
        for name, model in models.items()
    }
    lost = {name: 0.0 if held_out is None else held_out.lost(model, alpha) for name, model in models.items()}
    chosen, expected = choose(kept, lost, MAX_LOST)
    figures = {
        name: {
            "lost": {kind: seen.lost(model, alpha) for kind, seen in true.items()},
            "accepted": {kind: seen.share(model, alpha) for kind, seen in challenges.items()},
        }
        for name, model in models.items()
    }
    return {
        "chosen": chosen,
        "lost_of_held_out": lost,
        "expected_of_kinds_not_chosen_on": expected,
        "candidates": figures,
    }


def _reference(verifier: Verifier, images: list[Pixels]) -> tuple[Features, np.ndarray]:
    pictures = [
        np.concatenate([image[None], make_variations(image, VARIATIONS, number, (SIZE, SIZE))])
        for number, image in enumerate(images)
    ]
    features = verifier.typicality_features(np.concatenate(pictures))
    return features, np.repeat(np.arange(len(images)), 1 + VARIATIONS)


def _read(folder: Path) -> tuple[list[Pixels], list[str]]:
    files = sorted(folder.rglob("*.png"))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files], [
        file.parent.name for file in files
    ]


def _cells(count: int) -> list[int]:
    return [number * 7 % len(CELLS) for number in range(count)]


def _generate(count: int) -> dict[str, Picture]:
    """Finished pictures, latents decoded after 1 to 4 of 10 steps, and latents that were never denoised."""
    pipeline = AutoPipelineForText2Image.from_pretrained(
        EMBEDDED / "generator", use_safetensors=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    finished, unfinished = [], []
    for start in range(0, count, BATCH):
        numbers = [10_000 + start + offset for offset in range(BATCH)]
        cells = [CELLS[number] for number in _cells(start + BATCH)[start:]]
        latents: list[torch.Tensor] = []
        last = pipeline(
            prompt=[prompt(*pair) for pair in zip(cells, map(random.Random, numbers), strict=True)],
            negative_prompt=[""] * BATCH,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            height=SIZE,
            width=SIZE,
            generator=[torch.Generator("cpu").manual_seed(number) for number in numbers],
            output_type="latent",
            callback_on_step_end=_keep(latents),
        ).images
        finished.append(_decode(pipeline, last))
        early = torch.stack([latents[offset % UNFINISHED][offset] for offset in range(BATCH)])
        unfinished.append(_decode(pipeline, early))
    noise = torch.randn(count, *last.shape[1:], generator=torch.Generator().manual_seed(0))
    noise[::2] = noise[::2, :, :1, :1]  # constant latents
    return {
        "finished": np.concatenate(finished)[:count],
        "unfinished": np.concatenate(unfinished)[:count],
        "random_latents": np.concatenate([_decode(pipeline, part) for part in noise.split(BATCH)]),
    }


def _keep(latents: list[torch.Tensor]) -> Callable[..., dict[str, Any]]:
    def keep(pipeline: Any, step: int, time: int, arguments: dict[str, Any]) -> dict[str, Any]:
        latents.append(arguments["latents"].clone())
        return arguments

    return keep


@torch.inference_mode()
def _decode(pipeline: Any, latents: torch.Tensor) -> Picture:
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    shown = (decoded / 2.0 + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy()
    pictures: Picture = (shown * 255.0).round().astype(np.uint8)
    return pictures


def _unseen(count: int, clothes: Path | None) -> dict[str, Picture]:
    rng = np.random.default_rng(1)
    kinds = {"photographs": _photographs(count, rng), "textile": _textile(count, rng)}
    if clothes is not None:
        with gzip.open(clothes) as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        picked = images[rng.choice(len(images), count, replace=False)]
        kinds["clothes"] = np.stack([_enlarged(Image.fromarray(image)) for image in picked])
    return kinds


def _enlarged(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _photographs(count: int, rng: np.random.Generator) -> Picture:
    """Squares cut from the two photographs, of a temple and of a flower, that scikit-learn ships."""
    pictures, images = [], load_sample_images().images
    for number in range(count):
        image, side = images[number % 2], int(rng.integers(100, 420))
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        pictures.append(_enlarged(Image.fromarray(image[top : top + side, left : left + side])))
    return np.stack(pictures)


def _textile(count: int, rng: np.random.Generator) -> Picture:
    """Grey cloth, thread by thread over and under."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    pictures = []
    for _ in range(count):
        thread = int(rng.integers(3, 9))
        over = (x // thread + y // thread) % 2 == 0
        bent = np.sin(np.pi * (np.where(over, x, y) % thread + 0.5) / thread)
        warp, weft = rng.normal(0.0, 0.06, (2, SIZE))
        grey = (
            rng.uniform(0.3, 0.7) + 0.25 * (bent - 0.6) + np.where(over, warp[x // thread], weft[y // thread])
        )
        grey += rng.normal(0.0, 0.04, grey.shape)
        picture = Image.fromarray((np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8))
        turned = picture.rotate(rng.uniform(-8.0, 8.0), Image.Resampling.BICUBIC, fillcolor=128)
        pictures.append(_enlarged(turned))
    return np.stack(pictures)


if __name__ == "__main__":
    main()
