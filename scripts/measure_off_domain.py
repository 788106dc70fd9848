"""Measure how many images of none of the classes the embedded verifier takes for one: by the classes alone,
with the share that they have against the negatives, with typicality, and with both; and how many true images
each costs.

Prints one JSON object. SEEN_IN_TRAINING are kinds of which the verifier was trained on others; the rest it
never saw. Typicality's kinds of features are chosen on challenges of another seed, none of them in HELD_BACK.
"""

from __future__ import annotations

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

from actors.models.verifier import Verifier
from balancer.cells import CLASS_PROPERTY, Cell
from balancer.config.load import load_config
from balancer.dataset.sample import CLASSES, Picture, write_dataset
from balancer.images import Pixels
from balancer.verification.challenges import BLENDED, KINDS, make_challenges, make_variations
from balancer.verification.negatives import NEGATIVES
from balancer.verification.typicality import Typicality, choose, fit_typicality
from balancer.verification.verdict import ImageFlags
from embedded_training import rubbish
from embedded_training.data import CELLS, SIZE, render_set
from embedded_training.unseen import unseen_pictures
from measure_embedded import EMBEDDED, PASS_SCORE, prompt

PROJECT = Path(__file__).resolve().parent.parent
RENDER_SEEDS = 2**47
VARIATIONS = 6
CHOOSING_SEED, MEASURING_SEED = 7, 101
STEPS, UNFINISHED = 10, 4
WRONG_SCALES = (0.2, 0.33, 3.0, 5.0)
BATCH = 16
LEAST_DOMAIN_SCORE = 0.5
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

SEEN_IN_TRAINING = (*(kind for kind in KINDS if kind in rubbish.KINDS), "random_latents", "wrong_scale")

Features = dict[str, np.ndarray]


class Seen:
    """What the verifier sees in one set of pictures: features, whether it accepts them as some class, or as
    the cell that was asked for, and whether the classes outweigh the negatives."""

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
        scores = np.array([sum(one["domain"][name] for name in CLASSES) for one in likely])
        self.of_the_domain = scores >= LEAST_DOMAIN_SCORE

    def typical(self, model: Typicality, alpha: float) -> np.ndarray:
        return model.p_values(self.features) > alpha

    def share(self, *conditions: np.ndarray) -> float:
        """Of all pictures, those accepted that meet the conditions; in per cent."""
        return _per_cent(np.all([self.accepted, *conditions], axis=0))

    def lost(self, *conditions: np.ndarray) -> float:
        """Of the accepted pictures, those that do not meet all conditions; in per cent."""
        return _per_cent(~np.all(conditions, axis=0)[self.accepted])


def _score(likely: Mapping[str, Mapping[str, float]], cell: Any) -> float:
    wanted = {CLASS_PROPERTY: cell.class_name, "lighting": cell.lighting, "burn_level": cell.burn_level}
    return min(likely[name][value] for name, value in wanted.items() if value is not None)


def _per_cent(chosen: np.ndarray) -> float:
    return round(100.0 * float(chosen.mean()), 1)


@click.command()
@click.option("--verifier", "model", default="embedded", show_default=True, help="Or another one's folder.")
@click.option("--per-kind", default=300, show_default=True)
@click.option("--renders", default=2016, show_default=True)
@click.option("--generated", default=640, show_default=True)
@click.option("--alpha", default=0.02, show_default=True)
@click.option(
    "--clothes", type=click.Path(path_type=Path), help="t10k-images-idx3-ubyte.gz of Fashion-MNIST."
)
@click.option("--work", type=click.Path(path_type=Path), help="Keep the pictures here for the next time.")
def main(
    model: str,
    per_kind: int,
    renders: int,
    generated: int,
    alpha: float,
    clothes: Path | None,
    work: Path | None,
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "sample")
        train, holdout = (_read(Path(folder) / "sample" / split) for split in ("train", "holdout"))
        sets = _pictures(work or Path(folder), per_kind, renders, generated, clothes)
    verifier = _verifier(model)
    choosing = {
        kind: Seen(verifier, make_challenges(kind, 64, CHOOSING_SEED, (SIZE, SIZE), *train))
        for kind in KINDS
        if kind not in HELD_BACK
    }
    true = {
        "renders": Seen(verifier, sets.pop("renders"), [number % len(CELLS) for number in range(renders)]),
        "generated": Seen(verifier, sets.pop("generated"), _cells(generated)),
    }
    sets |= {kind: make_challenges(kind, per_kind, MEASURING_SEED, (SIZE, SIZE), *train) for kind in KINDS}
    challenges = {kind: Seen(verifier, pictures) for kind, pictures in sorted(sets.items())}
    held_out = Seen(verifier, np.stack(holdout[0]))
    results = {
        "training images": _measure(
            _reference(verifier, train[0]), held_out, choosing, challenges, true, alpha
        ),
        "all labelled images": _measure(
            _reference(verifier, train[0] + holdout[0]), None, choosing, challenges, true, alpha
        ),
    }
    figures = {
        "alpha": alpha,
        "per_kind": per_kind,
        "seen_in_training": SEEN_IN_TRAINING,
        "accepted_as_asked": {kind: seen.share() for kind, seen in true.items()},
        "accepted_by_classes": {kind: seen.share() for kind, seen in challenges.items()},
        "accepted_with_negatives": {
            kind: seen.share(seen.of_the_domain) for kind, seen in challenges.items()
        },
        "lost_with_negatives": {kind: seen.lost(seen.of_the_domain) for kind, seen in true.items()},
    }
    click.echo(json.dumps({**figures, **results}, indent=2))


def _verifier(model: str) -> Verifier:
    """One that judges against the negatives as well, as one more property."""
    properties = load_config(PROJECT / "configs/demo.yaml").properties()
    negatives = {negative: (negative,) for negative in NEGATIVES}
    properties = {**properties, "domain": {**properties[CLASS_PROPERTY], **negatives}}
    return Verifier(model, None, properties, "cpu", 1)


def _pictures(
    work: Path, per_kind: int, renders: int, generated: int, clothes: Path | None
) -> dict[str, Picture]:
    """True ones, `renders` and `generated`, and some of each kind that is no challenge."""
    path = work / f"off-domain-{per_kind}-{renders}-{generated}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        sets = {
            "renders": render_set(RENDER_SEEDS, renders).pictures,
            **_generate(generated, per_kind),
            **unseen_pictures(per_kind, clothes),
        }
        np.savez(path, allow_pickle=False, **sets)
    with np.load(path) as kept:
        return dict(kept)


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
        name: {kind: seen.share(seen.typical(model, alpha)) for kind, seen in choosing.items()}
        for name, model in models.items()
    }
    lost = {
        name: 0.0 if held_out is None else held_out.lost(held_out.typical(model, alpha))
        for name, model in models.items()
    }
    chosen, expected = choose(kept, lost, MAX_LOST)
    figures = {name: _figures(model, challenges, true, alpha) for name, model in models.items()}
    return {
        "chosen": chosen,
        "lost_of_held_out": lost,
        "expected_of_kinds_not_chosen_on": expected,
        "candidates": figures,
    }


def _figures(
    model: Typicality, challenges: Mapping[str, Seen], true: Mapping[str, Seen], alpha: float
) -> dict[str, Any]:
    typical = {kind: seen.typical(model, alpha) for kind, seen in {**challenges, **true}.items()}
    return {
        "lost": {kind: seen.lost(typical[kind]) for kind, seen in true.items()},
        "lost_with_negatives": {
            kind: seen.lost(typical[kind], seen.of_the_domain) for kind, seen in true.items()
        },
        "accepted": {kind: seen.share(typical[kind]) for kind, seen in challenges.items()},
        "accepted_with_negatives": {
            kind: seen.share(typical[kind], seen.of_the_domain) for kind, seen in challenges.items()
        },
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


def _generate(count: int, per_kind: int) -> dict[str, Picture]:
    """`count` finished pictures, and `per_kind` of latents that were decoded after 1 to 4 of 10 steps, at a
    wrong scale, or without a step."""
    pipeline = AutoPipelineForText2Image.from_pretrained(
        EMBEDDED / "generator", use_safetensors=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    made: dict[str, list[Picture]] = {"generated": [], "unfinished": [], "wrong_scale": []}
    for start in range(0, max(count, per_kind), BATCH):
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
        made["generated"].append(_decode(pipeline, last))
        if start < per_kind:
            early = torch.stack([latents[offset % UNFINISHED][offset] for offset in range(BATCH)])
            scales = torch.tensor([WRONG_SCALES[offset % len(WRONG_SCALES)] for offset in range(BATCH)])
            made["unfinished"].append(_decode(pipeline, early))
            made["wrong_scale"].append(_decode(pipeline, last * scales[:, None, None, None]))
    noise = torch.randn(per_kind, *last.shape[1:], generator=torch.Generator().manual_seed(0))
    noise[::2] = noise[::2, :, :1, :1]  # constant latents
    made["random_latents"] = [_decode(pipeline, part) for part in noise.split(BATCH)]
    return {
        name: np.concatenate(parts)[: count if name == "generated" else per_kind]
        for name, parts in made.items()
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


if __name__ == "__main__":
    main()
