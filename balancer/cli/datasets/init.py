"""`balancer init`: write a first config for a dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import DATASET_SETTING_HELP
from balancer.errors import BalancerError
from balancer.text.commands import suggested
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit

MOST_LOOKED_AT = 200
"""Images, of all classes alike. A run looks at more; here a few seconds must do."""


@click.command("init")
@click.argument("dataset")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=DATASET_SETTING_HELP)
def command(dataset: str, out: str | None, overrides: tuple[str, ...]) -> None:
    """Write a commented config for DATASET, most simply a folder with one subfolder of images per class.

    Classes and facets come from the dataset; edit the prompts. Never overwrites a file. DATASET `sample` is
    the rendered sample dataset.
    """
    from balancer.config.load import load_dataset_settings
    from balancer.config.yaml_writing import check_free, create_file
    from balancer.scaffold import draft_config

    if out is not None:
        check_free(out)
    text, warnings = draft_config(dataset, load_dataset_settings(overrides), _look, console.watch_images)
    for line in warnings:
        console.warn(line)
    if out is None:
        console.emit(text.encode())
    else:
        create_file(out, text)
        console.say(f"{out}: written; edit its prompts, then {suggested('plan', out)} shows the plan")


def _look(config: Config) -> str:
    """What labelled images tell apart that words do not, as a verifier on this machine sees them; empty if
    nothing."""
    try:
        seen = _compare(config)
    except BalancerError as error:
        console.note(f"no head was tried: {error.message}")
        return ""
    if seen:
        console.note(f"{seen}: verification.heads is auto")
    return seen


def _compare(config: Config) -> str:
    from balancer.dataset.audit import audit_dataset
    from balancer.dataset.splits import assign_splits, select_training

    audit = audit_dataset(config)
    training = select_training(audit, assign_splits(audit, config))
    if not _has_examples(training, config):
        return ""  # without loading a model
    from actors.heads import study_heads
    from actors.labelled import Looking, call_here
    from actors.real_images import measure_here, verifier_here
    from actors.weights.resolve import is_here
    from balancer.config.schema import EMBEDDED_MODEL
    from balancer.verification.head_choice import compare

    judged = config.verification
    changes: dict[str, object] = {"unjudged": ()}
    if not is_here(judged.model, judged.revision, "verifier"):
        changes |= {"model": EMBEDDED_MODEL, "revision": None}
    config = config.model_copy(update={"verification": judged.model_copy(update=changes)})
    verifier, few = verifier_here(config), _few(training)
    console.note(
        f"the verifier looks at {counted(len(few.images), 'labelled image')}, to find out whether words are"
        " enough"
    )
    measured = measure_here(config, few, None, verifier)
    looking = Looking(config, few, None, measured, call_here(config, verifier), varied=False)
    results = study_heads(looking).results
    told = [f"{name} ({compare(one.proof)})" for name, one in results.items() if one.taken and one.proof]
    if not told:
        return ""
    return f"labelled images tell what words alone do not, to {config.verifier_name}: {', '.join(told)}"


def _has_examples(audit: Audit, config: Config) -> bool:
    """Whether any property has two values with enough images to fit a head on."""
    values = [[image.class_name for image in audit.images]]
    values += [[image.facets.get(name, "") for image in audit.images] for name in config.facets]
    least = config.verification.min_examples
    return any(sum(count >= least for value, count in Counter(own).items() if value) >= 2 for own in values)


def _few(audit: Audit) -> Audit:
    """Of every class as many images as of the others, as far as there are."""
    ranks: Counter[str] = Counter()
    ranked = []
    for image in sorted(audit.images, key=lambda image: image.sha256):
        ranked.append((ranks[image.class_name], image))
        ranks[image.class_name] += 1
    few = [image for _, image in sorted(ranked, key=lambda each: each[0])[:MOST_LOOKED_AT]]
    return replace(audit, images=tuple(few))
