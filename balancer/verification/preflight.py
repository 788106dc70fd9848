"""The pre-flight: test on labelled real images whether the verifier can judge the values of a config.

A value is proven if enough images have its label and its probability separates them from the others. A run
refuses to start with an unproven value, unless `verification.unjudged` names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.errors import UsageError
from balancer.text.quantities import counted
from balancer.verification.calibration import Examples, calibrated, one_vs_rest_auc
from balancer.verification.label_issues import LabelIssue

if TYPE_CHECKING:
    from balancer.config.schema import Config

LISTED = 20
"""Unproven values that an error names."""


@dataclass(frozen=True, slots=True)
class ValueProof:
    """The result for one value. `auc` is None without images of other values; `problem` is empty if the
    value is proven."""

    property_: str
    value: str
    examples: int
    auc: float | None
    problem: str

    @property
    def proven(self) -> bool:
        return not self.problem

    @property
    def name(self) -> str:
        """As `verification.unjudged` names it."""
        return f"{self.property_}={self.value}"


@dataclass(frozen=True, slots=True)
class Preflight:
    """`images` is the number of labelled images. `allowed` is `verification.unjudged`. `label_issues` are
    images that look more like another class than theirs."""

    images: int
    values: tuple[ValueProof, ...]
    allowed: frozenset[str]
    label_issues: tuple[LabelIssue, ...] = ()

    def is_allowed(self, proof: ValueProof) -> bool:
        return not self.allowed.isdisjoint({proof.property_, proof.name})

    @property
    def unproven(self) -> tuple[ValueProof, ...]:
        return tuple(proof for proof in self.values if not proof.proven)

    @property
    def blocking(self) -> tuple[ValueProof, ...]:
        """Values that are unproven and not allowed."""
        return tuple(proof for proof in self.unproven if not self.is_allowed(proof))

    @property
    def unproven_properties(self) -> tuple[str, ...]:
        """Properties without a proven value."""
        proven = {proof.property_ for proof in self.values if proof.proven}
        return tuple(dict.fromkeys(each.property_ for each in self.values if each.property_ not in proven))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = [
            {
                "property": proof.property_,
                "value": proof.value,
                "examples": proof.examples,
                "auc": proof.auc,
                "proven": proof.proven,
                "problem": proof.problem or None,
                "unjudged": self.is_allowed(proof),
            }
            for proof in self.values
        ]
        return {
            "images": self.images,
            "ready": not self.blocking,
            "unproven_properties": list(self.unproven_properties),
            "values": values,
            "label_issues": [dataclasses.asdict(issue) for issue in self.label_issues],
        }


def preflight(
    examples: Mapping[str, Examples], temperatures: Mapping[str, float], images: int, config: Config
) -> Preflight:
    """Test the values of every property on its `examples`. A property's temperature defaults to 1."""
    proofs: list[ValueProof] = []
    for name, labelled in examples.items():
        probabilities = calibrated(labelled.log_probabilities, temperatures.get(name, 1.0))
        aucs = one_vs_rest_auc(labelled, probabilities)
        for value, count, auc in zip(labelled.values, labelled.counts, aucs, strict=True):
            proofs.append(ValueProof(name, value, count, auc, _problem(labelled, count, auc, config)))
    return Preflight(images, tuple(proofs), frozenset(config.verification.unjudged))


def _problem(labelled: Examples, count: int, auc: float | None, config: Config) -> str:
    limits = config.verification
    if len(labelled.values) == 1:
        return "the only value, so there is no other to compare it with"
    if count < limits.min_examples:
        images = counted(count, "labelled image") if count else "no labelled images"
        return f"{images}, {limits.min_examples} needed (verification.min_examples)"
    if auc is None:
        return f"all {count} labelled images show it; there are none of another value"
    if auc < limits.min_auc:
        return (
            f"AUC {auc:.2f} on {count} labelled images, {limits.min_auc:.2f} needed"
            " (verification.min_auc; chance is 0.50)"
        )
    return ""


def refuse_unproven(result: Preflight) -> None:
    """UsageError that lists every unproven value or property that is not allowed."""
    if not result.blocking:
        return
    lines, names = zip(*_grouped(result), strict=True)
    whole = " (a property rejects no image then; its values, listed as property=value, still do)"
    raise UsageError(
        "\n".join(
            [
                "labelled images do not prove that the verifier can judge these:",
                *_shortened([f"  {line}" for line in lines]),
            ]
        ),
        hint="label more real images (folders and metadata of dataset.path and dataset.holdout), choose "
        "other labels or another verification.model, or accept the missing proof: "
        f"verification.unjudged: [{', '.join(_shortened(names))}]"
        + (whole if set(names) & set(result.unproven_properties) else ""),
    )


def _grouped(result: Preflight) -> Iterable[tuple[str, str]]:
    """A line for each problem, and the name that would allow it: the property if none of its values is
    proven."""
    whole = set(result.unproven_properties)
    blocking = result.blocking
    for name in dict.fromkeys(proof.property_ for proof in blocking):
        proofs = [proof for proof in blocking if proof.property_ == name]
        if name not in whole:
            yield from ((f"{proof.name}: {proof.problem}", proof.name) for proof in proofs)
        elif not any(proof.examples for proof in result.values if proof.property_ == name):
            yield f"{name}: no labelled image of any value", name
        else:
            problems = "; ".join(_shortened([f"{proof.value}: {proof.problem}" for proof in proofs]))
            yield f"{name}: no value is proven: {problems}", name


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], f"and {more} more"] if more > 0 else list(lines)


def summary(result: Preflight) -> str:
    """One line on a pre-flight that passed."""
    proven = [proof for proof in result.values if proof.proven]
    line = (
        f"pre-flight: {len(proven)} of {counted(len(result.values), 'value')} proven on "
        f"{counted(result.images, 'real image')}"
    )
    if proven:
        lowest = min(proven, key=lambda proof: proof.auc or 0.0)
        line += f", lowest AUC {lowest.auc:.2f} ({lowest.name})"
    if result.unproven:
        named = dict.fromkeys(
            proof.property_ if proof.property_ in result.allowed else proof.name for proof in result.unproven
        )
        line += f"; not proven, allowed by verification.unjudged: {', '.join(_shortened(list(named)))}"
    return line
