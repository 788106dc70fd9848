"""What the verifier sees in labelled real images and in challenge images, so that it can say no.

It takes seconds, so the result is kept in the cache folder. A damaged file counts as missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.real_images import (
    REAL,
    MeasureCall,
    RealImages,
    Results,
    list_references,
    over_files,
    read_unchanged,
    verifier_here,
)
from actors.weights import resolve as weights
from balancer.config.schema import Config
from balancer.dataset.audit import Audit
from balancer.dataset.near_duplicates import find_near_duplicates
from balancer.manifest.runfile import check_challenge
from balancer.storage.cache import cache_folder, keep
from balancer.storage.regular_files import read_regular
from balancer.text.json_reading import read_json
from balancer.verification.calibration import load_temperatures
from balancer.verification.challenges import FROM_IMAGES, FROM_NOTHING
from balancer.verification.negatives import negatives_of
from balancer.verification.off_domain import (
    MIN_IMAGES,
    Domain,
    DomainProof,
    RealImage,
    SeenImages,
    SeenReal,
    lowest_threshold,
    prove_domain,
)
from balancer.verification.typicality import read_typicality

if TYPE_CHECKING:
    from actors.models.verifier import Verifier

FORMAT = 2
MAX_BYTES = 500_000_000

MAX_IMAGES = 200
"""Labelled images that are compared, of all classes alike. More make it slower, and tell little more."""

VARIATIONS = 6
IMAGES_PER_KIND = 32
SOURCES = 24
"""Real images that challenge images are made from."""

SEED = 20_260_901

DECISIVE = {"unjudged", "typicality", "max_true_lost", "brightness", "copies"}
"""Settings of `verification` that the result depends on, besides models and wordings."""

CallAll = Callable[[str, Iterable[tuple[Any, ...]]], Iterable[tuple[int, Any]]]
"""Calls a method of the verifier with each of many arguments; yields number and result of each, in any
order."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """`group` is the same for near-duplicates."""

    path: Path
    sha256: str
    class_name: str
    group: str


def study(
    config: Config, audit: Audit, holdout: Audit | None, measured: RealImages, call_all: CallAll
) -> Domain:
    """Have the verifier look, unless the result is kept from an earlier time."""
    labelled = _labelled(config, audit, holdout, measured)
    cache = _cache_file(config, labelled)
    if (kept := _load(cache)) is not None:
        return kept
    domain = prove_domain(
        _study(labelled, config, call_all),
        _challenge(labelled, config, call_all),
        load_temperatures(config),
        config,
    )
    _save(cache, domain)
    return domain


def study_here(
    config: Config,
    audit: Audit,
    holdout: Audit | None,
    measured: RealImages,
    verifier: Callable[[], Verifier] | None = None,
) -> Domain:
    """In this process. Loads the verifier only if it is needed."""
    load = verifier or verifier_here(config)

    def call_all(method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number, arguments in enumerate(calls):
            yield number, getattr(load(), method)(*arguments)

    return study(config, audit, holdout, measured, call_all)


def _labelled(config: Config, audit: Audit, holdout: Audit | None, measured: RealImages) -> list[_Labelled]:
    """At most MAX_IMAGES, of every class as many as of the others as far as there are, by their hashes."""
    by_class = defaultdict(list)
    for known, image in zip(list_references(measured), measured.images, strict=True):
        if image.class_name in config.classes:
            by_class[image.class_name].append((image.sha256, known.id, image, known))
    ranked = [
        (rank, name, each[2:])
        for name, images in by_class.items()
        for rank, each in enumerate(sorted(images, key=lambda each: each[:2]))
    ]
    chosen = [pair for _, _, pair in sorted(ranked, key=lambda each: each[:2])][:MAX_IMAGES]
    duplicates = find_near_duplicates([known for _, known in chosen], config.verification.copies)
    return [
        _Labelled(
            path=(audit if known.id.startswith(f"{REAL}/") or holdout is None else holdout).path
            / image.file_name,
            sha256=image.sha256,
            class_name=image.class_name,
            group=duplicates[known.id].id if known.id in duplicates else known.id,
        )
        for image, known in chosen
    ]


def _study(labelled: Sequence[_Labelled], config: Config, call_all: CallAll) -> list[RealImage]:
    groups = {group: number for number, group in enumerate(dict.fromkeys(each.group for each in labelled))}
    enough = len(groups) >= MIN_IMAGES
    variations = VARIATIONS if enough and config.verification.typicality != "never" else 0

    def look(calls: Iterable[MeasureCall]) -> Results[SeenReal]:
        return call_all("study_files", ((*call, variations, SEED) for call in calls))

    seen = dict(over_files({each.sha256: each.path for each in labelled}, config, look))
    return [
        RealImage(each.class_name, groups[each.group], seen[each.sha256], str(each.path)) for each in labelled
    ]


def _challenge(labelled: Sequence[_Labelled], config: Config, call_all: CallAll) -> dict[str, SeenImages]:
    sources, limits = labelled[:SOURCES], config.dataset
    max_bytes, max_pixels = round(limits.max_image_megabytes * 1e6), round(limits.max_image_megapixels * 1e6)
    files = [read_unchanged(image.path, image.sha256, max_bytes) for image in sources]
    kinds = [*FROM_NOTHING, *(FROM_IMAGES if len(sources) > 1 else ())]
    made_from = {True: (files, [each.class_name for each in sources]), False: ([], [])}
    calls = ((kind, IMAGES_PER_KIND, SEED, *made_from[kind in FROM_IMAGES], max_pixels) for kind in kinds)
    seen = dict(call_all("challenge", calls))
    return {kind: seen[number] for number, kind in enumerate(kinds)}


# ---- the cache -----------------------------------------------------------------------------------


def _cache_file(config: Config, labelled: Sequence[_Labelled]) -> Path:
    judged = config.verification
    identity = {
        "format": [FORMAT, MAX_IMAGES, VARIATIONS, IMAGES_PER_KIND, SOURCES, SEED],
        "weights": weights.fingerprint(judged.model, judged.revision, "verifier"),
        "properties": [[name, [*values.items()]] for name, values in config.properties().items()],
        "facets": [[facet.name, sorted(facet.classes)] for facet in config.facet_axes()],
        "temperatures": load_temperatures(config),
        "negatives": negatives_of(config),
        "verification": judged.model_dump(mode="json", include=DECISIVE),
        "threshold": lowest_threshold(config),
        "images": [[image.sha256, image.class_name, image.group] for image in labelled],
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_folder() / "off_domain" / f"{digest[:24]}.json"


def _load(path: Path) -> Domain | None:
    try:
        document = read_json(read_regular(path, max_bytes=MAX_BYTES, follow_links=True))
        check_challenge(document["proof"])
        proof = DomainProof.from_dict(document["proof"])
        data = None if proof.sha256 is None else base64.b64decode(document["typicality"])
        if data is not None and proof.sha256 is not None:
            read_typicality(data, proof.sha256)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return Domain(proof, data)


def _save(path: Path, domain: Domain) -> None:
    data = None if domain.typicality is None else base64.b64encode(domain.typicality).decode()
    document = {"proof": domain.proof.as_dict(), "typicality": data}
    keep(path, lambda file: file.write(json.dumps(document).encode()))
