"""Format a first config with comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancer.config import defaults as suggested
from balancer.config.defaults import class_wordings
from balancer.config.schema import SAMPLE_DATASET, VerificationConfig
from balancer.config.yaml_reading import KeyPath
from balancer.config.yaml_writing import yaml_text
from balancer.dataset.audit import Audit
from balancer.dataset.notices import describe_layout
from balancer.dataset.readers.choice import FOLDERS
from balancer.text.quantities import counted

TARGET_WITHOUT_IMAGES = 50
"""Target if no class has an image."""


@dataclass(frozen=True, slots=True)
class Holdout:
    """`path` is written into the config as it is."""

    path: str
    audit: Audit


@dataclass(frozen=True, slots=True)
class DraftFacet:
    """A facet of the new config. `classes` None means all; `counts` are the dataset's images by value."""

    name: str
    prompts: Mapping[str, Sequence[str]]
    classes: tuple[str, ...] | None
    counts: Mapping[str, int]

    def applies_to(self, class_name: str) -> bool:
        return self.classes is None or class_name in self.classes


@dataclass(frozen=True, slots=True)
class ConfigDraft:
    """Contents of the new config. `dataset` is the path as the user gave it; `settings` are others of that
    section.

    `counts` include classes of the hold-out only; `training` excludes images that the table's column `split`
    assigns to validation or test. `left_out` are columns that are not facets, with the reason. `unproven` are
    the entries of `verification.unjudged`, `heads` what a head sees in the images, empty if nothing more.
    """

    dataset: str
    settings: Mapping[str, object]
    audit: Audit
    counts: Mapping[str, int]
    training: Mapping[str, int]
    holdout: Holdout | None
    facets: Sequence[DraftFacet]
    has_facets: bool
    left_out: Sequence[str]
    unproven: Sequence[str]
    heads: str = ""


def format_config(draft: ConfigDraft) -> str:
    text = yaml_text(_values(draft), heading=_heading(draft), above=_above(draft), beside=_beside(draft))
    return text if draft.has_facets else _without_section(text, "facets")


def _without_section(text: str, name: str) -> str:
    """Turn a section into a comment."""
    lines = text.split("\n")
    start = lines.index(f"{name}:")
    end = lines.index("", start)
    lines[start:end] = [f"# {line}" for line in lines[start:end]]
    return "\n".join(lines)


def _values(draft: ConfigDraft) -> dict[str, object]:
    generator, verifier = suggested.GENERATOR, suggested.VERIFIER
    is_sample = draft.dataset == SAMPLE_DATASET
    return {
        "name": SAMPLE_DATASET if is_sample else draft.audit.path.resolve().name,
        "seed": 0,
        "dataset": {
            "path": draft.dataset,
            **draft.settings,
            **({"holdout": draft.holdout.path} if draft.holdout else {}),
        },
        "target": {"per_class": max(draft.training.values(), default=0) or TARGET_WITHOUT_IMAGES},
        "classes": {name: {"prompts": [wording]} for name, wording in class_wordings(draft.counts).items()},
        "facets": {
            facet.name: {
                "classes": "all" if facet.classes is None else [*facet.classes],
                "values": {value: {"prompts": [*prompts]} for value, prompts in facet.prompts.items()},
            }
            for facet in draft.facets
        },
        "generation": {
            "model": generator.model,
            "revision": generator.revision,
            "variant": generator.variant,
            "width": 512,
            "height": 512,
            "steps": 30,
            "guidance": 7.5,
            "batch_size": 8,
            "negative_prompt": "cartoon, drawing, illustration, 3d render, text, watermark, logo, blurry",
        },
        "verification": {
            "model": verifier.model,
            "revision": verifier.revision,
            "threshold": 0.6,
            **({"unjudged": [*draft.unproven]} if draft.unproven else {}),
            **({"heads": "auto"} if draft.heads else {}),
        },
        "attempts": {"max": 3},
        "review": {"fraction": 0.1},
        "actors": {"device": "cuda"},
        "planning": {"acceptance": 0.6, "seconds_per_candidate": 0.4},
    }


def _heading(draft: ConfigDraft) -> str:
    classes = len(draft.audit.counts)
    noun = (
        counted(classes, "class folder")
        if _has_class_folders(draft)
        else counted(classes, "class", "classes")
    )
    holds = f"{_images(len(draft.audit.images))} in {noun}"
    return f"A first config for {draft.dataset}: {holds}.\n{_HOW_TO_GO_ON}"


def _has_class_folders(draft: ConfigDraft) -> bool:
    return draft.audit.layout == FOLDERS


def _describe_dataset(draft: ConfigDraft) -> str:
    layout = _FOLDERS if _has_class_folders(draft) else f"the dataset, {describe_layout(draft.audit)}"
    if draft.holdout:
        return f"path: {layout}\n{_HOLDOUT}"
    return f"{layout[0].upper()}{layout[1:]}.\n{_WITHOUT_HOLDOUT}"


def _above(draft: ConfigDraft) -> dict[KeyPath, str]:
    columns = ["Columns of the metadata table that are not used:", *(f"  {line}" for line in draft.left_out)]
    facets = [_FOUND_FACETS if draft.has_facets else _EXAMPLE_FACET, _SHARES]
    return {
        ("dataset",): _describe_dataset(draft),
        ("target",): _TARGET,
        ("classes",): _CLASSES,
        ("facets",): "\n".join([*facets, *(columns if draft.left_out else [])]),
        ("generation",): _GENERATION,
        ("verification",): "threshold: least probability each property of an accepted image must have.",
        ("verification", "unjudged"): _UNJUDGED,
        ("verification", "heads"): f"{draft.heads}. {_HEADS}",
        ("review",): "Fraction of the accepted images marked for a person to check.",
        ("actors",): "Stop at once on a machine without a GPU, instead of taking days.",
        ("planning",): "Assumptions of `balancer plan`, not limits.",
    }


def _beside(draft: ConfigDraft) -> dict[KeyPath, str]:
    notes: dict[KeyPath, str] = {("classes", name): _beside_class(draft, name) for name in draft.counts}
    in_holdout_only = draft.counts.keys() - draft.audit.counts.keys()
    notes |= {("classes", name): "a folder of the hold-out only" for name in in_holdout_only}
    for facet in draft.facets:
        for value, count in facet.counts.items():
            notes["facets", facet.name, "values", value] = _images(count)
    if not any(draft.training.values()):
        notes["target", "per_class"] = "no class has images: choose a number"
    return notes


def _beside_class(draft: ConfigDraft, name: str) -> str:
    apart = draft.counts[name] - draft.training[name]
    return _images(draft.counts[name]) + (f", {apart} of them for validation or test" if apart else "")


def _images(count: int) -> str:
    return counted(count, "image") if count else "no images"


_HOW_TO_GO_ON = """\
Edit it from top to bottom, above all the prompts. Then `balancer plan` shows what would be generated, \
`balancer doctor` checks this machine, and `balancer run` does it.
`python -m inspect balancer.config.schema` shows the settings and what they mean; in place of `schema`, \
`adaptation`, `evaluation`, `loras` and `review` show those of these sections. Settings that are missing \
here have their defaults."""

_FOLDERS = "a folder with one subfolder of images per class"
_HOLDOUT = (
    "holdout: a folder kept apart from training; its images test the verifier too, and none may be copied"
)
_WITHOUT_HOLDOUT = """\
If you keep images apart from training, in a folder laid out alike, name it as `holdout`: they test the \
verifier too, and none may be copied."""

_TARGET = """\
Training images every class should have, real and generated together: as many as the largest class has.
Instead of per_class: ratio_to_largest: 0.5, total: 1000, or rule: sqrt; for single classes, \
classes: {NAME: 80}."""

_CLASSES = """\
EDIT the prompts: describe each class in several wordings; attempts use them in turn.
A class may have more:
  labels: wordings for the verifier, by default the prompts; short, and unlike those of the other classes
  variations: details that do not matter, added in turn, so that images differ
  negative_prompt: what its images must not show"""

_FOUND_FACETS = "Axes besides the class, from the dataset's metadata table. EDIT the prompts."
_EXAMPLE_FACET = """\
An example of an axis besides the class: to use it, remove the "# " from here to `backlit` and EDIT it. \
Unless labelled images show its values, add `lighting` to verification.unjudged."""
_SHARES = """\
The generated images of a class are spread evenly over the values; for another distribution, give every \
value a `share`."""

_GENERATION = "Makes photographs. Needs a CUDA GPU with 16 GB or more and, on first use, a download of 7 GB."

_HEADS = """\
auto: a run looks again with its own verifier, and takes a head for each property that one judges better \
than the words alone, on images left out."""

_UNJUDGED = f"""\
There are fewer than {VerificationConfig().min_examples} labelled images of these, or none of anything \
else, so nothing proves that the verifier can judge them. A run stops unless they are listed here. \
A property (`lighting`) then rejects no image; a single value (`class=x`) is still judged. \
The manifest's rows list both.
To remove an entry, label images of it: classes by their folders, facets in metadata.csv (columns \
file_name and one per facet), in the dataset or the hold-out."""
