"""Take decisions that wait into the log, with what they do to rows: a decision and its effect are one commit.

Done by whoever holds the log. Each decision has a key of its own and the log has its keys, so one that is
found twice, after a crash, counts once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import COMPARED, find_near_duplicates_across, known_images
from balancer.errors import DatasetError, StorageError
from balancer.images import decode_image, encode_image, pixel_sha256
from balancer.manifest.image_files import max_image_bytes, max_image_pixels
from balancer.manifest.layout import image_stem, rejected_paths
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import ACCEPTED
from balancer.manifest.runfile import RunInfo
from balancer.manifest.schema import rows_to_table
from balancer.review.decisions import DECISIONS, Decision, Verdict, from_details, last_words, verdicts
from balancer.review.effects import REVIEWED, Effect, Kind, applied_to, find_effects
from balancer.review.pending import Pending, delete_pending, list_pending, read_pending
from balancer.runs.resume import cells_of_plan, effective_config, parse_candidate
from balancer.storage import Storage
from balancer.text.quantities import counted

MOST_AT_ONCE = 500
"""Decisions of one commit."""


@dataclass(frozen=True, slots=True)
class Taken:
    """`decisions` are those that were new, `effects` what all of them now do to rows, `rows` the changed rows
    by id. `unreadable` are files that nobody can take in; they stay where they are."""

    decisions: int = 0
    effects: tuple[Effect, ...] = ()
    rows: Mapping[str, Mapping[str, Any]] | None = None
    unreadable: tuple[Pending, ...] = ()

    def ids(self, kind: str) -> list[str]:
        return [effect.id for effect in self.effects if effect.kind == kind]


def describe_taken(taken: Taken) -> str:
    """In one line; empty if there was nothing."""
    said = [f"{counted(taken.decisions, 'decision')} of people taken in"] if taken.decisions else []
    told: Mapping[Kind, str] = {
        "revoked": "rejected, to be made again",
        "restored": "accepted, whatever the verifier said",
        "withdrawn": "no longer accepted",
        "too late": "accepted too late, for another has the slot",
        "no image": "accepted, but without pixels that were kept",
    }
    counts = Counter(effect.kind for effect in taken.effects)
    said += [f"{counted(counts[kind], 'image')} {text}" for kind, text in told.items() if counts[kind]]
    if taken.unreadable:
        files = counted(len(taken.unreadable), "file")
        said.append(f"{files} of decisions cannot be read, such as {taken.unreadable[0].path}")
    return "; ".join(said)


def take_in(storage: Storage, log: ManifestLog, info: RunInfo, *, restoring: bool) -> Taken:
    """Commit what waits; returns what came of it. Nothing is read of a log that people said nothing about.

    Without `restoring`, as while a schedule is under way, images that people want in stay out until the next
    start takes them in.
    """
    files = read_pending(storage, info.run_id, list_pending(storage))
    if not (files or restoring):
        return Taken()
    known = from_details(stamp.detail for stamp in log.stamps)
    keys = {decision.key for decision in known}
    new = {
        decision.key: decision for file in files for decision in file.decisions if decision.key not in keys
    }
    readable = [file for file in files if not file.problem]
    unreadable = tuple(file for file in files if file.problem)
    waiting = list(new.values())
    if not waiting and not (restoring and known):
        delete_pending(storage, readable)
        return Taken(unreadable=unreadable)
    effects: list[Effect] = []
    rows: dict[str, Mapping[str, Any]] = {}
    parts = [waiting[start : start + MOST_AT_ONCE] for start in range(0, len(waiting), MOST_AT_ONCE)] or [[]]
    for number, part in enumerate(parts):
        known = [*known, *part]
        everything = restoring and number == len(parts) - 1
        found, changed = _commit_part(storage, log, info, known, part, everything)
        effects += found
        rows |= changed
    delete_pending(storage, readable)
    return Taken(len(waiting), tuple(effects), rows, unreadable)


def _commit_part(
    storage: Storage,
    log: ManifestLog,
    info: RunInfo,
    known: Sequence[Decision],
    part: Sequence[Decision],
    everything: bool,
) -> tuple[list[Effect], dict[str, Mapping[str, Any]]]:
    """`part` of the `known` decisions is new; all items that people decided are looked at, or those of the
    new ones alone."""
    items = {decision.item for decision in (known if everything else part)}
    rows = {row["id"]: row for row in log.rows(sorted(item for item in items if item in log)).to_pylist()}
    standing = verdicts(last_words(known))
    properties = {CLASS_PROPERTY, *info.facets}
    files: dict[str, Mapping[str, Any]] = {}
    filled: set[str] = set()
    if everything:
        accepted = log.kept().filter(pc.field("status") == ACCEPTED)
        filled = set(accepted["slot"].to_pylist())
        files = _kept_pixels(storage, log, info, _wanted_back(rows, standing, filled, properties))
    found = find_effects(rows.values(), standing, filled, properties, files)
    if not everything:  # a schedule is under way, and knows nothing of images that come from elsewhere
        found = [effect for effect in found if effect.kind in ("revoked", "kept")]
    changing = [effect for effect in found if effect.changes_row]
    changed = [applied_to(rows[effect.id], effect, files.get(effect.id)) for effect in changing]
    if part or changed:
        details = {"reason": REVIEWED, DECISIONS: [decision.as_dict() for decision in part]}
        log.commit_verdicts(changed, details)
    return found, {row["id"]: row for row in changed}


def _wanted_back(
    rows: Mapping[str, dict[str, Any]],
    standing: Mapping[str, Verdict],
    filled: Collection[str],
    properties: Collection[str],
) -> list[dict[str, Any]]:
    """Candidates without a file that people want in."""
    every = dict.fromkeys(rows)  # as if the pixels of all of them were there
    found = find_effects(rows.values(), standing, filled, properties, every)
    restored = [rows[effect.id] for effect in found if effect.kind == "restored"]
    return [row for row in restored if row["file_name"] is None]


def _kept_pixels(
    storage: Storage, log: ManifestLog, info: RunInfo, rows: Sequence[dict[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Of rejected candidates whose pixels were kept, and that copy no accepted image: the columns of a file
    that is published for each."""
    if not rows or not info.has_reviewed:
        return {}
    info = info.under(log.rules)
    config = effective_config(info, log.rules)
    accepted = log.table(["status", *COMPARED]).filter(
        (pc.field("status") == ACCEPTED) & pc.field("phash").is_valid()
    )
    looks = [{name: row[name] for name in COMPARED} for row in rows if row["phash"] is not None]
    wanted = rows_to_table(looks, info.schema())
    copies = find_near_duplicates_across(
        known_images(wanted), known_images(accepted), config.verification.copies
    )
    found = {
        row["id"]: _published(storage, log, info, config, row)
        for row in rows
        if row["phash"] is not None and row["id"] not in copies
    }
    return {row_id: file for row_id, file in found.items() if file is not None}


def _published(
    storage: Storage, log: ManifestLog, info: RunInfo, config: Config, row: dict[str, Any]
) -> Mapping[str, Any] | None:
    """None if the pixels are not there, or are others than were judged."""
    pixels = None
    for path in rejected_paths(row["id"], row["reason"] or ""):
        try:
            data = storage.read(path, max_image_bytes(info))
            pixels = decode_image(data, max_pixels=max_image_pixels(info))
        except (StorageError, DatasetError):
            continue
        break
    cells = cells_of_plan(info)
    if pixels is None or pixel_sha256(pixels) != row["pixel_sha256"] or row["cell"] not in cells:
        return None
    mark = {
        "prompt": row["prompt"],
        "model": row["model"],
        "model_revision": row["model_revision"] or "",
        "id": row["id"],
    }
    image_format = config.output.image_format
    data = encode_image(pixels, mark, image_format)
    sha256 = hashlib.sha256(data).hexdigest()
    stem = log.free_name(image_stem(parse_candidate(row, cells), info.facets))
    file_name = f"{stem}-{sha256[:12]}.{image_format}"
    storage.publish(file_name, data)
    return {"file_name": file_name, "sha256": sha256, "num_bytes": len(data)}
