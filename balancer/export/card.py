"""The dataset card of an export: its images, how many were generated and by which model, and its limits."""

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
from balancer.config.schema import EMBEDDED_MODEL, OFF_DOMAIN, SIMULATED, Config
from balancer.dataset.splits import EVALUATION
from balancer.manifest.log.view import read_log
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC
from balancer.manifest.rules import config_under
from balancer.manifest.status import COLUMNS as STATUS_COLUMNS
from balancer.manifest.status import count_missing, list_held_back
from balancer.manifest.unjudged import count_judged, count_unjudged, unjudged_text
from balancer.review.summary import read_summary
from balancer.review.words import describe_review
from balancer.scheduling.prompts import ladder
from balancer.storage import open_storage
from balancer.text.quantities import counted, percent
from balancer.text.safetext import printable
from balancer.text.templates import templates

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
    """The values of the template."""

    title: str
    run_id: str
    config: Config
    models: dict[str, dict[str, Any]]
    classes: tuple[ClassFigures, ...]
    splits: tuple[tuple[str, int, int], ...]
    """Name, real and generated images."""
    left_out: int
    """Copies of images in a later split or in the hold-out."""
    fallbacks: int
    for_review: int
    review: tuple[str, ...]
    """Lines on what people found out; empty if nobody decided anything."""
    by_heads: tuple[str, ...]
    """Properties that heads judged."""
    unjudged: Mapping[str, int]
    """Generated images in the export that were not judged on each property."""
    judged: int
    """Generated images in the export that were judged on at least one property."""
    wanted: int
    """Images the run was to generate; `short` of them failed every attempt, `open` can still be made."""
    short: int
    open: int
    held_back: tuple[str, ...]
    """A line for each class that `target.max_synthetic_share` keeps below its target."""
    licence: str
    conditioned: int
    """Generated images in the export that were made from a real image."""
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
        thresholds = [rung.threshold for rung in ladder(self.config) if not rung.fallback]
        ends = dict.fromkeys([max(thresholds), min(thresholds)])
        return " to ".join(f"{end:g}" for end in ends)

    @property
    def unproven(self) -> tuple[str, ...]:
        """Values that were judged although labelled images did not prove the verifier on them."""
        others = {CLASS_PROPERTY, *self.config.facets, OFF_DOMAIN}
        entries = self.config.verification.unjudged
        return tuple(name for name in entries if name not in others and name.partition("=")[0] != OFF_DOMAIN)

    @property
    def off_domain_passes(self) -> bool:
        return OFF_DOMAIN in self.config.verification.unjudged

    @property
    def shown_classes(self) -> int:
        """The number of classes with an image in the export."""
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
    # Markdown, not HTML; every value from outside goes through `md`.
    environment = templates("balancer.export", autoescape=False)
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
    """Untrusted text as one line of Markdown without any markup."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(str(text).split())))


_OUTSIDE_YAML = re.compile(r"[<>&]|[^\n -~]")


def _yaml(value: object) -> str:
    """YAML without characters that are HTML markup or control a terminal."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return _OUTSIDE_YAML.sub(lambda match: _yaml_escape(match[0]), text)


def _is_unsafe(character: str) -> bool:
    return character in "<>&" or not character.isprintable()


def _yaml_escape(character: str) -> str:
    """As YAML has it within double quotes."""
    if not _is_unsafe(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class _Dumper(yaml.SafeDumper):
    """Puts text with a character to be escaped into double quotes."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(map(_is_unsafe, text)) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


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
    exported = _counts(rows, CLASS_PROPERTY, "source")
    storage = open_storage(manifest.uri, create=False)
    view = read_log(storage, STATUS_COLUMNS)
    run = manifest.run.under(view.rules)
    summary = read_summary(storage, run, view)
    short, still_open = count_missing(view, run)
    tried = _counts(view.table.filter(pc.field("source") == SYNTHETIC), CLASS_PROPERTY, "status")
    return Card(
        title=manifest.run.name or f"Dataset of run {manifest.run.run_id}",
        run_id=manifest.run.run_id,
        config=config_under(run, view.rules.overrides),
        models=manifest.run.models,
        classes=tuple(
            ClassFigures(
                name=name,
                real=exported[name, REAL],
                generated=exported[name, SYNTHETIC],
                accepted=tried[name, ACCEPTED],
                candidates=tried[name, ACCEPTED] + tried[name, REJECTED],
            )
            for name in job.labels.classes
        ),
        splits=tuple(_split_figures(job, split) for split in job.splits),
        left_out=job.left_out,
        fallbacks=pc.sum(generated["fallback"]).as_py() or 0,
        for_review=pc.sum(generated["review"]).as_py() or 0,
        review=tuple(describe_review(summary)) if summary.decisions else (),
        by_heads=tuple(manifest.run.head_files),
        unjudged=count_unjudged(generated, manifest.run.properties),
        judged=count_judged(generated),
        wanted=run.wanted,
        short=short,
        open=still_open,
        held_back=tuple(list_held_back(run)),
        licence=job.options.licence,
        conditioned=generated.num_rows - generated["parent_id"].null_count,
        generated_from=tuple(_models(generated, run.models)),
    )


def _split_figures(job: Job, split: str) -> tuple[str, int, int]:
    sources = _counts(job.rows_in_split(split), "source")
    return split, sources[(REAL,)], sources[(SYNTHETIC,)]


def _counts(rows: pa.Table, *columns: str) -> Counter[tuple[str, ...]]:
    """Rows by the values of these columns."""
    return Counter(zip(*(rows[name].to_pylist() for name in columns), strict=True))


def _models(generated: pa.Table, models: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    columns = ["model", "model_revision", *(["loras"] if "loras" in generated.column_names else [])]
    rows = generated.select(columns).to_pylist()
    made = {(row["model"], row["model_revision"], *(row.get("loras") or ())) for row in rows}
    return [_model(*parts, models=models) for parts in sorted(made, key=str)]


def _model(model: str, revision: str | None, *loras: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    named = f"{model} at {revision}" if revision else model
    names = {described.get("sha256"): described["model"] for described in models.values()}
    with_weights = (lora.partition("=") for lora in loras)
    each = [f"{names.get(sha256, sha256[:12])} (weight {weight})" for sha256, _, weight in with_weights]
    return f"{named} with LoRA {' and '.join(each)}" if each else named


def _tests_on_generated(card: Card) -> bool:
    """Whether generated images are in validation or test, as `allow_synthetic_eval` allows."""
    return any(generated for name, _, generated in card.splits if name in EVALUATION)
