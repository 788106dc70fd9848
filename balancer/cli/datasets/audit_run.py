"""`balancer audit RUN`: the balanced dataset beside the one that it was made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from balancer.cli import console
from balancer.errors import BalancerError
from balancer.text.quantities import counted, percent

if TYPE_CHECKING:
    from balancer.report.balance import Balance, ImageAudit, Step

HEADERS = ["before", "planned", "after", "real, %"]


def is_run(path: str) -> bool:
    """Whether it is a run, in a folder or in a bucket. A dataset can have a run.json, but no manifest."""
    from balancer.manifest.layout import LOG_DIR, RUN_FILE
    from balancer.storage import open_storage

    if "://" not in path:
        return os.path.isfile(os.path.join(path, RUN_FILE)) and os.path.isdir(os.path.join(path, LOG_DIR))
    try:
        return open_storage(path, create=False).exists(RUN_FILE)
    except BalancerError:  # whoever reads the dataset says what is wrong with the address
        return False


def print_run(run: str, as_json: bool, every: bool) -> None:
    from balancer.report.balance import audit_run
    from balancer.storage import open_storage

    balance = audit_run(open_storage(run, create=False), console.watch_images)
    if as_json:
        console.print_json({"run": run, **balance.as_dict()})
        return
    _print_steps(f"{run}: training images by class", "class", [*balance.classes, balance.whole], every)
    console.say()
    ratios = ", ".join(f"{name} {_shown(ratio)}" for name, ratio in balance.imbalance.items())
    console.say(f"largest class by smallest: {ratios}")
    for facet, steps in balance.facets.items():
        console.say()
        _print_steps(f"by {facet}", facet, steps, every)
    if balance.facets:
        console.say()
        _print_steps("by cell", "cell", balance.cells, every)
    console.say()
    console.table(
        "criteria",
        ["", "rule", "figure"],
        [["met" if each.met else "not met", each.rule, each.figure] for each in balance.criteria],
    )
    _print_images(balance)


def _print_steps(title: str, noun: str, steps: Sequence[Step], every: bool) -> None:
    console.first_rows(
        title,
        [noun, *HEADERS],
        steps,
        "more",
        every=every,
        row=lambda step: [step.name, step.before, step.planned, step.after, percent(step.before, step.after)],
    )


def _print_images(balance: Balance) -> None:
    console.say()
    if balance.images is None:
        console.say("the images are in a bucket, and were not read; `balancer fsck` reads them")
        return
    console.say(f"{counted(balance.images.read, 'image')} read")
    console.say_problems(_problems(balance.images))


def _problems(images: ImageAudit) -> dict[str, Sequence[str]]:
    return {
        "unreadable": [f"{name}: {reason}" for name, reason in images.unreadable],
        "no longer as its row says": images.changed,
        "files with the same bytes": [", ".join(names) for names in images.duplicates],
    }


def _shown(ratio: float | None) -> str:
    return "infinite" if ratio is None else f"{ratio:.2f}"
