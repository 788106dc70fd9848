"""Measure how many images of none of the classes a run with the embedded models would accept: by the classes
and facets alone, with words of what images must not show, and with typicality beside them. And how many true
images that costs.

Prints one JSON object, and with `--keep` writes it to benchmarks/. The verifier was trained on other images
of the kinds in SEEN_IN_TRAINING, and typicality's features were picked by other images of the challenges. The
rest is new to both.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image

from actors.domain import study
from actors.heads import study_heads
from actors.labelled import Looking, call_here
from actors.models.verifier import Verifier
from actors.real_images import measure_here
from balancer import cells
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.dataset.sample import Picture
from balancer.verification.challenges import KINDS, make_challenges
from balancer.verification.negatives import negatives_of
from balancer.verification.off_domain import Domain
from balancer.verification.typicality import from_bytes
from balancer.verification.verdict import (
    NO_LIMITS,
    DomainLimits,
    ImageFlags,
    Measurement,
    criteria_for,
    judge,
)
from benchmarking.record import keep_option, save
from embedded_training import rubbish
from embedded_training.data import CELLS, SIZE, render_set
from embedded_training.unseen import unseen_pictures
from measure_embedded import EMBEDDED, prompt

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
RENDER_SEEDS = 2**47
MEASURING_SEED = 101
STEPS, UNFINISHED = 10, 4
WRONG_SCALES = (0.2, 0.33, 3.0, 5.0)
BATCH = 16

SEEN_IN_TRAINING = (*(kind for kind in KINDS if kind in rubbish.KINDS), "random_latents", "wrong_scale")


@click.command()
@keep_option
@click.option("--verifier", "model", default="embedded", show_default=True, help="Or another one's folder.")
@click.option("--per-kind", default=300, show_default=True)
@click.option("--renders", default=2016, show_default=True)
@click.option("--generated", default=640, show_default=True)
@click.option(
    "--clothes", type=click.Path(path_type=Path), help="t10k-images-idx3-ubyte.gz of Fashion-MNIST."
)
@click.option("--work", type=click.Path(path_type=Path), help="Keep the pictures here for the next time.")
def main(
    model: str, per_kind: int, renders: int, generated: int, clothes: Path | None, work: Path | None
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = _pictures(work or Path(folder), per_kind, renders, generated, clothes)
    asked = {
        "renders": [_cell(number % len(CELLS)) for number in range(renders)],
        "generated": [_cell(number) for number in _cells(generated)],
    }
    images, labels = training_images(load_config(DEMO))
    sets |= {
        kind: make_challenges(kind, per_kind, MEASURING_SEED, (SIZE, SIZE), images, labels) for kind in KINDS
    }
    figures = {
        name: _figures(
            load_config(DEMO, [f"verification.model={model}", *settings]),
            sets,
            asked,
        )
        for name, settings in {
            "all labelled images": [],
            "training images": ["dataset.holdout=null"],
            "no labelled images": ["verification.typicality=never"],
        }.items()
    }
    save("off_domain", {"per_kind": per_kind, "seen_in_training": SEEN_IN_TRAINING, **figures})


def _figures(
    config: Config, sets: Mapping[str, Picture], asked: Mapping[str, Sequence[cells.Cell]]
) -> dict[str, Any]:
    """In per cent: of other images those that some cell accepts, of true ones those that their cell does."""
    domain = study_sample(config)
    judged = config.verification
    verifier = Verifier(judged.model, None, config.properties(), "cpu", 1, negatives=negatives_of(config))
    typicality = None if domain.typicality is None else from_bytes(domain.typicality)
    limits = domain.proof.limits
    rules = {
        "classes": NO_LIMITS,
        "words": DomainLimits(None, limits.domain_score),
        "run": limits,
    }
    every = [_cell(number) for number in range(len(CELLS))]
    accepted: dict[str, dict[str, float]] = {}
    for kind, pictures in sorted(sets.items()):
        measured = verifier.measure(
            pictures, [ImageFlags()] * len(pictures), [every[0]] * len(pictures), typicality
        )
        wanted = [[cell] for cell in asked[kind]] if kind in asked else [every] * len(measured)
        accepted[kind] = {
            name: _per_cent([passes_any(*each, rule, config) for each in zip(measured, wanted, strict=True)])
            for name, rule in rules.items()
        }
    return {
        "proof": domain.proof.as_dict(),
        "true": {kind: accepted.pop(kind) for kind in asked},
        "accepted": accepted,
    }


def study_sample(config: Config) -> Domain:
    audit, holdout = audit_dataset(config), audit_holdout(config)
    looking = Looking(config, audit, holdout, measure_here(config, audit, holdout), call_here(config))
    return study(looking, study_heads(looking))


def passes_any(
    measured: Measurement,
    wanted: Sequence[cells.Cell],
    limits: DomainLimits,
    config: Config,
    threshold: float | None = None,
) -> bool:
    """Whether some cell accepts it, by default at the config's threshold."""
    least = config.verification.threshold if threshold is None else threshold
    return any(judge(measured, cell, criteria_for(cell, least, config, limits)).accepted for cell in wanted)


def _per_cent(chosen: Sequence[bool]) -> float:
    return round(100.0 * float(np.mean(chosen)), 1)


def _cell(number: int) -> cells.Cell:
    cell = CELLS[number]
    facets = (("lighting", cell.lighting), ("burn_level", cell.burn_level))
    return cells.Cell(cell.class_name, tuple((name, value) for name, value in facets if value is not None))


def training_images(config: Config) -> tuple[list[Picture], list[str]]:
    audit = audit_dataset(config)
    pictures = [np.asarray(Image.open(audit.path / each.file_name).convert("RGB")) for each in audit.images]
    return pictures, [each.class_name for each in audit.images]


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
