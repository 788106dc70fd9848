"""Every column of the manifest and all that depends on the column alone.

The Arrow schema, the names that no facet may have, the rules a row must keep, the report's criterion of
completeness, lineage, exports and the page of columns derive from COLUMNS. It needs no Arrow, so a config can
be checked without loading it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Type = Literal[
    "text", "texts", "name", "bool", "int32", "int64", "uint64", "double", "time",
    "scores", "probabilities", "embedding",
]  # fmt: skip
"""`balancer.manifest.schema` has the Arrow type of each; `name` is text as a dictionary."""

Reader = Literal["resume", "fsck", "rejudge", "reproduce", "lineage", "training"]
"""Who reads a fixed set of columns; `training` stands for `to_hf` and `to_ray` where no columns are named."""

FACET = "FACET"
"""Stands for the columns of the facets."""

EMBEDDING = "embedding"

CONDITIONED = 4
"""The first format whose rows say which real image a candidate was made from, and how."""

ADAPTED = 5
"""The first format whose rows say which LoRAs the generator had."""

REVIEWED = 6
"""The first format whose rows say what people decided."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; the fields after `meaning` say who else needs it, and how."""

    name: str
    type: Type
    meaning: str

    required: Literal["all", "synthetic", "files"] | None = None
    """Readers refuse rows without it: any row, a candidate's, or one that names a file."""
    complete: Literal["all", "synthetic"] | None = None
    """The report expects it in accepted rows: in all of them, or in those of generated images."""
    limits: tuple[int, int] | None = None
    """Readers refuse values outside. Wider than any config allows, or ever did."""
    form: tuple[str, str] | None = None
    """Readers refuse other text: a regular expression, and the same in words."""
    lasting: bool = False
    """A new verdict on a row leaves it as it is."""
    of_file: bool = False
    """It describes the image file, and goes when the file does."""
    exported: int | None = None
    """Exports have it under its own name, at this place among such columns."""
    distinct: bool = False
    """Hardly any value occurs twice, so a dictionary in Parquet is of no use."""
    large: bool = False
    """By far the largest ones: `current.parquet` goes without."""
    read_by: tuple[Reader, ...] = ()
    since: int = 1
    """The first format of run.json whose runs have it."""


COLUMNS = (
    Column(
        "id",
        "text",
        "Its name in the run: `SLOT-ATTEMPT` of a candidate, `real/FILE` of a real image.",
        complete="all",
        distinct=True,
        read_by=("resume", "fsck", "rejudge", "reproduce", "lineage", "training"),
    ),
    Column(
        "file_name",
        "text",
        "Its file, relative to the run folder; of a real image under `output.real_images: reference` the "
        "absolute path. Null for a candidate that was never accepted.",
        complete="all",
        of_file=True,
        distinct=True,
        read_by=("fsck", "rejudge", "reproduce", "lineage"),
    ),
    Column(
        "class",
        "name",
        "The class; of a candidate, the one it was asked to show.",
        required="all",
        complete="all",
        read_by=("lineage",),
    ),
    Column(
        FACET,
        "name",
        "A column for each facet of the config. Null where it does not apply, or is not known of a real "
        "image.",
    ),
    Column(
        "cell",
        "text",
        "The class and its facet values, joined by `/`.",
        required="synthetic",
        complete="synthetic",
        lasting=True,
        exported=3,
        read_by=("resume", "fsck", "rejudge", "training"),
    ),
    Column(
        "slot",
        "text",
        "The cell and the number of the image wanted in it. A slot has at most one accepted image.",
        required="synthetic",
        complete="synthetic",
        form=(r"/[0-9]{1,12}$", "a cell and a number"),
        lasting=True,
        distinct=True,
        read_by=("resume", "fsck", "rejudge"),
    ),
    Column(
        "attempt",
        "int32",
        "The number of this attempt at the slot, from 1.",
        required="synthetic",
        complete="synthetic",
        limits=(1, 10**6),
        lasting=True,
        exported=11,
        read_by=("resume", "fsck", "rejudge", "lineage"),
    ),
    Column(
        "source",
        "text",
        "`synthetic` or `real`.",
        required="all",
        complete="all",
        lasting=True,
        exported=1,
        read_by=("resume", "fsck", "rejudge", "reproduce", "lineage", "training"),
    ),
    Column(
        "status",
        "text",
        "`accepted`, `rejected` or `void`. A void candidate passes by now, but its image was not kept: it is "
        "made again. A void real image left the dataset.",
        required="all",
        complete="all",
        read_by=("resume", "fsck", "rejudge", "reproduce", "lineage"),
    ),
    Column(
        "reason",
        "text",
        "Why it was rejected: a flaw (`not_finite`, `flagged`, `blank`, `underexposed`, `overexposed`, "
        "`off_domain`, `duplicate`, `near_copy`, `near_parent`), or the property with the lowest score; "
        "`superseded` if another attempt gives the image, `surplus` if the plan no longer has its slot, "
        "`reviewed` if people rejected it. Of a "
        "real image that left: `removed` or `replaced`; of an image made from one, `orphaned`. Null if "
        "accepted.",
        read_by=("resume", "fsck", "rejudge", "lineage"),
    ),
    Column("review", "bool", "Marked for a person to look at (`review.fraction`).", exported=7),
    Column(
        "reviewed",
        "text",
        "What people decided (`balancer review`): `accepted`, whatever the verifier said, or `rejected`. "
        "Null if nobody was asked, or as many said the one as the other.",
        exported=25,
        read_by=("fsck", "rejudge"),
        since=REVIEWED,
    ),
    Column(
        "score",
        "double",
        "The lowest score of the properties that were judged. Null if none was.",
        complete="synthetic",
        exported=4,
        read_by=("fsck", "rejudge", "lineage", "training"),
    ),
    Column(
        "scores",
        "scores",
        "For each property, how likely the image shows what was asked: the verifier's probability, or the "
        "second judge's if that is lower.",
        required="synthetic",
        complete="synthetic",
        read_by=("fsck", "rejudge", "lineage"),
    ),
    Column(
        "probabilities",
        "probabilities",
        "For each property, the verifier's probability of every value, in the order of the config by then.",
        large=True,
    ),
    Column(
        "second_scores",
        "scores",
        "For each property, the second judge's probability. Null without one.",
    ),
    Column(
        "unjudged",
        "texts",
        "The entries of `verification.unjudged` that concern its cell.",
        read_by=("fsck", "rejudge", "lineage"),
    ),
    Column(
        "threshold",
        "double",
        "The score it had to reach.",
        complete="synthetic",
        exported=5,
        read_by=("fsck", "rejudge", "lineage"),
    ),
    Column(
        "fallback",
        "bool",
        "Whether a rung or `attempts.fallback` lowered its threshold.",
        exported=6,
        read_by=("rejudge",),
    ),
    Column(
        "prompt",
        "text",
        "What the generator was asked for.",
        complete="synthetic",
        exported=8,
        read_by=("reproduce", "lineage", "training"),
    ),
    Column(
        "negative_prompt",
        "text",
        "What the generator was asked to avoid; empty where negative prompts have no effect.",
        exported=9,
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "wording",
        "int32",
        "Which of the class's wordings was used, from 0: `prompts` first, then `fallback_prompts`.",
        limits=(0, 10**6),
        read_by=("resume", "reproduce"),
    ),
    Column(
        "changes",
        "texts",
        "What this attempt changed against a plain one, in words.",
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "seed",
        "uint64",
        "The seed of its noise: 64 bits, unsigned.",
        complete="synthetic",
        lasting=True,
        exported=10,
        distinct=True,
        read_by=("fsck", "reproduce", "lineage"),
    ),
    Column(
        "model",
        "text",
        "The generator: a hub name, a folder, `embedded` or `simulated`.",
        complete="synthetic",
        exported=12,
        read_by=("reproduce", "lineage", "training"),
    ),
    Column(
        "model_revision",
        "text",
        "The commit of the generator on the hub.",
        exported=13,
        read_by=("reproduce", "lineage", "training"),
    ),
    Column(
        "loras",
        "texts",
        "The LoRAs of the generator (`generation.loras`): for each the sha256 of its file, `=` and its "
        "weight. Null without any.",
        read_by=("reproduce", "lineage"),
        since=ADAPTED,
    ),
    Column(
        "verifier",
        "text",
        "The verifier, named likewise.",
        complete="synthetic",
        exported=14,
        read_by=("lineage",),
    ),
    Column(
        "verifier_revision",
        "text",
        "The commit of the verifier on the hub.",
        exported=15,
        read_by=("lineage",),
    ),
    Column(
        "steps",
        "int32",
        "Denoising steps that were run: with a parent, the share of `generation.steps` that the strength "
        "gives.",
        complete="synthetic",
        limits=(1, 10**6),
        exported=16,
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "guidance",
        "double",
        "Guidance scale that went into the call; null if the model takes none.",
        exported=17,
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "width",
        "int32",
        "Width in pixels.",
        complete="all",
        limits=(1, 10**9),
        exported=18,
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "height",
        "int32",
        "Height in pixels.",
        complete="all",
        limits=(1, 10**9),
        exported=19,
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "sha256",
        "text",
        "Hash of the file.",
        required="files",
        complete="all",
        form=(r"^[0-9a-f]{64}$", "64 hexadecimal digits"),
        of_file=True,
        exported=20,
        distinct=True,
        read_by=("fsck", "lineage", "training"),
    ),
    Column(
        "num_bytes",
        "int64",
        "Size of the file.",
        required="files",
        complete="all",
        limits=(0, 10**12),
        of_file=True,
        read_by=("fsck",),
    ),
    Column("brightness", "double", "Mean luminance, 0 to 1.", required="synthetic", read_by=("rejudge",)),
    Column(
        "deviation",
        "double",
        "Standard deviation of luminance; close to 0 in a blank image.",
        required="synthetic",
        read_by=("rejudge",),
    ),
    Column(
        "nonfinite",
        "int32",
        "How many values of its latents or pixels were NaN or infinite.",
        required="synthetic",
        limits=(0, 2**31 - 1),
        read_by=("rejudge",),
    ),
    Column(
        "unsafe",
        "double",
        "How sure the safety checker objects, 0 to 1. Null without one.",
        read_by=("rejudge",),
    ),
    Column(
        "typicality",
        "double",
        "The share of labelled real images, compared in features of several layers, that are as odd as this "
        "one: a p-value, 0 to 1. Null if the run does not compare them.",
        read_by=("rejudge",),
        since=2,
    ),
    Column(
        "domain_score",
        "double",
        "How likely it shows one of the classes rather than an image failure, an unrelated thing, or one of "
        "`verification.negatives`: 0 to 1.",
        read_by=("rejudge",),
        since=2,
    ),
    Column(
        "pixel_sha256",
        "text",
        "Hash of the decoded pixels; two files of one picture share it.",
        distinct=True,
        read_by=("rejudge", "reproduce"),
    ),
    Column(
        "phash",
        "text",
        "Perceptual hash.",
        complete="all",
        form=(r"^[0-9a-f]{16}$", "16 hexadecimal digits"),
        distinct=True,
        read_by=("fsck",),
    ),
    Column(
        "nearest_id",
        "text",
        "The known image most like it. Null if it was not compared.",
        read_by=("resume", "rejudge", "lineage"),
    ),
    Column(
        "nearest_distance",
        "int32",
        "Bits in which the two perceptual hashes differ, 0 to 64.",
        limits=(0, 64),
        read_by=("rejudge", "lineage"),
    ),
    Column("nearest_similarity", "double", "Cosine of the two embeddings.", read_by=("rejudge", "lineage")),
    Column(EMBEDDING, "embedding", "The verifier's embedding of the image.", large=True),
    Column(
        "parent_id",
        "text",
        "The real image that it was made from (`generation.conditioning: image`). Null for text alone.",
        exported=21,
        read_by=("fsck", "rejudge", "reproduce", "lineage"),
    ),
    Column(
        "parent_pixel_sha256",
        "text",
        "The `pixel_sha256` of its parent by then: another picture can take a parent's name.",
        distinct=True,
        read_by=("rejudge", "reproduce", "lineage"),
        since=CONDITIONED,
    ),
    Column(
        "strength",
        "double",
        "How far it moved away from its parent, 0 to 1. Null without one.",
        exported=24,
        read_by=("reproduce", "lineage"),
        since=CONDITIONED,
    ),
    Column(
        "parent_distance",
        "int32",
        "Bits in which its perceptual hash and its parent's differ, 0 to 64.",
        limits=(0, 64),
        read_by=("rejudge", "lineage"),
        since=CONDITIONED,
    ),
    Column(
        "parent_similarity",
        "double",
        "Cosine of its embedding and its parent's.",
        read_by=("rejudge", "lineage"),
        since=CONDITIONED,
    ),
    Column(
        "split",
        "text",
        "`train`, `validation` or `test`. Generated images are `train`.",
        exported=2,
        read_by=("resume", "fsck", "lineage", "training"),
    ),
    Column(
        "device",
        "text",
        "The device it was generated on.",
        complete="synthetic",
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "batch_size",
        "int32",
        "How many images went through the generator together.",
        limits=(1, 10**6),
        read_by=("reproduce", "lineage"),
    ),
    Column(
        "generated_at",
        "time",
        "When its row was made.",
        complete="synthetic",
        exported=22,
        read_by=("lineage",),
    ),
    Column(
        "run_id",
        "text",
        "The run.",
        complete="all",
        lasting=True,
        exported=23,
        read_by=("fsck", "lineage"),
    ),
    Column(
        "origin_run_id",
        "text",
        "The run that it was taken over from (`run --reuse`). Null for one that was generated here.",
        read_by=("resume", "lineage"),
        since=3,
    ),
    Column(
        "origin_id",
        "text",
        "Its id in that run.",
        read_by=("lineage",),
        since=3,
    ),
)


ORIGIN = ("origin_run_id", "origin_id")


def names_where(meets: Callable[[Column], object]) -> tuple[str, ...]:
    """The columns that meet a condition, in the order of the manifest."""
    return tuple(column.name for column in COLUMNS if meets(column))


def names_read_by(reader: Reader, run_format: int = 1) -> tuple[str, ...]:
    """Of those that runs of this format have."""
    return names_where(lambda column: reader in column.read_by and column.since <= run_format)


def exported_names() -> tuple[str, ...]:
    """The columns that exports have under their own names, in the order of exports."""
    places = {column.exported: column.name for column in COLUMNS if column.exported is not None}
    return tuple(places[place] for place in sorted(places))
