"""`balancer calibrate`: fit the verifier's probabilities to labelled real images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.errors import UsageError
from balancer.text.quantities import counted, percent

WANTED = 0.95

if TYPE_CHECKING:
    from balancer.verification.calibration import PropertyCalibration
    from balancer.verification.head_choice import HeadResult
    from balancer.verification.heads import HeadProof


@click.command("calibrate")
@click.argument("config", type=click.Path())
@click.option("--out", default=None, help="File to write.  [default: CONFIG with .calibration.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the calibration as one JSON object.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option(
    "--precision",
    type=click.FloatRange(0.5, 0.9999),
    default=None,
    help="With a RUN: how many of the accepted images are to be right.  [default: 0.95]",
)
def command(
    config: str, out: str | None, as_json: bool, overrides: tuple[str, ...], precision: float | None
) -> None:
    """Fit a temperature for each property on the labelled images of CONFIG, and write it to a file.

    Labels are the class folders of dataset.path and dataset.holdout and the facet values of their metadata.
    All figures come from cross-validation, those of heads (verification.heads) on training images. Put the
    file into the config as `verification.calibration`; it is valid for one verifier and one set of wordings.

    With the folder of a RUN instead: what people said of its images (`balancer review`) shows which
    verification.threshold makes as many of the accepted ones right as --precision wants. Nothing is written.
    """
    if "://" in config or os.path.isdir(config):
        from balancer.cli.datasets.thresholds import show_thresholds

        if out is not None or overrides:
            raise UsageError("--out and --set go with a CONFIG, not with a run", hint="leave them out")
        show_thresholds(config, precision or WANTED, as_json)
        return
    if precision is not None:
        raise UsageError("--precision goes with a run that people reviewed", hint="give its folder")
    from balancer.config.load import load_config

    loaded = load_config(config, overrides)
    if loaded.actors.kind == "simulated":
        raise UsageError(f"{config}: simulated actors have no probabilities to calibrate")
    from balancer.verification.calibration import (
        calibration_document,
        fit_property,
        refuse_other_file,
        write_calibration,
    )

    path = Path(config).with_suffix(".calibration.json") if out is None else Path(out)
    refuse_other_file(path)  # before measuring, which can take long
    from actors.heads import study_heads
    from actors.labelled import Looking, call_here
    from actors.real_images import collect_examples, measure_here, verifier_here
    from actors.weights import resolve as weights
    from balancer.dataset.audit import audit_dataset, audit_holdout, match_classes
    from balancer.dataset.splits import assign_splits

    audit = audit_dataset(loaded, console.watch_images)
    holdout = audit_holdout(loaded, console.watch_images)
    match_classes(audit, loaded)
    judged, verifier = loaded.verification, verifier_here(loaded)
    measured = measure_here(loaded, audit, holdout, verifier)
    splits, call = assign_splits(audit, loaded), call_here(loaded, verifier)
    looking = Looking(loaded, audit, holdout, measured, call, splits, varied=False)
    heads = study_heads(looking, try_all=True).results
    fitted = {
        name: fit_property(examples, judged.min_examples)
        for name, examples in collect_examples(measured, loaded).items()
    }
    fingerprint = weights.fingerprint(judged.model, judged.revision, "verifier")
    document = calibration_document(judged.model, fingerprint, loaded.properties(), fitted)
    document["heads"] = {name: result.as_dict() for name, result in heads.items()}
    write_calibration(path, document)
    if as_json:
        console.print_json(document)
    else:
        _print(len(measured.images), fitted)
        _print_heads(heads)
    for name, fit in fitted.items():
        if fit.kept:
            console.warn(f"{name} keeps its probabilities (temperature 1): {fit.kept}")
    taken = {name: result.proof for name, result in heads.items() if result.taken and result.proof}
    report_quality(os.fspath(path), {**fitted, **taken}, judged.min_auc)


def report_quality(path: str, fitted: Mapping[str, PropertyCalibration | HeadProof], min_auc: float) -> None:
    """Warn about values that the verifier cannot tell apart: a temperature does not change that."""
    aucs = {
        f"{name}={value}": auc
        for name, fit in fitted.items()
        for value, auc in zip(fit.values, fit.auc, strict=True)
        if auc is not None
    }
    blind = {name: auc for name, auc in aucs.items() if auc < min_auc}
    for name, auc in blind.items():
        console.warn(
            f"the verifier does not tell {name} from the others: AUC {auc:.2f}, {min_auc:.2f} needed"
            " (verification.min_auc; chance is 0.50)"
        )
    if aucs and len(blind) == len(aucs):
        console.note(
            f"written to {path}, but useless: try another verifier (verification.model) or other wordings"
            " (labels), and calibrate again"
        )
    else:
        console.note(f"written; put into the config: verification.calibration: {path}")


def _print(images: int, fitted: Mapping[str, PropertyCalibration]) -> None:
    rows: list[list[console.Cell]] = []
    for name, fit in fitted.items():
        before, after = fit.calibration_error or (None, None)
        figures = [None if error is None else round(error, 4) for error in (before, after)]
        rows.append(
            [
                name,
                sum(fit.examples),
                fit.folds or None,
                round(fit.temperature, 3),
                *figures,
            ]
        )
    columns = ["property", "labelled", "folds", "temperature", "calibration error before", "after"]
    console.table(f"calibration on {counted(images, 'real image')}", columns, rows)
    rows = [
        [name, value, count, None if auc is None else round(auc, 3), right]
        for name, fit in fitted.items()
        for value, count, auc, right in zip(fit.values, fit.examples, fit.auc, _recall(fit), strict=True)
    ]
    console.say()
    console.table("values", ["property", "value", "labelled", "AUC", "likeliest"], rows)


def _print_heads(heads: Mapping[str, HeadResult]) -> None:
    """Words alone beside words and examples."""
    proven = {name: result.proof for name, result in heads.items() if result.proof is not None}
    if proven:
        rows: list[list[console.Cell]] = [
            [name, value, count, *(None if auc is None else round(auc, 3) for auc in aucs)]
            for name, proof in proven.items()
            for value, count, *aucs in zip(
                proof.values, proof.examples, proof.words_auc, proof.auc, strict=True
            )
        ]
        columns = ["property", "value", "examples", "AUC, words", "words + examples"]
        console.say()
        console.table("heads: values, on images left out", columns, rows)
        figures: list[list[console.Cell]] = [
            [
                name,
                *(round(loss, 3) for loss in (proof.words_loss, proof.loss)),
                *(round(error, 4) for error in (proof.words_error, proof.error)),
                "words + examples" if heads[name].taken else "words",
            ]
            for name, proof in proven.items()
        ]
        columns = ["property", "log loss, words", "+ examples", "calibration error, words", "+ examples"]
        console.say()
        console.table("heads: properties", [*columns, "judged by"], figures)
    for name, result in heads.items():
        if result.proof is None:
            console.note(f"no head for {name}: {result.why}")


def _recall(fit: PropertyCalibration) -> list[str | None]:
    """For each value, the percentage of its labelled images for which it is the likeliest."""
    counts = enumerate(zip(fit.confusion, fit.examples, strict=True))
    return [percent(row[index], count) if count else None for index, (row, count) in counts]
