"""Exact plans: how long controlled rounding takes, from the reference case to 60,000 cells."""

from __future__ import annotations

import random
from typing import Any

import click

from balancer.config.schema import Config
from balancer.planning.plan import make_plan
from benchmarking.record import median_s, save

FACETS = {"lighting": [0.25] * 4, "burn_level": [0.40, 0.35, 0.25], "angle": [0.2] * 5}


@click.command("plan")
@click.option("--repeats", default=3, show_default=True)
def command(repeats: int) -> None:
    """Plan datasets of 6 to 1,000 classes with three facets each (60 cells a class)."""
    save("plan", {"cases": [_case(classes, repeats) for classes in (6, 100, 1000)]})


def _case(classes: int, repeats: int) -> dict[str, Any]:
    config = _config(classes)
    chance = random.Random(0)
    counts = {name: chance.randint(0, 600) for name in config.classes}
    plan = make_plan(config, counts)
    return {
        "classes": classes,
        "cells": 60 * classes,
        "images": plan.total,
        "seconds": round(median_s(lambda: make_plan(config, counts), repeats), 3),
    }


def _config(classes: int) -> Config:
    facets = {
        name: {
            "values": {
                f"{name}{number}": {"share": share, "prompts": [f"{name} {number}"]}
                for number, share in enumerate(shares)
            }
        }
        for name, shares in FACETS.items()
    }
    names = {f"class{number:04d}": {"prompts": ["a picture"]} for number in range(classes)}
    return Config.model_validate({"classes": names, "facets": facets, "target": {"per_class": 600}})
