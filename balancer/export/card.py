"""The dataset card of an export: what is in it, how much of it was generated, by what, and its limits."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import EMBEDDED_MODEL, SIMULATED, Config
from balancer.dataset.splits import EVALUATION
from balancer.manifest.log.view import read_log
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC
from balancer.manifest.rules import config_under
from balancer.manifest.status import COLUMNS as OF_STATUS
from balancer.manifest.status import count_missing, list_held_back
from balancer.manifest.unjudged import count_judged, count_unjudged, unjudged_text
from balancer.scheduling.prompts import ladder
from balancer.storage import open_storage
from balancer.text.quantities import counted, percent
from balancer.text.safetext import printable

if TYPE_CHECKING:
    from balancer.export.job import Job

SIZES = {
    "n<1K": 10**3,
    "1K<n<10K": 10**4,
    "10K<n<100K": 10**5,
    "100K<n<1M": 10**6,
    "1M<n<10M": 10**7,
}
"""The hub's `size_categories`."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~&:@-])")


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Images in the export, and candidates of the whole run."""

    name: str
    real: int
    generated: int
    accepted: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Card:
    """What the template shows."""

    title: str
    run_id: str
    config: Config
    models: dict[str, dict[str, Any]]
    classes: tuple[ClassFigures, ...]
    splits: tuple[tuple[str, int, int], ...]
    """Name, real and generated images."""
    left_out: int
    """Images that show what one of a later split or of the hold-out shows."""
    fallbacks: int
    for_review: int
    unjudged: Mapping[str, int]
    """Generated images in the export that were not judged on each property."""
    judged: int
    """Generated images in the export that were judged on at least one property."""
    wanted: int
    """Images to be generated in the run; of these `short` were tried in vain, `open` can still be made."""
    short: int
    open: int
    held_back: tuple[str, ...]
    """What `target.max_synthetic_share` leaves below the target."""
    licence: str
    generated_from: tuple[str, ...]
    """Models that made images in the export, with their revisions."""

    @property
    def real(self) -> int:
        return sum(figures.real for figures in self.classes)

    @property
    def generated(self) -> int:
        return sum(figures.generated for figures in self.classes)

    @property
    def accepted(self) -> int:
        return sum(figures.accepted for figures in self.classes)

    @property
    def candidates(self) -> int:
        return sum(figures.candidates for figures in self.classes)

    @property
    def threshold(self) -> str:
        """`0.6`, or `0.8 to 0.5` where attempts differ."""
        of_attempts = [rung.threshold for rung in ladder(self.config) if not rung.fallback]
        ends = dict.fromkeys([max(of_attempts), min(of_attempts)])
        return " to ".join(f"{end:g}" for end in ends)

    @property
    def unproven(self) -> tuple[str, ...]:
        """Values that were judged, though labelled images did not prove the verifier on them."""
        properties = {CLASS_PROPERTY, *self.config.facets}
        return tuple(name for name in self.config.verification.unjudged if name not in properties)

    @property
    def shown_classes(self) -> int:
        """Those with an image in the export."""
        return sum(bool(figures.real or figures.generated) for figures in self.classes)

    @property
    def held_out(self) -> bool:
        return any(name in EVALUATION for name, _, _ in self.splits)

    @property
    def embedded(self) -> bool:
        return self.config.generator_name == EMBEDDED_MODEL

    @property
    def simulated(self) -> bool:
        return self.config.actors.kind == SIMULATED


def card_text(job: Job) -> str:
    """README.md: YAML for the hub, then text for people."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("balancer.export", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is no HTML; every value from outside goes through `md`
    )
    environment.filters["md"] = escaped
    card = _card(job)
    front = _yaml(_front_matter(card))
    text = environment.get_template("card.md.j2").render(
        card=card,
        counted=counted,
        percent=functools.partial(percent, places=1, unit=" %"),
        generated_evaluation=_tests_on_generated(card),
        unjudged=unjudged_text(card.unjudged, card.generated),
    )
    return f"---\n{front}---\n\n{text}"


def escaped(text: object) -> str:
    """Text from outside in one line of Markdown, where it means nothing but itself."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(str(text).split())))


_OUTSIDE_YAML = re.compile(r"[<>&]|[^\n -~]")


def _yaml(value: object) -> str:
    """YAML without a character that a reader who takes it for HTML would act upon, or a terminal."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return _OUTSIDE_YAML.sub(lambda found: _shown(found[0]), text)


def _shown(mark: str) -> str:
    """As within double quotes."""
    if mark not in "<>&" and mark.isprintable():
        return mark
    return f"\\u{ord(mark):04x}" if ord(mark) <= 0xFFFF else f"\\U{ord(mark):08x}"


class _Dumper(yaml.SafeDumper):
    """What has a character to be escaped is in double quotes."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    has_some = any(mark in "<>&" or not mark.isprintable() for mark in text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if has_some else None)


_Dumper.add_representer(str, _quoted)


def size_category(images: int) -> str:
    return next((name for name, below in SIZES.items() if images < below), "n>10M")


def _front_matter(card: Card) -> dict[str, Any]:
    images = card.real + card.generated
    labels = ["machine-generated"] if card.generated else []
    return {
        "pretty_name": card.title,
        "license": card.licence,
        "task_categories": ["image-classification"],
        "size_categories": [size_category(images)],
        "annotations_creators": [*labels, *(["other"] if card.real else [])],
        "source_datasets": ["original"],
        "tags": [*(["synthetic"] if card.generated else []), "image-classification", "balancer"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}/**"} for name, _, _ in card.splits],
            }
        ],
    }


def _card(job: Job) -> Card:
    manifest, rows = job.manifest, job.rows
    generated = rows.filter(pc.field("source") == SYNTHETIC)
    here = _counts(rows, CLASS_PROPERTY, "source")
    view = read_log(open_storage(manifest.uri, create=False), OF_STATUS)
    short, still_open = count_missing(view, manifest.run)
    tried = _tried(job)
    accepted = Counter({name: tried[name, ACCEPTED] for name in job.labels.classes})
    return Card(
        title=manifest.run.name or f"Dataset of run {manifest.run.run_id}",
        run_id=manifest.run.run_id,
        config=config_under(manifest.run, view.rules.overrides),  # that the run was last judged by
        models=manifest.run.models,
        classes=tuple(
            ClassFigures(
                name=name,
                real=here[name, REAL],
                generated=here[name, SYNTHETIC],
                accepted=accepted[name],
                candidates=accepted[name] + tried[name, REJECTED],
            )
            for name in job.labels.classes
        ),
        splits=tuple(_split_figures(job, split) for split in job.splits),
        left_out=job.left_out,
        fallbacks=pc.sum(generated["fallback"]).as_py() or 0,
        for_review=pc.sum(generated["review"]).as_py() or 0,
        unjudged=count_unjudged(generated, manifest.run.properties),
        judged=count_judged(generated),
        wanted=manifest.run.wanted,
        short=short,
        open=still_open,
        held_back=tuple(list_held_back(manifest.run)),
        licence=job.options.licence,
        generated_from=tuple(_models(generated)),
    )


def _tried(job: Job) -> Counter[tuple[str, ...]]:
    """Candidates of the run by class and status."""
    columns = [CLASS_PROPERTY, "status"]
    return _counts(job.manifest.to_table(columns, pc.field("source") == SYNTHETIC, status="all"), *columns)


def _split_figures(job: Job, split: str) -> tuple[str, int, int]:
    sources = _counts(job.of_split(split), "source")
    return split, sources[(REAL,)], sources[(SYNTHETIC,)]


def _counts(rows: pa.Table, *columns: str) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(rows[name].to_pylist() for name in columns), strict=True))


def _models(generated: pa.Table) -> Sequence[str]:
    pairs = _counts(generated, "model", "model_revision")
    return [f"{model} at {revision}" if revision else model for model, revision in sorted(pairs, key=str)]


def _tests_on_generated(card: Card) -> bool:
    """Whether generated images are in validation or test, which somebody has asked for."""
    return any(generated for name, _, generated in card.splits if name in EVALUATION)
