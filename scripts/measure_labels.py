"""Estimate the label precision of accepted images, with a judge that shares nothing with the verifier
(`embedded_training/label_judge.py`).

Candidates of every cell are generated and measured by the classes a run uses, under a config of the embedded
models, as a run measures them. Of the accepted and of the rejected ones at each threshold, the share with a
label that the judge agrees with is counted, and how many of as many challenge images some cell accepts.
Mistakes of the judge make this a lower bound: its own accuracy on renders is measured first, and `--sheet`
shows every accepted picture it disagrees on. Prints one JSON object, whose figures are
in the model card.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.stats import binomtest

from actors.specs import generator_spec, verifier_spec
from balancer.cells import Candidate, Cell, Slot, enumerate_cells
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.sample import Picture
from balancer.scheduling.prompts import ladder, request_for
from balancer.verification.challenges import BLENDED, KINDS, make_challenges
from balancer.verification.typicality import from_bytes
from balancer.verification.verdict import (
    DomainLimits,
    ImageFlags,
    Measurement,
    Verdict,
    criteria_for,
    judge,
)
from embedded_training import data
from embedded_training.checkpoints import load_checkpoint, save_checkpoint
from embedded_training.data import CELLS, Renders
from embedded_training.label_judge import VALUES, LabelJudge, soften, train_judge, wanted_value
from embedded_training.loop import pixels, step_generator
from measure_off_domain import passes_any, study_sample, training_images

CHALLENGE_SEED = 202

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
THRESHOLDS = (0.5, 0.6, 0.8)
SHEET_THRESHOLD = 0.6
TRAINING_RENDERS = 256 * len(CELLS)
HELD_OUT_RENDERS = 64 * len(CELLS)
SHEET_COLUMNS = 6
SHEET_ZOOM = 2
CAPTION_HEIGHT = 44

Answers = dict[str, list[str]]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Renders, judge, candidates.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=DEMO, show_default=True)
@click.option("--per-cell", default=40, show_default=True, help="Candidates generated per cell.")
@click.option("--steps", default=600, show_default=True, help="Training steps of the judge.")
@click.option("--threads", default=1, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Save accepted pictures it disagrees on.")
def main(work: Path, config_path: Path, per_cell: int, steps: int, threads: int, sheet: Path | None) -> None:
    """Label precision of accepted and of rejected candidates, per property."""
    work.mkdir(parents=True, exist_ok=True)
    config = load_config(config_path)
    torch.set_num_threads(threads)
    referee = _judge(work, steps)
    held_out = data.load_or_render(work / "judge-held-out.npy", data.JUDGE_TEST_SEEDS, HELD_OUT_RENDERS)
    candidates = [
        Candidate(Slot(cell, index), 1)
        for name in config.classes
        for cell in enumerate_cells(name, config.facet_axes())
        for index in range(per_cell)
    ]
    pictures, flags = _pictures(config, candidates, work)
    cells = [candidate.slot.cell for candidate in candidates]
    domain = study_sample(config)
    limits = domain.proof.limits
    typicality = None if domain.typicality is None else from_bytes(domain.typicality)
    verifier = verifier_spec(config).load()
    measurements = verifier.measure(pictures, flags, cells, typicality)
    answers = referee.answers(pictures)
    challenges, every = _challenges(len(candidates), config), tuple(dict.fromkeys(cells))
    challenged = verifier.measure(challenges, flags, cells, typicality)
    figures = {
        "judge": {
            "training_renders": TRAINING_RENDERS,
            "held_out_renders": HELD_OUT_RENDERS,
            "accuracy": _accuracy(referee, held_out, held_out.pictures),
            "accuracy_softened": _accuracy(referee, held_out, _softened(held_out.pictures)),
        },
        "candidates": len(candidates),
        "thresholds": {
            str(threshold): _precision(
                cells, _verdicts(measurements, cells, threshold, config, limits), answers
            )
            | {
                "as_many_challenges_accepted": sum(
                    passes_any(one, every, limits, config, threshold) for one in challenged
                )
            }
            for threshold in THRESHOLDS
        },
    }
    if sheet is not None:
        accepted = [v.accepted for v in _verdicts(measurements, cells, SHEET_THRESHOLD, config, limits)]
        _save_sheet(pictures, cells, answers, accepted, sheet)
    click.echo(json.dumps(figures, indent=2))


def _judge(work: Path, steps: int) -> LabelJudge:
    """The trained judge, kept in `work` for the next time."""
    path = work / f"label-judge-{steps}.pt"
    if (state := load_checkpoint(path)) is not None:
        referee = LabelJudge()
        referee.load_state_dict(state)
        return referee
    renders = data.load_or_render(work / "judge-training.npy", data.JUDGE_TRAINING_SEEDS, TRAINING_RENDERS)
    with contextlib.redirect_stdout(sys.stderr):
        referee = train_judge(renders, steps)
    save_checkpoint(path, referee.state_dict())
    return referee


def _pictures(
    config: Config, candidates: Sequence[Candidate], work: Path
) -> tuple[Picture, list[ImageFlags]]:
    """The first attempt at every slot; made once for the same requests, settings and weights."""
    rung = ladder(config)[0]
    requests = [request_for(candidate, rung, config) for candidate in candidates]
    generator = generator_spec(config).load()
    asked = [(request.prompt, request.negative_prompt, request.seed) for request in requests]
    made_by = f"{config.generation.model_dump_json()}\n{generator.revision}\n{asked}"
    path = work / f"candidates-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        pictures, flags = generator.generate(requests, rung.guidance)
        np.savez(path, pictures=pictures, nonfinite=[flag.nonfinite for flag in flags])
    with np.load(path) as kept:
        return kept["pictures"], [ImageFlags(nonfinite=int(count)) for count in kept["nonfinite"]]


def _verdicts(
    measurements: Sequence[Measurement],
    cells: Sequence[Cell],
    threshold: float,
    config: Config,
    limits: DomainLimits,
) -> list[Verdict]:
    return [
        judge(measurement, cell, criteria_for(cell, threshold, config, limits))
        for measurement, cell in zip(measurements, cells, strict=True)
    ]


def _challenges(count: int, config: Config) -> Picture:
    """As many of every kind but blends, which are half right; all that some cell accepts are mistakes."""
    images, labels = training_images(config)
    kinds = [kind for kind in KINDS if kind != BLENDED]
    each = -(-count // len(kinds))
    made = [
        make_challenges(kind, each, CHALLENGE_SEED, (data.SIZE, data.SIZE), images, labels) for kind in kinds
    ]
    return np.concatenate(made)[:count]


def _accuracy(referee: LabelJudge, renders: Renders, pictures: Picture) -> dict[str, Any]:
    answers = referee.answers(pictures)
    accuracy = {}
    for name in VALUES:
        wanted = [wanted_value(renders.cell(index), name) for index in range(len(pictures))]
        pairs = [(a, w) for a, w in zip(answers[name], wanted, strict=True) if w is not None]
        accuracy[name] = _share(sum(answer == value for answer, value in pairs), len(pairs))
    return accuracy


def _softened(pictures: Picture) -> Picture:
    """Blurred and noisy, differently in each batch, as in the judge's training."""
    parts = []
    for start in range(0, len(pictures), 64):
        images = pixels(pictures[start : start + 64], torch.device("cpu"))
        soft = soften(images, step_generator("label judge test", start))
        parts.append(((soft + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _precision(cells: Sequence[Cell], verdicts: Sequence[Verdict], answers: Answers) -> dict[str, Any]:
    """The share that shows the wanted value, according to the judge: of accepted candidates, of rejected
    ones, and of those rejected for that property."""
    precision: dict[str, Any] = {"accepted": sum(verdict.accepted for verdict in verdicts)}
    for name in VALUES:
        agreed: dict[str, list[bool]] = {"accepted": [], "rejected": [], "rejected_for_it": []}
        for cell, verdict, answer in zip(cells, verdicts, answers[name], strict=True):
            wanted = dict(cell.properties).get(name)
            if wanted is None:
                continue
            agreed["accepted" if verdict.accepted else "rejected"].append(answer == wanted)
            if verdict.reason == name:
                agreed["rejected_for_it"].append(answer == wanted)
        precision[name] = {group: _share(sum(of), len(of)) for group, of in agreed.items()}
    return precision


def _share(right: int, count: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson)."""
    if count == 0:
        return {"right": 0, "of": 0, "share": None, "interval": None}
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return {
        "right": right,
        "of": count,
        "share": round(right / count, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
    }


def _save_sheet(
    pictures: Picture, cells: Sequence[Cell], answers: Answers, accepted: Sequence[bool], path: Path
) -> None:
    """Accepted pictures whose label the judge disputes: the label, and the judge's answer."""
    mistakes = []
    for index, cell in enumerate(cells):
        wrong = [answers[name][index] for name, wanted in cell.properties if answers[name][index] != wanted]
        if accepted[index] and wrong:
            mistakes.append((pictures[index], cell.key, "seen: " + ", ".join(wrong)))
    side = SHEET_ZOOM * pictures.shape[1]
    rows = max(1, -(-len(mistakes) // SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, rows * (side + CAPTION_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, label, seen) in enumerate(mistakes):
        left, top = index % SHEET_COLUMNS * side, index // SHEET_COLUMNS * (side + CAPTION_HEIGHT)
        sheet.paste(Image.fromarray(picture).resize((side, side)), (left, top))
        draw.text((left + 2, top + side + 2), f"{label}\n{seen}", fill="black")
    sheet.save(path)


if __name__ == "__main__":
    main()
