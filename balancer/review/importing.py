"""Decisions that were made in Label Studio or FiftyOne, on what `balancer export` sent there.

Label Studio: the JSON that a project exports. Somebody who chose the labels that an image was made for
accepts it; other labels reject it. FiftyOne: `samples.json` of a dataset exported as FiftyOneDataset. A
sample with the tag `accept` or `reject`, or whose label was changed, is decided; others are not.

Whoever decided there saw what the verifier said, so these decisions are of the queue `correct`: they change
rows, and no error rate follows from them. The same file again changes nothing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError
from balancer.export.formats.fiftyone import GROUND_TRUTH, field_name
from balancer.export.formats.labelstudio import control_names
from balancer.export.metadata import facet_columns
from balancer.manifest.log.view import read_log
from balancer.manifest.rows import SYNTHETIC, utc_now
from balancer.manifest.runfile import RunInfo, read_run
from balancer.review import pending
from balancer.review.decisions import (
    MAX_REVIEWER,
    MAX_SECONDS,
    Answer,
    Decision,
    from_details,
    last_words,
    not_undone,
)
from balancer.storage.regular_files import read_regular
from balancer.storage.user_paths import expanded
from balancer.text.json_reading import read_json
from balancer.text.safetext import printable

if TYPE_CHECKING:
    from balancer.storage import Storage

MAX_IMPORT_BYTES = 2_000_000_000

SAMPLES = "samples.json"

TAGS: Mapping[str, Answer] = {
    "accept": "accept",
    "accepted": "accept",
    "reject": "reject",
    "rejected": "reject",
}
"""Tags of FiftyOne that decide."""


@dataclass(frozen=True, slots=True)
class Imported:
    """`decisions` are new and durable now; `unchanged` said what their reviewer had said before, `undecided`
    entries say nothing, and `unknown` ones are about images that the run has not made."""

    decisions: int
    unchanged: int
    undecided: int
    unknown: int


@dataclass(frozen=True, slots=True)
class _Opinion:
    """What an entry says: the labels that somebody saw in an image, by property, or an answer itself."""

    item: str
    reviewer: str
    labels: Mapping[str, str]
    answer: Answer | None = None
    without_change: Answer | None = "accept"
    """What it means that the labels are those of the row."""
    seconds: float = 0.0
    at: dt.datetime | None = None


def import_decisions(storage: Storage, path: str | os.PathLike[str], reviewer: str) -> Imported:
    """Save the decisions of a file, or of the folder of a FiftyOne dataset. `reviewer` is whoever made them,
    where the file does not say.

    UsageError for a file that is neither, or cannot be read. Nothing is saved then.
    """
    info = read_run(storage)
    view = read_log(storage, ["id", "source", CLASS_PROPERTY, *info.facets])
    info = info.under(view.rules)
    opinions = _opinions(_read(path), info, reviewer, os.fspath(path))
    wanted = {row["id"]: row for row in view.table.to_pylist() if row["source"] == SYNTHETIC}
    known = pending.all_decisions(storage, info.run_id, from_details(view.details))
    said = Counter((decision.reviewer, decision.item) for decision in not_undone(known))
    words = last_words(known)
    counts: Counter[str] = Counter()
    new: list[Decision] = []
    for opinion in opinions:
        row = wanted.get(opinion.item)
        if row is None:
            counts["unknown"] += 1
            continue
        answer, reason = _answer(opinion, row)
        before = words.get(opinion.item, {}).get(opinion.reviewer)
        if answer is None:
            counts["undecided"] += 1
        elif before is not None and before.answer == answer:
            counts["unchanged"] += 1
        else:
            number = said[opinion.reviewer, opinion.item]
            decision = _decision(opinion, answer, reason, f"{info.run_id}\n{number}")
            new.append(decision)
            words.setdefault(opinion.item, {})[opinion.reviewer] = decision
            said[opinion.reviewer, opinion.item] += 1
    pending.save(storage, info.run_id, new)
    return Imported(len(new), counts["unchanged"], counts["undecided"], counts["unknown"])


def _answer(opinion: _Opinion, row: Mapping[str, Any]) -> tuple[Answer | None, str | None]:
    if opinion.answer is not None:
        return opinion.answer, None
    if not opinion.labels:
        return None, None
    wrong = [name for name, label in opinion.labels.items() if row[name] is not None and row[name] != label]
    if not wrong:
        return opinion.without_change, None
    return "reject", "class" if CLASS_PROPERTY in wrong else "property"


def _decision(opinion: _Opinion, answer: Answer, reason: str | None, of: str) -> Decision:
    text = "\n".join((of, opinion.item, opinion.reviewer, answer))
    return Decision(
        key=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        item=opinion.item,
        answer=answer,
        reviewer=opinion.reviewer,
        queue="correct",
        seconds=opinion.seconds,
        decided_at=opinion.at or utc_now(),
        reason=reason,
    )


def _read(path: str | os.PathLike[str]) -> Any:
    place = expanded(path, "--import")
    if place.is_dir():
        place = place / SAMPLES
    try:
        return read_json(read_regular(place, max_bytes=MAX_IMPORT_BYTES, follow_links=True))
    except (OSError, ValueError) as error:
        hint = "give the JSON that Label Studio exports, or the folder of a FiftyOne dataset"
        raise UsageError(f"--import {place}: {error}", hint=hint) from error


def _opinions(document: Any, info: RunInfo, reviewer: str, path: str) -> list[_Opinion]:
    try:
        if isinstance(document, list):
            return list(_of_tasks(document, info, reviewer))
        if isinstance(document, dict) and isinstance(document.get("samples"), list):
            return list(_of_samples(document["samples"], info, reviewer))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"--import {path}: an entry is not as it was exported: {error!r}") from error
    raise UsageError(
        f"--import {path}: neither tasks of Label Studio nor samples of FiftyOne",
        hint="export JSON from Label Studio, or a FiftyOneDataset from FiftyOne",
    )


def _of_tasks(tasks: Sequence[Mapping[str, Any]], info: RunInfo, reviewer: str) -> Iterator[_Opinion]:
    controls = {control: name for name, control in control_names(info.facets).items()}
    for task in tasks:
        item = str(task["data"]["id"])
        for annotation in task.get("annotations") or ():
            if annotation.get("was_cancelled"):
                continue
            labels = {
                controls[result["from_name"]]: str(result["value"]["choices"][0])
                for result in annotation.get("result") or ()
                if result.get("from_name") in controls and result.get("value", {}).get("choices")
            }
            yield _Opinion(
                item,
                _name(annotation.get("completed_by"), reviewer),
                labels,
                seconds=_seconds(annotation.get("lead_time")),
                at=_moment(annotation.get("updated_at") or annotation.get("created_at")),
            )


def _of_samples(samples: Sequence[Mapping[str, Any]], info: RunInfo, reviewer: str) -> Iterator[_Opinion]:
    fields = {CLASS_PROPERTY: GROUND_TRUTH}
    fields |= {facet: field_name(column) for facet, column in facet_columns(info).items()}
    for sample in samples:
        labels = {
            name: str(sample[field]["label"])
            for name, field in fields.items()
            if isinstance(sample.get(field), dict) and sample[field].get("label") is not None
        }
        tags = [*(sample.get("tags") or ()), *((sample.get(GROUND_TRUTH) or {}).get("tags") or ())]
        answers = {TAGS[tag] for tag in tags if tag in TAGS}
        answer: Answer | None = "reject" if "reject" in answers else "accept" if answers else None
        item = str(sample[field_name("id")])
        yield _Opinion(item, reviewer, labels, answer, without_change=None)


def _name(annotator: Any, reviewer: str) -> str:
    """Label Studio names people by number, or by what it knows of them."""
    if isinstance(annotator, dict):
        annotator = annotator.get("email") or annotator.get("id")
    if annotator is None:
        return reviewer
    name = f"user {annotator}" if isinstance(annotator, int) else str(annotator)
    return printable(name)[:MAX_REVIEWER] or reviewer


def _seconds(value: Any) -> float:
    seconds = float(value or 0)
    return min(max(seconds, 0.0), MAX_SECONDS) if seconds == seconds else 0.0


def _moment(text: Any) -> dt.datetime | None:
    if not isinstance(text, str):
        return None
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
