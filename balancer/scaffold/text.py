"""What was found in a dataset as a commented config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancer.config import defaults as suggested
from balancer.config.defaults import class_wording
from balancer.config.schema import SAMPLE_DATASET, VerificationConfig
from balancer.config.yaml_reading import KeyPath
from balancer.config.yaml_writing import yaml_text
from balancer.dataset.audit import Audit
from balancer.text.quantities import counted

TARGET_WITHOUT_IMAGES = 50
"""Where no class has an image to go by."""


@dataclass(frozen=True, slots=True)
class Holdout:
    """`path` as it is written into the config."""

    path: str
    audit: Audit


@dataclass(frozen=True, slots=True)
class Facet:
    """`classes` None means all; `counts` are the dataset's images by value."""

    name: str
    prompts: Mapping[str, Sequence[str]]
    classes: tuple[str, ...] | None
    counts: Mapping[str, int]

    def applies_to(self, class_name: str) -> bool:
        return self.classes is None or class_name in self.classes


@dataclass(frozen=True, slots=True)
class Findings:
    """`dataset` as the user named it; `counts` also has classes of which only the hold-out has a folder, and
    `training` leaves out what a table's column `split` keeps for validation and test.

    `left_out` are columns of the metadata table with the reason why they are no facets, `unproven` entries
    of `verification.unjudged`.
    """

    dataset: str
    audit: Audit
    counts: Mapping[str, int]
    training: Mapping[str, int]
    holdout: Holdout | None
    facets: Sequence[Facet]
    facets_found: bool
    left_out: Sequence[str]
    unproven: Sequence[str]


def text_of(found: Findings) -> str:
    text = yaml_text(_values(found), heading=_heading(found), above=_above(found), beside=_beside(found))
    return text if found.facets_found else _without_section(text, "facets")


def _without_section(text: str, name: str) -> str:
    """The section as a comment, for whoever takes the `# ` away."""
    lines = text.split("\n")
    start = lines.index(f"{name}:")
    end = lines.index("", start)
    lines[start:end] = [f"# {line}" for line in lines[start:end]]
    return "\n".join(lines)


def _values(found: Findings) -> dict[str, object]:
    generator, verifier = suggested.GENERATOR, suggested.VERIFIER
    is_sample = found.dataset == SAMPLE_DATASET
    return {
        "name": SAMPLE_DATASET if is_sample else found.audit.path.resolve().name,
        "seed": 0,
        "dataset": {"path": found.dataset} | ({"holdout": found.holdout.path} if found.holdout else {}),
        "target": {"per_class": max(found.training.values()) or TARGET_WITHOUT_IMAGES},
        "classes": {name: {"prompts": [class_wording(name)]} for name in found.counts},
        "facets": {
            facet.name: {
                "classes": "all" if facet.classes is None else [*facet.classes],
                "values": {value: {"prompts": [*prompts]} for value, prompts in facet.prompts.items()},
            }
            for facet in found.facets
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
            **({"unjudged": [*found.unproven]} if found.unproven else {}),
        },
        "attempts": {"max": 3},
        "review": {"fraction": 0.1},
        "actors": {"device": "cuda"},
        "planning": {"acceptance": 0.6, "seconds_per_candidate": 0.4},
    }


def _heading(found: Findings) -> str:
    folders = len(found.audit.counts)
    holds = f"{_images(len(found.audit.images))} in {counted(folders, 'class folder')}"
    return f"A first config for {found.dataset}: {holds}.\n{_HOW_TO_GO_ON}"


def _above(found: Findings) -> dict[KeyPath, str]:
    columns = ["Columns of the metadata table that are not used:", *(f"  {line}" for line in found.left_out)]
    facets = [_FOUND_FACETS if found.facets_found else _EXAMPLE_FACET, _SHARES]
    return {
        ("dataset",): _WITH_HOLDOUT if found.holdout else _WITHOUT_HOLDOUT,
        ("target",): _TARGET,
        ("classes",): _CLASSES,
        ("facets",): "\n".join([*facets, *(columns if found.left_out else [])]),
        ("generation",): _GENERATION,
        ("verification",): "threshold: least probability each property of an accepted image must have.",
        ("verification", "unjudged"): _UNJUDGED,
        ("review",): "Part of the accepted images marked for a person to look at.",
        ("actors",): "Stop at once on a machine without a GPU, instead of taking days.",
        ("planning",): "Assumptions of `balancer plan`, no limits.",
    }


def _beside(found: Findings) -> dict[KeyPath, str]:
    notes: dict[KeyPath, str] = {("classes", name): _beside_class(found, name) for name in found.counts}
    in_holdout_only = found.counts.keys() - found.audit.counts.keys()
    notes |= {("classes", name): "a folder of the hold-out only" for name in in_holdout_only}
    for facet in found.facets:
        for value, count in facet.counts.items():
            notes["facets", facet.name, "values", value] = _images(count)
    if not any(found.training.values()):
        notes["target", "per_class"] = "no class has an image to go by: choose"
    return notes


def _beside_class(found: Findings, name: str) -> str:
    apart = found.counts[name] - found.training[name]
    return _images(found.counts[name]) + (f", {apart} of them for validation or test" if apart else "")


def _images(count: int) -> str:
    return counted(count, "image") if count else "no images"


_HOW_TO_GO_ON = """\
Edit it from top to bottom, the prompts above all. Then `balancer plan` shows what it asks for, \
`balancer doctor` whether this machine can do it, and `balancer run` does it.
`python -m inspect balancer.config.schema` shows every setting and what it means; what is left out \
here has its default."""

_WITH_HOLDOUT = """\
path: a folder with one subfolder of images per class
holdout: one kept apart from training; its images test the verifier too, and none may be copied"""

_WITHOUT_HOLDOUT = """\
A folder with one subfolder of images per class.
If images are kept apart from training, laid out alike, name their folder as `holdout`: they test the \
verifier too, and none may be copied."""

_TARGET = """\
Training images every class should have, real and generated together: as many as the largest has.
Instead of per_class: ratio_to_largest: 0.5, or total: 1000."""

_CLASSES = """\
EDIT the prompts: say what each class looks like, in several wordings, which the attempts take in turn.
A class may have more:
  labels: how the verifier knows it, by default its prompts; short, and unlike those of the other classes
  variations: details that do not matter, added in turn, so that its images differ
  negative_prompt: what its images must not show"""

_FOUND_FACETS = "Axes besides the class, found in the dataset's metadata table. EDIT the prompts."
_EXAMPLE_FACET = """\
An axis besides the class, as an example: to have it, take the "# " away from here to `backlit` and EDIT it. \
Unless labelled images show its values, `lighting` then goes into verification.unjudged."""
_SHARES = """\
The images made for a class are spread evenly over the values; to have it otherwise, give every value \
a `share`."""

_GENERATION = "Makes photographs. Needs a CUDA GPU with 16 GB or more and, on first use, a download of 7 GB."

_UNJUDGED = f"""\
There are fewer than {VerificationConfig().min_examples} labelled images of these, or none of anything \
else, so that nothing shows that the verifier can judge them; a run stops unless they are listed here. \
A property (`lighting`) is then not asked of images at all; a single value (`class=x`) is judged all the \
same. The manifest's rows list both.
To take an entry out, label images of it: classes by their folders, facets in metadata.csv (columns \
file_name and one per facet), in the dataset or the hold-out."""
