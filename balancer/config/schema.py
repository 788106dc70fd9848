"""The config file as pydantic models, with a docstring for every field.

`load_config` (in `balancer.config.load`) reads YAML or JSON into a `Config`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from balancer.cells import CLASS_PROPERTY, Facet
from balancer.config.adaptation import AdaptationConfig
from balancer.config.dotted import join_keys
from balancer.config.evaluation import EvaluationConfig
from balancer.config.loras import MAX_LORAS, LoraConfig
from balancer.config.review import ReviewConfig
from balancer.config.section import Section as _Section
from balancer.manifest.columns import FACET, names_where
from balancer.planning.rounding import as_written
from balancer.storage.user_paths import expanded
from balancer.text.names import near

SAMPLE_DATASET = "sample"
EMBEDDED_MODEL = "embedded"
SIMULATED = "simulated"

MAX_EMBEDDING_DIM = 65_536
"""Length of the verifier's embeddings; published models have up to 1,664."""

MAX_CELLS = 120_000
"""Over all classes. Planning this many takes two or three seconds, with three facets as with nine;
readers of run.json limit its values (`balancer.text.json_reading`)."""

MAX_FACETS = 500
"""Each facet is a column of the manifest."""

MAX_FACETS_OF_CLASS = 30
"""More facets, even with two values each, make too many cells; numpy arrays have at most 64 axes."""

MAX_SCHEDULER_OPTION = 100_000
"""Size of any number in `generation.scheduler.options`. Schedulers build lists as long as some of them."""

MAX_WAIT_S = 10_000_000

# A name becomes part of ids and, slugged, of file names; "/" separates the parts of an id.
NAME_PATTERN = r"^[^/\x00-\x1f]{1,100}$"
SCHEDULER_PATTERN = r"^[A-Za-z0-9]{1,80}Scheduler$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, strip_whitespace=True)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=1000, strip_whitespace=True)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Split = Literal["train", "validation", "test"]

OFF_DOMAIN = "off_domain"
"""Names in `verification.unjudged` that images of none of the classes may pass."""

RESERVED_FACET_NAMES = frozenset(
    {*names_where(lambda column: column.name != FACET), "quota", "priority", OFF_DOMAIN}
)
"""Columns of the manifest, keys of a plan, and what is no property in `verification.unjudged`: a facet must
not be named after them."""

RESERVED_AT_FIRST = RESERVED_FACET_NAMES - {OFF_DOMAIN, *names_where(lambda column: column.since > 1)}
"""Those of runs that earlier versions began."""

LEAST_GPU_SHARE = 0.0001

INTERNAL_PREFIX = "__"
"""Prefix of columns reserved by the manifest and by Arrow, such as `__place`."""

# Settings that may change between two starts of one run: they change its speed, not its output.
NOT_IN_FINGERPRINT: dict[str, Any] = {
    "name": True,
    "actors": True,
    "adaptation": True,
    "budget": True,
    "planning": True,
    "criteria": True,
    "evaluation": True,
    "output": True,
    "review": {"margin", "max_error"},
    "generation": {"batch_size", "dtype", "compile", "offload"},
    # Calibrations are compared by their temperatures (`models` in run.json). The others only decide
    # whether a run may start.
    "verification": {"calibration", "min_auc", "min_examples", "max_challenge_accepted"},
}


@dataclass(frozen=True, slots=True)
class PathBases:
    """The folder of the config file that gives each path, by dotted name. Other paths, such as those from the
    command line, are relative to the working folder. Not a setting, so all compare equal."""

    folders: Mapping[str, Path] = field(default_factory=dict, compare=False)


BEGUN = {"begun": True}
"""Validation context for the config of an existing run. Earlier versions accepted brightness ranges that no
image can meet."""


def _check_range(limits: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
    if limits is not None and info.context != BEGUN and limits[0] > limits[1]:
        least, greatest = limits
        raise ValueError(f"the least, {least:g}, is above the greatest, {greatest:g}: no image can pass")
    return limits


def _challenges_named(names: tuple[str, ...]) -> tuple[str, ...]:
    """What may be named of `off_domain`."""
    if not any(name.startswith(OFF_DOMAIN) for name in names):
        return ()
    from balancer.verification.challenges import BLENDED, KINDS

    return (OFF_DOMAIN, *(f"{OFF_DOMAIN}={kind}" for kind in KINDS if kind != BLENDED))


class DatasetConfig(_Section):
    path: str = SAMPLE_DATASET
    """The dataset, in one of the [layouts](datasets.md), most simply a folder with one subfolder of images
    per class; relative to the config file, or else to the working folder. `sample` is the rendered sample
    dataset, made on first use in the cache folder (`BALANCER_CACHE`, by default `~/.cache/balancer`)."""

    layout: Literal["auto", "folders", "splits", "table", "coco", "voc", "parquet", "saved", "webdataset"] = (
        "auto"
    )
    """How the dataset is laid out. `auto` recognises it; `balancer audit` and `plan` say as what. `folders`:
    one folder per class. `splits`: `train`, `validation` and `test` folders with class folders in them, which
    decide the splits like the column `split` of a table. `table`: a table names files and classes. `coco` and
    `voc`: annotations of objects; an image has the category of its objects as class, if they are all of
    one. `parquet`: Parquet files with a column of images. `saved`: a folder that `datasets` saved.
    `webdataset`: shards (tar) with images and labels."""

    table: str | None = None
    """Table of files and classes (CSV, JSON lines or Parquet) or COCO file, relative to `path`, which can
    also be the table itself. File names are relative to the table, and only files below `path` are found. Its
    other columns can be facets, as in `metadata`."""

    columns: dict[Literal["file", "class", "split"], Phrase] = Field(default={})
    """Columns of `table`, such as `{file: path, class: label, split: fold}`. By default the usual names:
    `file_name`, `path` or `image`, `class`, `label` or `category`, `split` or `subset`, and a few more."""

    crop_boxes: bool = False
    """COCO and Pascal VOC: each object is an image of its category, cut out along its box. Boxes around
    crowds are left out. All crops of one photograph are in one split."""

    min_crop_side: int = Field(default=32, ge=1, le=10_000)
    """Boxes with a shorter side, in pixels, are left out."""

    include: tuple[Phrase, ...] = ()
    """Patterns of the classes and images to use, such as `cat/2024-*`; by default all. A pattern is compared
    with the class, with `class/file` and with the file name. `*` matches any characters, slashes too."""

    exclude: tuple[Phrase, ...] = ()
    """Patterns of classes and images to leave out, such as `unsorted` or `*/draft_*`; see `include`."""

    labels: dict[str, Name] = Field(default={})
    """Class names by folder or label, such as `{kitty: cat, tomcat: cat}`: renames and merges classes."""

    metadata: str | None = None
    """Table beside the class folders with `file_name` and one column per facet. By default
    `metadata.parquet`, `metadata.csv` or `metadata.jsonl`, if one exists, and those in the class folders,
    whose file names are relative to their own folder."""

    holdout: str | None = None
    """Another folder laid out like `path`, neither inside nor around it, found in the same way and kept apart
    from training. The verifier is tested on its labelled images too, and a candidate that copies one of them
    is rejected. `sample` is the hold-out of the sample dataset."""

    splits: dict[Split, PositiveShare] | None = None
    """Shares of the real images of each class, such as `{train: 0.8, validation: 0.1, test: 0.1}`; they sum
    to 1. By default all images are `train`. An image's pixels alone decide its split, so duplicates stay
    together and every run makes the same choice. A column `split` in the metadata table takes precedence,
    with or without shares. `target` counts training images only. Generated images are always training
    images, and none is made from a validation or test image. Those are used twice, like the images of
    `holdout`: a candidate that copies one is rejected, and the verifier is tested on their labels."""

    conflicts: Literal["error", "drop", "keep"] = "keep"
    """What to do with one picture (the same pixels) in two classes, or in two splits that the dataset gives.
    `keep` counts all its files, with a warning; no leak follows, because what trains or tests a model gets
    only the file of the latest split. `drop` leaves out all files of a picture in two classes, and of one in
    two splits those of the earlier one. `error` refuses the dataset. Pictures that only look alike are
    listed."""

    count_marked_synthetic: bool = False
    """Whether images that say of themselves that a model made them (IPTC `DigitalSourceType`) count as real.
    By default they are left out: no target counts them, no split gets them, and the verifier is not tested on
    them."""

    max_image_megabytes: float = Field(default=64, gt=0, le=1000)
    """Larger files are reported unreadable, not opened."""

    max_image_megapixels: float = Field(default=64, gt=0, le=1000)
    """Larger images are reported unreadable, not decoded."""

    @field_validator("splits")
    @classmethod
    def _splits_are_a_whole(cls, splits: dict[Split, float] | None) -> dict[Split, float] | None:
        if splits is not None:
            if "train" not in splits:
                raise ValueError("train is missing; its images are those that `target` counts")
            _check_sum(splits.values())
        return splits

    def split_shares(self) -> dict[str, Fraction] | None:
        """Exact shares that sum to 1; None if there are no shares."""
        if self.splits is None:
            return None
        return dict(zip(self.splits, _exact_shares([*self.splits.values()]), strict=True))


class ClassConfig(_Section):
    prompts: tuple[Phrase, ...] = Field(min_length=1)
    """Prompts for the generator; attempts use them in turn."""

    variations: tuple[Phrase, ...] = ()
    """Harmless details (table, angle, garnish) added in turn, so that images of a cell differ."""

    negative_prompt: str = ""
    """What images of this class must not show; joined with `generation.negative_prompt`."""

    fallback_prompts: tuple[Phrase, ...] = ()
    """Prompts of the fallback attempt; by default `prompts`."""

    labels: tuple[Phrase, ...] = ()
    """Wordings by which the verifier recognises the class; by default `prompts`."""


class FacetValueConfig(_Section):
    share: PositiveShare | None = None
    """Share of a class's images that should have this value. Give it for all values of a facet, summing to
    1, or for none (even shares)."""

    prompts: tuple[Phrase, ...] = Field(min_length=1)
    """Wordings added to the class's prompt."""

    negative_prompt: str = ""
    """What images with this value must not show."""

    labels: tuple[Phrase, ...] = ()
    """Wordings by which the verifier recognises the value; by default `prompts`."""

    brightness: tuple[Probability, Probability] | None = None
    """Least and greatest mean luminance, 0 to 1, of an image with this value; by default
    `verification.brightness`."""

    _brightness_is_a_range = field_validator("brightness")(_check_range)


class FacetConfig(_Section):
    classes: Literal["all"] | tuple[Name, ...] = "all"
    """The classes this facet applies to."""

    values: dict[Name, FacetValueConfig] = Field(min_length=1)
    """The facet's values, in the order tables show them. A value is no path, so it has no `/`; the name of a
    facet has none either, does not begin with `__`, and is not that of a column of the manifest."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        given = [value.share for value in self.values.values() if value.share is not None]
        if given and len(given) < len(self.values):
            missing = ", ".join(name for name, value in self.values.items() if value.share is None)
            raise ValueError(f"share is missing for {missing}; give every value a share, or none")
        if given:
            _check_sum(given)
        return self


DEFAULT_STRENGTHS = (0.5, 0.7, 0.9)

COMMON_TARGETS = ("per_class", "ratio_to_largest", "total", "rule")

SETTINGS_OF_RULES = {
    "effective_number": ("beta", "such as 0.999"),
    "recommended": ("evaluation", "the folder or bucket of an evaluated run"),
}
"""The setting that a rule needs and no other takes, and what it is like."""


class TargetConfig(_Section):
    """How many training images there should be: one of `per_class`, `ratio_to_largest`, `total` and `rule`
    for all classes, and `classes` for single ones. Real images in a validation or test split
    (`dataset.splits`) do not count.

    Two rules scale the largest class to its real images; `n` are the real images of a class (a class
    without any counts as having one), `m` those of the largest. Targets are rounded up, never below the real
    images, and never lower than those of a smaller class.

    - `sqrt`, square-root sampling (Mikolov et al. 2013; Mahajan et al. 2018): the square root of `n` times
      `m`. Classes end in proportion to the square roots of their real images.
    - `effective_number` with `beta` (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of
      Samples"): with `E(n) = (1 - beta^n) / (1 - beta)`, `n` times `E(m) / E(n)`. Classes end in proportion
      to the weights that the class-balanced loss would give them. `beta: 0` generates nothing; near 1, all
      classes end as large as the largest.

    | real images | `sqrt` | `beta: 0.9` | `beta: 0.99` | `beta: 0.999` | `beta: 0.9999` |
    |---:|---:|---:|---:|---:|---:|
    | 0 | 23 | 10 | 100 | 394 | 488 |
    | 1 | 23 | 10 | 100 | 394 | 488 |
    | 10 | 71 | 16 | 104 | 396 | 488 |
    | 50 | 159 | 51 | 126 | 404 | 489 |
    | 100 | 224 | 101 | 157 | 414 | 491 |
    | 250 | 354 | 250 | 271 | 445 | 494 |
    | 500 | 500 | 500 | 500 | 500 | 500 |

    The third, `recommended`, follows `balancer evaluate`: classes have the targets of the evaluated run, but
    those whose generated images it leaves out keep their real images and get no others.
    """

    per_class: int | None = Field(default=None, gt=0, le=10_000_000)
    """Training images every class should have, real and generated together."""

    ratio_to_largest: float | None = Field(default=None, gt=0, le=1)
    """Images every class should have, as a fraction of the largest class; rounded up."""

    total: int | None = Field(default=None, gt=0, le=1_000_000_000)
    """Images of all classes together. Classes are raised to one level; a class with more real images keeps
    them."""

    rule: Literal["effective_number", "sqrt", "recommended"] | None = None
    """A published rule that gives smaller classes smaller targets, or what an evaluation recommends, as
    above."""

    beta: float | None = Field(default=None, ge=0, lt=1)
    """Only with `rule: effective_number`, which needs it: how fully classes are balanced. Usual are 0.99,
    0.999 and 0.9999."""

    evaluation: str | None = None
    """Only with `rule: recommended`, which needs it: the folder or bucket of an evaluated run."""

    classes: dict[Name, Annotated[int, Field(gt=0, le=10_000_000)] | Literal["keep"]] = Field(default={})
    """Targets of single classes, instead of the common one: `{cat: 80, dog: keep}`. With `keep` a class keeps
    its real images and gets no others. They are part of a `total`. If all classes are here, no common target
    is needed."""

    max_synthetic_share: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of a class's images that may be generated. `plan` names the classes that cannot reach
    their target because of it."""

    count_real_facets: Literal["no", "known", "measured"] = "no"
    """Whether real images count towards the shares of their facet values. `no` applies the shares to the
    generated images alone; `known` counts values from the metadata; `measured` asks the verifier for the
    others."""

    @property
    def common(self) -> tuple[str, ...]:
        """The settings given for all classes together: one, or none if each class has its own."""
        return tuple(kind for kind in COMMON_TARGETS if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _is_given_once(self) -> Self:
        if len(self.common) > 1 or not (self.common or self.classes):
            actual = f"{' and '.join(self.common)} are given" if self.common else "none of them is"
            raise ValueError(f"one of {', '.join(COMMON_TARGETS)} must be given, and {actual}")
        return self

    @model_validator(mode="after")
    def _settings_are_of_their_rule(self) -> Self:
        for rule, (setting, example) in SETTINGS_OF_RULES.items():
            is_given = getattr(self, setting) is not None
            if self.rule == rule and not is_given:
                raise ValueError(f"rule: {rule} needs {setting}, {example}")
            if self.rule != rule and is_given:
                raise ValueError(f"{setting} has no effect without rule: {rule}")
        return self


class SchedulerConfig(_Section):
    """Also a name alone: `scheduler: EulerDiscreteScheduler`."""

    name: str = Field(pattern=SCHEDULER_PATTERN)
    """A scheduler class of diffusers that fits the model's own one, such as `DPMSolverMultistepScheduler`."""

    options: dict[str, bool | int | float | str] = Field(default={})
    """Arguments of that class which replace those of the model, such as `{timestep_spacing: trailing}`."""

    @field_validator("options")
    @classmethod
    def _are_of_usual_size(cls, options: dict[str, bool | int | float | str]) -> Any:
        for name, value in options.items():
            if not isinstance(value, str) and not abs(value) <= MAX_SCHEDULER_OPTION:
                raise ValueError(f"{name[:80]} is over the limit of {MAX_SCHEDULER_OPTION:,}")
        return options


class GenerationConfig(_Section):
    model: str = EMBEDDED_MODEL
    """A text-to-image pipeline: a hub id, a folder in diffusers layout, or `embedded`."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; recorded in every row."""

    variant: str | None = None
    """Weight variant on the hub, such as `fp16`."""

    width: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    """Pixels. A model makes good images at the sizes it was trained for."""

    height: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    """Pixels."""

    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps per image."""

    guidance: float = Field(default=7.5, ge=0, le=50)
    """Guidance scale, passed to the pipeline under its own name. 1 or less turns guidance off, for Z-Image
    0 does; models that take the scale as an input, such as FLUX.1 dev, have no such value. Models without
    guidance ignore the default, and refuse another value."""

    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 8
    """Candidates that a generator makes at once. Short batches are padded to this size. `auto` uses as many
    as fit into GPU memory. If memory runs out, the size is halved."""

    compile: bool = False
    """Compile the model before the first batch. Takes minutes once per machine; then each batch is faster,
    most of all with small images. On GPUs only."""

    offload: Literal["auto", "none", "text_encoders", "model", "sequential"] = "auto"
    """Parts of the model that stay in host memory until they are needed; `auto` picks the fastest choice that
    fits into free GPU memory, and reports it."""

    quantization: Literal["none", "bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"] = "none"
    """Weights of the denoiser (transformer or UNet) with fewer bits, quantised when it loads. Other images
    follow. `bitsandbytes` needs a GPU and `balancer[bitsandbytes]`; `torchao-int8` needs
    `balancer[torchao]`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model; `auto` uses bfloat16 where the GPU has it, float16 on older GPUs, float32
    on a CPU, so that all of them make the same images (bfloat16 is a quarter faster where they have it)."""

    scheduler: SchedulerConfig | None = None
    """Another scheduler than the model's own: few-step models such as SDXL Lightning or LCM need one."""

    loras: tuple[LoraConfig, ...] = Field(default=(), max_length=MAX_LORAS)
    """LoRAs that are loaded into the model, and act together."""

    negative_prompt: str | None = ""
    """What no image must show. `null` leaves all negative prompts out, also those of classes and facets, for
    models that take none."""

    conditioning: Literal["text", "image"] = "text"
    """What steers generation. `text`: prompts alone. `image`: prompts, and for each candidate a real training
    image, its parent, from which it is made (image-to-image, see [conditioning](conditioning.md)). A class
    without such images stays text-only. A validation, test or hold-out image is never a parent, nor is a
    near-duplicate of one."""

    strengths: tuple[PositiveShare, ...] | None = Field(default=None, min_length=1, max_length=100)
    """Only with `conditioning: image`: how far each attempt moves away from its parent, one number per
    attempt, the last one for all later attempts. Near 0 the parent stays as it is, at 1 nothing is left of
    it. Of the `steps`, a share of `strength` runs. By default 0.5, 0.7, 0.9."""

    contexts: Literal["class", "dataset"] | None = None
    """Only with `conditioning: image`: where parents come from. `class`, the default: from the class that is
    asked for. `dataset`: from any class, while the prompt names the one that is asked for, so that it appears
    in the surroundings of the others."""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_may_be_a_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @property
    def strength_ladder(self) -> tuple[float, ...]:
        return self.strengths or DEFAULT_STRENGTHS

    @model_validator(mode="after")
    def _conditioning_acts(self) -> Self:
        """A setting without effect is refused."""
        if self.conditioning == "text":
            given = [name for name in ("strengths", "contexts") if getattr(self, name) is not None]
            if given:
                names, have = " and ".join(given), "has" if len(given) == 1 else "have"
                raise ValueError(f"{names} {have} no effect without `conditioning: image`")
        return self

    @property
    def usual_batch(self) -> int:
        """The batch size, or a guess while it is unknown."""
        return 8 if self.batch_size == "auto" else self.batch_size


class SafetyConfig(_Section):
    """A transformers image classifier for unsafe content, besides the pipeline's own safety checker."""

    model: str
    """A hub id or a folder in transformers layout."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits."""

    labels: tuple[Phrase, ...] = Field(default=("nsfw",), min_length=1)
    """Labels of the model that mean unsafe; their probabilities are summed."""

    max_unsafe: Probability = 0.5
    """Images above this probability are rejected as `flagged`."""


class SecondJudgeConfig(_Section):
    """A vision-language model that answers, for every property of every candidate, whether the image shows
    it. The smaller of its P(yes) and the verifier's probability counts. It runs on the verifier's device:
    `actors.gpus_per_verifier` must leave memory for it."""

    model: str
    """A hub id or a folder in transformers layout; the model class must be built into transformers."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits."""

    question: Phrase = "Does this image show {}? Answer yes or no."
    """`{}` stands for the first wording (of `labels`, or else `prompts`) of the wanted value."""

    @field_validator("question")
    @classmethod
    def _asks_for_something(cls, question: str) -> str:
        if question.count("{}") != 1:
            raise ValueError("the question must contain {} once, in place of the wording")
        return question


class BackboneConfig(_Section):
    """An image encoder of transformers or timm that compares candidates with the labelled real images, in the
    place of the verifier's own image tower: for typicality and heads. Words stay with the verifier."""

    model: str
    """A hub id or a folder in transformers or timm layout; the model class must be built into one of them."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits."""


class CopiesConfig(_Section):
    """When a candidate counts as a copy of a real, hold-out or accepted image: both limits are met.

    Measured on the embedded models (128 x 128 pixels): of 332,520 pairs of different images, 2 count as
    copies. All images saved again as JPEG, resized and back, 5 % brighter or darker, or with noise are
    detected; 79 % of those shifted by one pixel, 29 % by two, and none of those mirrored. With a distance of
    8: 99 % and 79 %, and 34 pairs.
    """

    max_distance: int = Field(default=4, ge=0, le=64)
    """Largest number of differing bits between the two 64-bit perceptual hashes."""

    min_similarity: float = Field(default=0.95, ge=-1, le=1)
    """Smallest cosine similarity of the two embeddings."""


class ParentConfig(_Section):
    """When a candidate counts as a copy of its parent, the real image that it was made from
    (`generation.conditioning: image`): both limits are met. It is then rejected as `near_parent`. They are
    wider than those of `copies`, because what is made from an image is likely to show the same.

    Measured on the embedded models (160 candidates for each strength): 38 are as near to their parent at
    strength 0.5, 1 at 0.7, none at 0.9; by the limits of `copies` 6, 0 and 0. Of 760 pairs of different real
    images of one class none is.
    """

    max_distance: int = Field(default=8, ge=0, le=64)
    """Largest number of differing bits between the two 64-bit perceptual hashes."""

    min_similarity: float = Field(default=0.9, ge=-1, le=1)
    """Smallest cosine similarity of the two embeddings."""


class VerificationConfig(_Section):
    model: str = EMBEDDED_MODEL
    """An open_clip model: `hf-hub:<repository>`, a folder in open_clip layout, or `embedded`."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; recorded in every row."""

    threshold: Probability = 0.6
    """Least probability each property of an accepted image must reach."""

    calibration: str | None = None
    """A file that `balancer calibrate` wrote for this verifier and these wordings, relative to the config
    file, or else to the working folder. Without one, the verifier's raw probabilities count."""

    unjudged: tuple[Phrase, ...] = ()
    """Properties and values to accept although the labelled images do not prove that the verifier can judge
    them. A property (`lighting`) then rejects no image; a single value (`class=combined`) is still judged.
    Rows list both in `unjudged`. A property named here has no part in their `score`, which is null if nothing
    was judged; `scores` holds what was measured."""

    min_auc: float = Field(default=0.8, ge=0.5, le=1)
    """Smallest area under the ROC curve (0.5 is chance) with which the verifier must tell the labelled images
    of a value from the others. Values below it must be listed in `unjudged`."""

    min_examples: int = Field(default=5, ge=1, le=10**9)
    """Labelled images that a value needs for that test, for a calibration, and for a head; for a head, images
    of the training split that are no near-duplicates of each other."""

    heads: Literal["auto", "never", "always"] = "auto"
    """Judge a property by a head, a small classifier that is fitted on labelled training images and combined
    with the words, where no words describe it. `auto` does so where a head is better than the words alone, on
    images that it was not fitted on, by more than 0.05 nats of log loss and two standard errors; `always`
    wherever two values have `min_examples` images, and stops if no property has."""

    typicality: Literal["auto", "never"] = "auto"
    """Reject images that are unlike the labelled real images (`off_domain`). It takes 20 of them, from
    `dataset.path` and `dataset.holdout`; with fewer, `auto` does without."""

    max_true_lost: float = Field(default=0.0125, ge=0.005, le=0.2)
    """Fraction of images like the labelled ones that may be rejected as `off_domain`."""

    negatives: tuple[Phrase, ...] = Field(default=(), max_length=1000)
    """Wordings of what the images might show and must not, such as `a drawing`, beside a list of unrelated
    things and image failures. An image far likelier to show these than the classes is rejected as
    `off_domain`."""

    max_challenge_accepted: Probability = 0.02
    """A run does not start if the verifier would accept more than this fraction of images made to show none
    of the classes, unless `unjudged` names `off_domain`, or the kind of such images: `off_domain=blurred`."""

    brightness: tuple[Probability, Probability] = (0.02, 0.98)
    """Least and greatest mean luminance, 0 to 1, of any image."""

    _brightness_is_a_range = field_validator("brightness")(_check_range)

    copies: CopiesConfig = CopiesConfig()
    parent: ParentConfig = ParentConfig()
    backbone: BackboneConfig | None = None
    safety: SafetyConfig | None = None
    second_judge: SecondJudgeConfig | None = None


class FallbackConfig(_Section):
    threshold: Probability = 0.5
    """Threshold of the fallback attempt; its rows are marked `fallback`."""


class RungConfig(_Section):
    """Changes of one attempt against a plain one. Every attempt has its own seed."""

    next_wording: bool = True
    """Use the next wording of the class and of each facet value; otherwise repeat the previous wordings."""

    strengthen: bool = False
    """Put the property that was weakest in the previous attempt first, in two wordings. Has no effect if that
    attempt was rejected for another reason."""

    guidance: float | None = Field(default=None, ge=0, le=50)
    """Guidance of this attempt; by default `generation.guidance`."""

    strength: PositiveShare | None = None
    """Strength of this attempt, with `generation.conditioning: image`; by default that of
    `generation.strengths`."""

    fallback_prompts: bool = False
    """Use the class's `fallback_prompts`, if it has any."""

    threshold: Probability | None = None
    """Threshold of this attempt; by default `verification.threshold`. Rows accepted at a lower one are
    marked `fallback`."""


class AttemptsConfig(_Section):
    max: int = Field(default=3, ge=1, le=100)
    """Attempts per slot, each with another seed. The `fallback` attempt, if any, comes after them."""

    rungs: tuple[RungConfig, ...] = ()
    """Changes of each attempt, in order: at most `max` entries. Attempts beyond the list repeat its last
    entry. Without any, each attempt uses the next wording."""

    fallback: FallbackConfig | None = None
    """One more attempt after `max` others, with `fallback_prompts` and its own threshold; `fallback: {}` adds
    one with the default below."""

    adaptive: bool = False
    """Prefer the wordings of a class that have passed most often in a cell (Thompson sampling), instead of
    using them in turn. The accepted images then depend on the order in which images were judged: another
    run, or another number of GPUs, gives another set."""

    give_up_below: Probability = 0.01
    """Give a cell up, leaving its open slots short, once fewer than this fraction of its candidates pass with
    95 % confidence; 0 for never. The images accepted until then can depend on the order in which candidates
    were judged."""

    stop_when_collapsed: bool = False
    """Stop the run, leaving slots open, once the generated images of a class are far less diverse than its
    real ones: red in the report. It takes 20 of each. The images accepted until then can depend on the order
    in which candidates were judged."""

    @model_validator(mode="after")
    def _rungs_are_reached(self) -> Self:
        if len(self.rungs) > self.max:
            raise ValueError(
                f"rungs has {len(self.rungs)} entries and max is {self.max}: raise attempts.max, or the last "
                "entries are never used"
            )
        return self

    def rung_per_attempt(self) -> tuple[RungConfig, ...]:
        """One rung for each attempt before the fallback."""
        rungs = self.rungs or (RungConfig(),)
        return (*rungs, *rungs[-1:] * (self.max - len(rungs)))


class BudgetConfig(_Section):
    max_candidates: int | None = Field(default=None, gt=0, le=10**12)
    """Stop the run, leaving slots open, once this many candidates were judged, earlier starts included."""

    max_hours: float | None = Field(default=None, gt=0, le=1_000_000)
    """Stop the run, leaving slots open, after this long; each start counts from zero."""


class ActorsConfig(_Section):
    kind: Literal["models", "simulated"] = "models"
    """`simulated` replaces generator and verifier by stand-ins with noise and random scores: for testing a
    cluster, never for data."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where models run; `auto` uses GPUs if the cluster has any, `cuda` refuses to run without."""

    generators: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per GPU of the cluster, or one per CPU core without a GPU."""

    verifiers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per eight generators."""

    writers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per eight generators."""

    gpus_per_generator: float = Field(default=0.9, gt=0, le=1000)
    """Share of a GPU each generator reserves; below 1, so that a verifier fits beside it. Above 1 only whole
    numbers."""

    gpus_per_verifier: float = Field(default=0.1, ge=0, le=1000)
    """Share of a GPU each verifier reserves; 0 puts verifiers on the CPU. Above 1 only whole numbers."""

    call_timeout_s: float = Field(default=600, gt=0, le=MAX_WAIT_S)
    """A call that takes longer is abandoned and its actor replaced."""

    start_timeout_s: float = Field(default=1800, gt=0, le=MAX_WAIT_S)
    """Longest time an actor may take to start, including download and compilation."""

    max_restarts: int = Field(default=5, ge=0, le=1_000_000)
    """The run stops once more actors of one kind than this were replaced without an image committed in
    between."""

    @field_validator("gpus_per_generator", "gpus_per_verifier")
    @classmethod
    def _ray_can_reserve(cls, gpus: float) -> float:
        """Ray takes parts of one GPU in steps of 0.0001, and beyond one GPU whole numbers only."""
        if gpus > 1 and gpus != int(gpus):
            below = int(gpus)
            raise ValueError(f"more than one GPU must be a whole number, such as {below} or {below + 1}")
        if 0 < gpus < LEAST_GPU_SHARE:
            raise ValueError(f"must be at least {LEAST_GPU_SHARE}, the smallest share of a GPU")
        return gpus

    allow_open_cluster: bool = False
    """Join a Ray cluster that does not require a token: anyone who can reach it can run code on it."""


class PlanningConfig(_Section):
    """Assumptions behind the estimates of `plan`, used until a run has measured them."""

    acceptance: float = Field(default=0.7, ge=1e-12, le=1)
    """Expected fraction of candidates that pass."""

    seconds_per_candidate: float | None = Field(default=None, gt=0, le=1_000_000)
    """Expected time that one generator needs for one candidate."""

    cost_per_generator_hour: float | None = Field(default=None, ge=0, le=10**12)
    """Price of one generator for an hour, in any currency; for the estimates only."""

    bytes_per_image: int | None = Field(default=None, gt=0, le=10**12)
    """Expected size of one image file; by default 60 % of its raw pixels, typical of photographs in PNG."""


class OutputConfig(_Section):
    real_images: Literal["copy", "reference"] = "copy"
    """`copy` copies the real images into the run folder, which is then complete; `reference` records their
    paths."""

    image_format: Literal["png", "webp", "jpeg"] = "png"
    """Format of generated images. Every program reads `png`. `webp` is lossless, too, in a fifth of the time
    and slightly less space. `jpeg` takes a third of the space and a twentieth of the time, but changes pixels
    a little. Choose it if the real images are JPEG: then no classifier can tell them apart by the format."""

    commit_rows: int = Field(default=64, ge=1, le=10_000)
    """Rows committed at once."""

    commit_seconds: float = Field(default=1.0, gt=0, le=MAX_WAIT_S)
    """Longest time a judged candidate waits for its commit."""

    disk_full_wait_s: float = Field(default=600, ge=0, le=MAX_WAIT_S)
    """Longest time a run waits for space on a full disk before it ends. The same command resumes it later."""

    rejected_per_reason: int = Field(default=12, ge=0, le=10_000)
    """Rejected images kept per reason, under `rejected/`, for the report, and a few more of each cell in
    which nothing passes."""


class CriteriaConfig(_Section):
    """Criteria that the report checks. They do not stop a run."""

    class_fill: Probability = 0.8
    """Smallest fraction of its target that every class must reach."""

    success_rate: Probability = 0.8
    """Smallest fraction of the slots that must end accepted."""


class Config(_Section):
    """A balancing job: its classes and facets, how many images, how they are made and judged.

    A file may extend another one beside it, `extends: base.yaml`, and give only the differences.
    """

    name: str = ""
    """A title for reports."""

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Every candidate's seed follows from this number, its slot and its attempt."""

    dataset: DatasetConfig = DatasetConfig()
    classes: dict[Name, ClassConfig] = Field(min_length=1)
    """The classes, by folder name."""

    facets: dict[Name, FacetConfig] = Field(default={})
    """Axes besides the class, such as lighting."""

    target: TargetConfig
    generation: GenerationConfig = GenerationConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    verification: VerificationConfig = VerificationConfig()
    attempts: AttemptsConfig = AttemptsConfig()
    review: ReviewConfig = ReviewConfig()
    budget: BudgetConfig = BudgetConfig()
    actors: ActorsConfig = ActorsConfig()
    planning: PlanningConfig = PlanningConfig()
    output: OutputConfig = OutputConfig()
    criteria: CriteriaConfig = CriteriaConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    _bases: PathBases = PrivateAttr(default_factory=PathBases)

    def with_bases(self, bases: PathBases) -> Self:
        copy = self.model_copy()
        copy._bases = bases
        return copy

    @property
    def bases(self) -> PathBases:
        return self._bases

    def candidate_paths(self, name: str, path: str) -> tuple[Path, ...]:
        """The places of a relative path of the setting `name`: beside the config file that gives it, then in
        the working folder."""
        plain = expanded(path, name)
        base = self._bases.folders.get(name, Path())
        beside = base / plain
        return (plain,) if beside.absolute() == plain.absolute() else (beside, plain)

    def resolve_path(self, name: str, path: str) -> Path:
        """The first of these places that exists, or else the last one."""
        *others, last = self.candidate_paths(name, path)
        return next(filter(os.path.lexists, others), last)

    @model_validator(mode="after")
    def _cells_can_be_planned(self) -> Self:
        """Counts cells without building them; runs before any other check of the facets."""
        if len(self.facets) > MAX_FACETS:
            raise ValueError(f"facets: there are {len(self.facets)}, over the limit of {MAX_FACETS}")
        sizes: dict[str, list[int]] = {name: [] for name in self.classes}
        for facet in self.facets.values():
            for name in self.classes if facet.classes == "all" else {*facet.classes} & self.classes.keys():
                sizes[name].append(len(facet.values))
        most = max(sizes, key=lambda name: len(sizes[name]))
        if len(sizes[most]) > MAX_FACETS_OF_CLASS:
            raise ValueError(
                f"facets: {len(sizes[most])} apply to class {most!r}, over the limit of {MAX_FACETS_OF_CLASS}"
            )
        cells = sum(map(math.prod, sizes.values()))
        if cells > MAX_CELLS:
            by = " x ".join(str(len(facet.values)) for facet in self.facets.values())
            raise ValueError(
                f"facets: {len(self.classes)} classes x {by[:120]} facet values make {cells:,} cells,"
                f" over the limit of {MAX_CELLS:,}; use fewer facets or values, or give facets `classes`"
            )
        return self

    @model_validator(mode="after")
    def _names_fit_together(self, info: ValidationInfo) -> Self:
        reserved = RESERVED_AT_FIRST if info.context == BEGUN else RESERVED_FACET_NAMES
        for name, facet in self.facets.items():
            place = join_keys(("facets", name))
            # SQL ignores the case of column names.
            if name.lower() in reserved:
                raise ValueError(f"{place}: {name!r} is a column of the manifest; rename the facet")
            if name.startswith(INTERNAL_PREFIX):
                taken = f"names that begin with {INTERNAL_PREFIX} are the manifest's own"
                raise ValueError(f"{place}: {taken}; rename the facet")
            if any(other != name and other.lower() == name.lower() for other in self.facets):
                raise ValueError(f"{place}: another facet differs from it in case only; rename one")
            if facet.classes == "all":
                continue
            for class_name in facet.classes:
                if class_name not in self.classes:
                    known = ", ".join(self.classes)
                    raise ValueError(f"{place}.classes: no class {class_name!r}; the classes are {known}")
        return self

    @model_validator(mode="after")
    def _each_class_has_a_target(self) -> Self:
        _check_targets(self.target, self.classes)
        return self

    @model_validator(mode="after")
    def _some_brightness_passes(self, info: ValidationInfo) -> Self:
        """Each facet value's brightness must overlap `verification.brightness`, since both apply."""
        if info.context == BEGUN:
            return self
        low, high = self.verification.brightness
        for name, facet in self.facets.items():
            for value, item in facet.values.items():
                least, greatest = item.brightness or (low, high)
                if least > high or greatest < low:
                    place = join_keys(("facets", name, "values", value, "brightness"))
                    raise ValueError(
                        f"{place}: {least:g} to {greatest:g} lies outside verification.brightness,"
                        f" {low:g} to {high:g}: no image can pass"
                    )
        return self

    @model_validator(mode="after")
    def _strengths_act(self) -> Self:
        _check_strengths(self.generation, self.attempts.rungs)
        return self

    @model_validator(mode="after")
    def _unjudged_is_there(self) -> Self:
        """Every name in `verification.unjudged` must exist: a misspelt one would have no effect."""
        properties = self.properties()
        known = {
            *properties,
            *(f"{name}={value}" for name, values in properties.items() for value in values),
            *_challenges_named(self.verification.unjudged),
        }
        if missing := [name for name in self.verification.unjudged if name not in known]:
            meant = near(missing[0], known)
            advice = f", did you mean {meant!r}?" if meant else f"; properties are {', '.join(properties)}"
            raise ValueError(
                f"verification.unjudged: neither a property nor property=value: {', '.join(missing)}{advice}"
            )
        return self

    @property
    def generator_name(self) -> str:
        """The name in rows, images and cards."""
        return SIMULATED if self.actors.kind == SIMULATED else self.generation.model

    @property
    def verifier_name(self) -> str:
        return SIMULATED if self.actors.kind == SIMULATED else self.verification.model

    def properties(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Wordings for the verifier: property -> value -> wordings."""
        classes = {name: item.labels or item.prompts for name, item in self.classes.items()}
        return {CLASS_PROPERTY: classes} | {
            name: {value: item.labels or item.prompts for value, item in facet.values.items()}
            for name, facet in self.facets.items()
        }

    def facet_axes(self) -> tuple[Facet, ...]:
        """The facets as the planner uses them, with exact shares that sum to 1."""
        return tuple(
            Facet(
                name=name,
                values=tuple(facet.values),
                shares=_exact_shares([value.share for value in facet.values.values()]),
                classes=frozenset(self.classes if facet.classes == "all" else facet.classes),
            )
            for name, facet in self.facets.items()
        )

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what a run produces; the others affect its speed or its reports."""
        return self.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)

    def plan_shape(self) -> dict[str, Any]:
        """The settings the plan is made from."""
        return {
            "classes": list(self.classes),
            "facets": [
                (facet.name, facet.values, facet.shares, facet.classes) for facet in self.facet_axes()
            ],
            "target": self.target.model_dump(),
        }

    def fingerprint(self) -> str:
        """Hex sha256 over the decisive settings."""
        text = json.dumps(self.decisive(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _check_targets(target: TargetConfig, classes: Collection[str]) -> None:
    for name in target.classes:
        if name not in classes:
            meant = near(name, classes)
            advice = f"did you mean {meant!r}?" if meant else f"the classes are {', '.join(classes)}"
            raise ValueError(f"{join_keys(('target', 'classes', name))}: no class {name!r}; {advice}")
    lacking = [name for name in classes if name not in target.classes]
    if lacking and not target.common:
        raise ValueError(
            f"target: {lacking[0]} has no target; name it in target.classes, or give one of"
            f" {', '.join(COMMON_TARGETS)} for all other classes"
        )


def _check_strengths(made: GenerationConfig, rungs: Sequence[RungConfig]) -> None:
    """A rung's strength needs a parent, and every strength at least one step."""
    strengths = {f"attempts.rungs.{number}.strength": rung.strength for number, rung in enumerate(rungs)}
    given = {name: strength for name, strength in strengths.items() if strength is not None}
    if made.conditioning == "text":
        if given:
            raise ValueError(f"{next(iter(given))}: has no effect without `generation.conditioning: image`")
        return
    for name, strength in {"generation.strengths": min(made.strength_ladder), **given}.items():
        if int(made.steps * strength) < 1:
            raise ValueError(
                f"{name}: a strength of {strength:g} is less than one of {made.steps} steps"
                f" (generation.steps); at least {math.ceil(100 / made.steps) / 100:g} is one"
            )


def _check_sum(shares: Iterable[float]) -> None:
    total = sum(map(as_written, shares), Fraction(0))
    if abs(total - 1) > Fraction(1, 1000):
        raise ValueError(f"shares sum to {float(total):g}, not 1")


def _exact_shares(shares: Sequence[float | None]) -> tuple[Fraction, ...]:
    exact = [Fraction(1) if share is None else as_written(share) for share in shares]
    total = sum(exact)
    return tuple(share / total for share in exact)
