"""What the verifier sees in labelled real images and in challenge images, so that it can say no.

It takes seconds, so the result is kept in the cache folder. A damaged file counts as missing.
"""

from __future__ import annotations

import base64
from pathlib import Path

from actors.labelled import MAX_COMPARED, SEED, VARIATIONS, Looking
from actors.real_images import read_unchanged
from actors.weights import resolve as weights
from balancer.manifest.runfile import check_challenge
from balancer.storage.cache import cache_file, keep_json
from balancer.storage.regular_files import read_regular
from balancer.text.json_reading import read_json
from balancer.verification.calibration import load_temperatures
from balancer.verification.challenges import FROM_IMAGES, FROM_NOTHING
from balancer.verification.head_choice import Heads
from balancer.verification.negatives import negatives_of
from balancer.verification.off_domain import (
    Domain,
    DomainProof,
    RealImage,
    SeenImages,
    lowest_threshold,
    prove_domain,
)
from balancer.verification.typicality import read_typicality

FORMAT = 4
MAX_BYTES = 500_000_000

IMAGES_PER_KIND = 32
SOURCES = 24
"""Real images that challenge images are made from."""

DECISIVE = {"unjudged", "typicality", "max_true_lost", "brightness", "copies"}
"""Settings of `verification` that the result depends on, besides models and wordings."""


def study(looking: Looking, heads: Heads) -> Domain:
    """Have the verifier look, unless the result is kept from an earlier time. `heads` judge what it sees."""
    cache = _cache_file(looking, heads)
    if (kept := _load(cache)) is not None:
        return kept
    temperatures = {
        name: value for name, value in load_temperatures(looking.config).items() if name not in heads.files
    }
    domain = prove_domain(_study(looking), _challenge(looking, heads), temperatures, looking.config)
    _save(cache, domain)
    return domain


def _study(looking: Looking) -> list[RealImage]:
    labelled, seen = looking.compared, looking.seen()
    groups = {group: number for number, group in enumerate(dict.fromkeys(each.group for each in labelled))}
    return [
        RealImage(each.class_name, groups[each.group], seen[each.sha256], str(each.path)) for each in labelled
    ]


def _challenge(looking: Looking, heads: Heads) -> dict[str, SeenImages]:
    config, sources = looking.config, looking.compared[:SOURCES]
    limits, fitted = config.dataset, heads.load(config.properties())
    max_bytes, max_pixels = round(limits.max_image_megabytes * 1e6), round(limits.max_image_megapixels * 1e6)
    files = [read_unchanged(image.path, image.sha256, max_bytes) for image in sources]
    kinds = [*FROM_NOTHING, *(FROM_IMAGES if len(sources) > 1 else ())]
    made_from = {True: (files, [each.class_name for each in sources]), False: ([], [])}
    calls = (
        (kind, IMAGES_PER_KIND, SEED, *made_from[kind in FROM_IMAGES], max_pixels, fitted) for kind in kinds
    )
    seen = dict(looking.call_all("challenge", calls))
    return {kind: seen[number] for number, kind in enumerate(kinds)}


# ---- the cache -----------------------------------------------------------------------------------


def _cache_file(looking: Looking, heads: Heads) -> Path:
    config, judged = looking.config, looking.config.verification
    identity = {
        "format": [FORMAT, MAX_COMPARED, VARIATIONS, IMAGES_PER_KIND, SOURCES, SEED],
        "weights": weights.fingerprints_of_eyes(config),
        "properties": [[name, [*values.items()]] for name, values in config.properties().items()],
        "facets": [[facet.name, sorted(facet.classes)] for facet in config.facet_axes()],
        "temperatures": load_temperatures(config),
        "negatives": negatives_of(config),
        "verification": judged.model_dump(mode="json", include=DECISIVE),
        "threshold": lowest_threshold(config),
        "images": [[image.sha256, image.class_name, image.group] for image in looking.compared],
        "heads": {name: heads.results[name].sha256 for name in heads.files},
    }
    return cache_file("off_domain", identity, ".json")


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
    keep_json(path, document)
