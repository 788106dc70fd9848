"""The config file a user writes, as pydantic models; every field is documented where it stands.

`load_config` (in `balancer.configfile`) reads YAML or JSON into a `Config`.
"""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from balancer.cells import Facet

SAMPLE_DATASET = "sample"
EMBEDDED_MODEL = "embedded"

# A name becomes part of ids and, slugged, of file names; "/" separates the parts of an id.
Name = Annotated[str, StringConstraints(pattern=r"^[^/\x00-\x1f]{1,100}$", strip_whitespace=True)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=1000, strip_whitespace=True)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

# Columns of the manifest and keys of a plan, which a facet must not be named after.
RESERVED_FACET_NAMES = frozenset(
    "id file_name class cell slot attempt source status reason score scores threshold fallback review "
    "prompt negative_prompt seed model model_revision verifier verifier_revision steps guidance width "
    "height sha256 num_bytes phash nearest_id nearest_similarity embedding parent_id split device "
    "batch_size generated_at run_id quota priority".split()
)

# Settings that may change between two starts of one run: they say how fast, not what.
NOT_IN_FINGERPRINT: dict[str, Any] = {
    "name": True,
    "actors": True,
    "budget": True,
    "planning": True,
    "criteria": True,
    "output": True,
    "generation": {"batch_size", "dtype"},
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DatasetConfig(_Section):
    path: str = SAMPLE_DATASET
    """Folder with one subfolder of images per class; `sample` is the rendered sample dataset, made
    on first use in the cache folder (`BALANCER_CACHE`, by default `~/.cache/balancer`)."""

    metadata: str | None = None
    """Table beside the class folders with `file_name` and one column per facet. By default
    `metadata.parquet`, `metadata.csv` or `metadata.jsonl` if there is one."""

    max_image_megabytes: float = Field(default=64, gt=0)
    """Larger files are reported unreadable, not opened."""

    max_image_megapixels: float = Field(default=64, gt=0)
    """Larger images are reported unreadable, not decoded."""


class ClassConfig(_Section):
    prompts: tuple[Phrase, ...] = Field(min_length=1)
    """Wordings of what the generator is asked for; attempts go through them in turn."""

    variations: tuple[Phrase, ...] = ()
    """Harmless details (table, angle, garnish) added in turn, so that images of a cell differ."""

    negative_prompt: str = ""
    """What images of this class must not show; joined with `generation.negative_prompt`."""

    fallback_prompts: tuple[Phrase, ...] = ()
    """Prompts of the fallback attempt; by default those of `prompts`."""

    labels: tuple[Phrase, ...] = ()
    """Wordings by which the verifier knows the class; by default `prompts`."""


class FacetValueConfig(_Section):
    share: PositiveShare | None = None
    """Part of a class's images that should have this value. Given for all values of a facet or for
    none (then even); they sum to 1."""

    prompts: tuple[Phrase, ...] = Field(min_length=1)
    """Wordings added to the class's prompt."""

    negative_prompt: str = ""
    """What images with this value must not show."""

    labels: tuple[Phrase, ...] = ()
    """Wordings by which the verifier knows the value; by default `prompts`."""


class FacetConfig(_Section):
    classes: Literal["all"] | tuple[Name, ...] = "all"
    """The classes this facet applies to."""

    values: dict[Name, FacetValueConfig] = Field(min_length=1)
    """The facet's values, in the order tables show them."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        given = [value.share for value in self.values.values() if value.share is not None]
        if given and len(given) < len(self.values):
            missing = ", ".join(name for name, value in self.values.items() if value.share is None)
            raise ValueError(f"share is missing for {missing}; give every value a share, or none")
        total = sum((_exact(share) for share in given), Fraction(0))
        if given and abs(total - 1) > Fraction(1, 1000):
            raise ValueError(f"shares sum to {float(total):g}, not 1")
        return self


class TargetConfig(_Section):
    per_class: int = Field(gt=0, le=10_000_000)
    """Images every class should have, real and generated together."""


class GenerationConfig(_Section):
    model: str = EMBEDDED_MODEL
    """A text-to-image pipeline: a hub id, a folder in diffusers layout, or `embedded`."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; recorded in every row."""

    variant: str | None = None
    """Weight variant on the hub, such as `fp16`."""

    width: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    """Pixels; a model makes good images at the sizes it was trained for."""

    height: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    """Pixels."""

    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps an image."""

    guidance: float = Field(default=7.5, ge=0, le=50)
    """Classifier-free guidance scale; 1 or less turns guidance off."""

    batch_size: int = Field(default=8, ge=1, le=256)
    """Candidates a generator makes at once. The shape is kept to the end: short batches are filled up."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the model; `auto` takes bfloat16 where the GPU has it, float16 on older GPUs, float32
    on CPU."""

    negative_prompt: str = ""
    """What no image must show."""


class VerificationConfig(_Section):
    model: str = EMBEDDED_MODEL
    """An open_clip model: `hf-hub:<repository>`, a folder in open_clip layout, or `embedded`."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; recorded in every row."""

    threshold: Probability = 0.6
    """Least probability each property of an accepted image must reach."""


class FallbackConfig(_Section):
    threshold: Probability = 0.5
    """Threshold of the fallback attempt; its rows are marked `fallback`."""


class AttemptsConfig(_Section):
    max: int = Field(default=3, ge=1, le=100)
    """Attempts a slot before the fallback, each with another seed and wording."""

    fallback: FallbackConfig | None = None
    """One more attempt with `fallback_prompts` and a threshold of its own; `null` for none."""


class ReviewConfig(_Section):
    fraction: Probability = 0.1
    """Part of the accepted images marked `review` for a person to look at, spread evenly over the cells."""


class BudgetConfig(_Section):
    max_candidates: int | None = Field(default=None, gt=0)
    """The run ends, slots short, once this many candidates were judged, earlier starts included."""

    max_hours: float | None = Field(default=None, gt=0)
    """The run ends, slots short, after this long; each start counts from zero."""


class ActorsConfig(_Section):
    kind: Literal["models", "simulated"] = "models"
    """`simulated` replaces generator and verifier by stand-ins that draw noise and random scores: for
    trying a cluster, never for data."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where models run; `auto` takes GPUs if the cluster has any, `cuda` refuses to run without."""

    generators: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per GPU of the cluster, or one per CPU core without a GPU."""

    verifiers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per eight generators."""

    writers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """`auto`: one per eight generators."""

    gpus_per_generator: float = Field(default=0.9, gt=0)
    """Share of a GPU each generator reserves; below 1, so that a verifier fits beside it."""

    gpus_per_verifier: float = Field(default=0.1, ge=0)
    """Share of a GPU each verifier reserves; 0 puts verifiers on CPU."""

    call_timeout_s: float = Field(default=600, gt=0)
    """A call that takes longer is given up and its actor replaced."""

    start_timeout_s: float = Field(default=1800, gt=0)
    """Longest time an actor may take to start, download and compilation included."""

    max_restarts: int = Field(default=5, ge=0)
    """Replaced actors of one kind without an image committed in between before the run stops."""


class PlanningConfig(_Section):
    """Assumptions behind the estimates of `plan`, used until a run has measured them."""

    acceptance: float = Field(default=0.7, gt=0, le=1)
    """Expected part of candidates that pass."""

    seconds_per_candidate: float | None = Field(default=None, gt=0)
    """Expected time one generator takes for one candidate."""

    bytes_per_image: int | None = Field(default=None, gt=0)
    """Expected size of one image file; by default 60 % of its raw pixels, about what PNG makes of
    photographs."""


class OutputConfig(_Section):
    real_images: Literal["copy", "reference"] = "copy"
    """`copy` puts the real images into the run folder too, which is then complete; `reference` records
    where they are."""

    commit_rows: int = Field(default=64, ge=1, le=10_000)
    """Rows committed at once."""

    commit_seconds: float = Field(default=1.0, gt=0)
    """Longest time a judged candidate waits for its commit."""


class CriteriaConfig(_Section):
    """What the report checks; a run is not stopped by them."""

    class_fill: Probability = 0.8
    """Least part of its target every class must reach."""

    success_rate: Probability = 0.8
    """Least part of the slots that must end accepted."""


class Config(_Section):
    """A balancing job: which classes and facets, how many images, how they are made and judged."""

    name: str = ""
    """A title for reports."""

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Every candidate's seed follows from this number, its slot and its attempt."""

    dataset: DatasetConfig = DatasetConfig()
    classes: dict[Name, ClassConfig] = Field(min_length=1)
    """The classes, by folder name."""

    facets: dict[Name, FacetConfig] = {}
    """Axes besides the class, such as lighting."""

    target: TargetConfig
    generation: GenerationConfig = GenerationConfig()
    verification: VerificationConfig = VerificationConfig()
    attempts: AttemptsConfig = AttemptsConfig()
    review: ReviewConfig = ReviewConfig()
    budget: BudgetConfig = BudgetConfig()
    actors: ActorsConfig = ActorsConfig()
    planning: PlanningConfig = PlanningConfig()
    output: OutputConfig = OutputConfig()
    criteria: CriteriaConfig = CriteriaConfig()

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        for name, facet in self.facets.items():
            # Without regard to case, as SQL reads column names.
            if name.lower() in RESERVED_FACET_NAMES:
                raise ValueError(f"facets.{name}: {name!r} is a column of the manifest; rename the facet")
            if any(other != name and other.lower() == name.lower() for other in self.facets):
                raise ValueError(f"facets.{name}: another facet differs from it in case only; rename one")
            if facet.classes == "all":
                continue
            for class_name in facet.classes:
                if class_name not in self.classes:
                    known = ", ".join(self.classes)
                    raise ValueError(
                        f"facets.{name}.classes: no class {class_name!r}; the classes are {known}"
                    )
        return self

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
        """The settings that decide what a run produces; the others say how fast, or what to print."""
        return self.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)

    def plan_shape(self) -> dict[str, Any]:
        """The settings the plan is made from."""
        return {
            "classes": list(self.classes),
            "facets": [
                (facet.name, facet.values, facet.shares, facet.classes) for facet in self.facet_axes()
            ],
            "per_class": self.target.per_class,
        }

    def fingerprint(self) -> str:
        """Hex sha256 over the decisive settings."""
        text = json.dumps(self.decisive(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _exact(share: float) -> Fraction:
    """The decimal the user wrote, not its nearest binary fraction."""
    return Fraction(str(share))


def _exact_shares(shares: list[float | None]) -> tuple[Fraction, ...]:
    exact = [Fraction(1) if share is None else _exact(share) for share in shares]
    total = sum(exact)
    return tuple(share / total for share in exact)
