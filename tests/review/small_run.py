"""Runs of a few dozen small images that browsers can show."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image

from balancer.config.schema import Config
from balancer.manifest import ManifestLog, create_run
from balancer.storage import Storage
from tests.manifest_samples import FACETS, at, planned, real, rejected, row, run_info

HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
"""A class that would run a program in a page that does not escape it."""


def picture(name: str, side: int = 64) -> bytes:
    """A PNG of its own for each name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((side, side)).save(out, "PNG")
    return out.getvalue()


def with_file(storage: Storage, values: dict[str, Any], side: int = 64) -> dict[str, Any]:
    data = picture(values["file_name"], side)
    storage.publish(values["file_name"], data)
    hashed = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    return {**values, **hashed, "width": side, "height": side}


def make_run(
    storage: Storage, images: int = 50, real_images: int = 8, class_name: str = "basic", side: int = 64
) -> ManifestLog:
    """A run with that many accepted images of one class, all of them marked `review`, and a few rejected."""
    log = begin_run(storage, images, class_name)
    rows = [accepted(class_name, index) for index in range(images)]
    others = [real_image(class_name, index) for index in range(real_images)]
    log.commit([with_file(storage, values, side) for values in (*rows, *others)])
    log.commit([rejected(f"basic/dim/{index:04d}", 2, **named(class_name)) for index in range(2)])
    return log


def begin_run(storage: Storage, images: int, class_name: str = "basic") -> ManifestLog:
    classes = {name: {"prompts": [name], "labels": [name]} for name in (class_name, "burnt")}
    facets = {
        "lighting": {"values": {name: {"prompts": [f"in {name} light"]} for name in ("dim", "harsh")}},
        "burn_level": {
            "classes": ["burnt"],
            "values": {name: {"prompts": [name]} for name in ("slight", "moderate", "severe")},
        },
    }
    config = Config.model_validate({"classes": classes, "facets": facets, "target": {"per_class": 60}})
    plan = [{**planned("basic/dim", images), "class": class_name, "cell": f"{class_name}/dim"}]
    info = run_info(
        config=config.model_dump(mode="json"),
        facets=FACETS,
        plan=plan,
        real_counts=dict.fromkeys(classes, 0),
        targets=dict.fromkeys(classes, images),
    )
    create_run(storage, info)
    return ManifestLog.open(storage, info.schema(), info.run_id, now=lambda: at(0))


def named(class_name: str) -> dict[str, str]:
    return {"class": class_name, "cell": f"{class_name}/dim"}


def accepted(class_name: str, index: int) -> dict[str, Any]:
    slot = f"{class_name}/dim/{index:04d}"
    values = row(f"basic/dim/{index:04d}", review=True, generated_at=at(index / 60))
    return {**values, **named(class_name), "id": f"{slot}-1", "slot": slot}


def real_image(class_name: str, index: int) -> dict[str, Any]:
    values = real(f"{index}.png", "basic", review=False, split="train")
    return {**values, "class": class_name, "id": f"real/{index}.png", "file_name": f"images/real/{index}.png"}
