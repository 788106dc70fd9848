"""What the verifier sees in labelled real images: each is looked at once, whoever asks.

Typicality compares variations of a few of them; heads learn from more, without variations.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.real_images import (
    REAL,
    MeasureCall,
    RealImages,
    Results,
    find_holdout_duplicates,
    label_rows,
    list_references,
    over_files,
    verifier_here,
)
from balancer.config.schema import Config
from balancer.dataset.audit import Audit
from balancer.dataset.near_duplicates import find_near_duplicates, group_near_duplicates
from balancer.dataset.splits import TRAIN
from balancer.verification.head_choice import LabelledImages
from balancer.verification.heads import KINDS, Features
from balancer.verification.off_domain import MIN_IMAGES, SeenReal

MAX_COMPARED = 200
"""Labelled images that are compared, of all classes alike. More make it slower, and tell little more."""

MAX_EXAMPLES = 1000
"""Labelled images that heads learn from and are proved on, of all values alike."""

VARIATIONS = 6
SEED = 20_260_901

CallAll = Callable[[str, Iterable[tuple[Any, ...]]], Iterable[tuple[int, Any]]]
"""Calls a method of the verifier with each of many arguments; yields number and result of each, in any
order."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Image `row` of those that were measured. `group` is the same for near-duplicates: for examples, of any
    in a chain of them."""

    row: int
    path: Path
    sha256: str
    class_name: str
    group: str


class Looking:
    """The labelled images of a config, and what the verifier sees in them. `splits` are by file name; an
    image without one is a training image. Without `varied`, no variations are looked at."""

    def __init__(
        self,
        config: Config,
        audit: Audit,
        holdout: Audit | None,
        measured: RealImages,
        call_all: CallAll,
        splits: Mapping[str, str] | None = None,
        varied: bool = True,
    ) -> None:
        self.config, self.measured, self.call_all = config, measured, call_all
        self._varied = varied and config.verification.typicality != "never"
        self._audit, self._holdout, self._splits = audit, holdout, splits or {}
        self._known = list_references(measured)
        self._seen: dict[str, SeenReal] = {}

    @functools.cached_property
    def compared(self) -> list[Labelled]:
        """Of every class as many as of the others as far as there are, by their hashes."""
        by_class = defaultdict(list)
        for row, image in self._of_classes():
            by_class[image.class_name].append((image.sha256, self._known[row].id, row))
        ranked = [
            (rank, name, row)
            for name, images in by_class.items()
            for rank, (_, _, row) in enumerate(sorted(images))
        ]
        chosen = [row for _, _, row in sorted(ranked, key=lambda each: each[:2])][:MAX_COMPARED]
        known = [self._known[row] for row in chosen]
        duplicates = find_near_duplicates(known, self.config.verification.copies)
        groups = (duplicates[own.id].id if own.id in duplicates else own.id for own in known)
        return self._labelled(chosen, groups)

    @functools.cached_property
    def examples(self) -> list[Labelled]:
        """Of every value of every property as many as of the others as far as there are."""
        labels = [*label_rows(self.measured, self.config).values()]
        rows = sorted(
            (row for row, _ in self._of_classes()),
            key=lambda row: (self.measured.images[row].sha256, self._known[row].id),
        )
        counts: dict[tuple[int, int], int] = defaultdict(int)
        ranked = []
        for row in rows:
            own = [(number, int(each[row])) for number, each in enumerate(labels) if each[row] >= 0]
            ranked.append((min((counts[label] for label in own), default=0), row))
            for label in own:
                counts[label] += 1
        chosen = [row for _, row in sorted(ranked, key=lambda each: each[0])][:MAX_EXAMPLES]
        known = [self._known[row] for row in chosen]
        groups = group_near_duplicates(known, self.config.verification.copies)
        return self._labelled(chosen, map(str, groups))

    def labelled_images(self) -> LabelledImages:
        """The examples, and which of them heads may be fitted on: training images that nothing kept apart
        shows as well."""
        rows = [each.row for each in self.examples]
        groups = np.array([int(each.group) for each in self.examples], np.intp)
        held_out = find_holdout_duplicates(self.measured, self.config)
        apart = np.array([self._is_apart(self._known[row].id, held_out) for row in rows], bool)
        return LabelledImages(
            values={name: tuple(values) for name, values in self.config.properties().items()},
            labels={name: each[rows] for name, each in label_rows(self.measured, self.config).items()},
            words={name: logs[rows] for name, logs in self.measured.log_probabilities.items()},
            groups=groups,
            may_fit=~np.isin(groups, groups[apart]),
        )

    def seen(self) -> dict[str, SeenReal]:
        """What is to be seen in `compared`, by the hash of the file."""
        return self._seen or self._look(self.compared, self._variations(), ())

    def features(self) -> Features:
        """What heads look at, of `examples`."""
        if not self._seen:
            compared = {each.sha256 for each in self.compared}
            others = [each for each in self.examples if each.sha256 not in compared]
            self._look(self.compared, self._variations(), KINDS)
            self._look(others, 0, KINDS)
        seen = [self._seen[each.sha256].head_features for each in self.examples]
        return {kind: np.stack([one[kind] for one in seen]) for kind in seen[0]}

    def _of_classes(self) -> Iterator[tuple[int, Any]]:
        return (
            (row, image)
            for row, image in enumerate(self.measured.images)
            if image.class_name in self.config.classes
        )

    def _labelled(self, rows: Sequence[int], groups: Iterable[str]) -> list[Labelled]:
        return [
            Labelled(
                row=row,
                path=self._folder(self._known[row].id) / self.measured.images[row].file_name,
                sha256=self.measured.images[row].sha256,
                class_name=self.measured.images[row].class_name,
                group=group,
            )
            for row, group in zip(rows, groups, strict=True)
        ]

    def _folder(self, name: str) -> Path:
        return (self._audit if name.startswith(f"{REAL}/") or self._holdout is None else self._holdout).path

    def _is_apart(self, name: str, held_out: Mapping[str, Any]) -> bool:
        split = self._splits.get(name.removeprefix(f"{REAL}/"), TRAIN)
        return not name.startswith(f"{REAL}/") or split != TRAIN or name in held_out

    def _variations(self) -> int:
        enough = len({each.group for each in self.compared}) >= MIN_IMAGES
        return VARIATIONS if enough and self._varied else 0

    def _look(self, images: Sequence[Labelled], variations: int, kinds: Sequence[str]) -> dict[str, SeenReal]:
        def look(calls: Iterable[MeasureCall]) -> Results[SeenReal]:
            return self.call_all("study_files", ((*call, variations, SEED, kinds) for call in calls))

        paths = {each.sha256: each.path for each in images}
        self._seen |= dict(over_files(paths, self.config, look)) if paths else {}
        return self._seen


def call_here(config: Config, verifier: Callable[[], Any] | None = None) -> CallAll:
    """Calls in this process. Loads the verifier only if it is needed."""
    load = verifier or verifier_here(config)

    def call_all(method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number, arguments in enumerate(calls):
            yield number, getattr(load(), method)(*arguments)

    return call_all
