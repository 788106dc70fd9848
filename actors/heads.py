"""Heads of a config, fitted on its labelled images, or kept from an earlier time.

Fitting takes seconds, so the result is kept in the cache folder. A damaged file counts as missing.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.labelled import Looking
from actors.real_images import RealImages
from actors.weights import resolve as weights
from balancer.manifest.runfile import check_heads
from balancer.storage.cache import cache_file, keep_json
from balancer.storage.regular_files import read_regular
from balancer.text.json_reading import read_json
from balancer.verification.head_choice import HeadResult, Heads, LabelledImages, choose_heads
from balancer.verification.heads import Floats

FORMAT = 2
MAX_BYTES = 500_000_000

DECISIVE = {"heads", "min_examples", "unjudged", "copies"}
"""Settings of `verification` that the result depends on, besides model and wordings."""


def study_heads(looking: Looking, *, try_all: bool = False) -> Heads:
    """Fit heads, and decide which of them judge. `try_all` as `choose_heads` has it."""
    images = looking.labelled_images()
    cache = _cache_file(looking, images, try_all)
    if (kept := _load(cache, images)) is not None:
        return kept
    heads = choose_heads(images, looking.features, looking.config, try_all=try_all)
    _save(cache, heads)
    return heads


def judge_real_images(looking: Looking, heads: Heads) -> RealImages:
    """The real images with the probabilities of `heads` in the place of the words'."""
    measured, rows = looking.measured, [each.row for each in looking.examples]
    logs = dict(measured.log_probabilities)
    for name, judged in heads.judged.items():
        logs[name] = np.full_like(logs[name], np.nan)
        logs[name][rows] = judged
    return replace(measured, log_probabilities=logs, by_heads=frozenset(heads.judged))


# ---- the cache -----------------------------------------------------------------------------------


def _cache_file(looking: Looking, images: LabelledImages, try_all: bool) -> Path:
    config, judged = looking.config, looking.config.verification
    identity = {
        "format": [FORMAT, try_all],
        "weights": weights.fingerprints_of_eyes(config),
        "properties": [[name, [*values.items()]] for name, values in config.properties().items()],
        "verification": judged.model_dump(mode="json", include=DECISIVE),
        "images": [each.sha256 for each in looking.examples],
        "labels": {name: labels.tolist() for name, labels in images.labels.items()},
        "groups": images.groups.tolist(),
        "may_fit": images.may_fit.tolist(),
    }
    return cache_file("heads", identity, ".json")


def _load(path: Path, images: LabelledImages) -> Heads | None:
    try:
        document = read_json(read_regular(path, max_bytes=MAX_BYTES, follow_links=True))
        check_heads(document["results"])
        results = {name: HeadResult.from_dict(document["results"][name]) for name in images.values}
        taken = [name for name, result in results.items() if result.taken]
        files = {name: base64.b64decode(document["files"][name]) for name in taken}
        judged = {name: _numbers(document["judged"][name], images.words[name].shape) for name in taken}
        heads = Heads(results, files, judged)
        heads.load(images.values)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return heads


def _numbers(text: str, shape: tuple[int, ...]) -> Floats:
    numbers = np.frombuffer(base64.b64decode(text), "<f8").reshape(shape)
    if not np.isfinite(numbers).all():
        raise ValueError("probabilities that are no numbers")
    return numbers


def _save(path: Path, heads: Heads) -> None:
    document = {
        "results": heads.as_dict(),
        "files": {name: base64.b64encode(data).decode() for name, data in heads.files.items()},
        "judged": {
            name: base64.b64encode(np.ascontiguousarray(logs, "<f8").tobytes()).decode()
            for name, logs in heads.judged.items()
        },
    }
    keep_json(path, document)
