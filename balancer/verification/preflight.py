"""The pre-flight: can this verifier tell apart what it will be asked to judge? Shown on labelled images.

A value is proven if enough images are labelled with it and its probability tells them from the others'. A
run stops for what is not proven, unless `verification.unjudged` names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.errors import UsageError
from balancer.text.quantities import counted
from balancer.verification.calibration import Examples, calibrated, one_vs_rest_auc

if TYPE_CHECKING:
    from balancer.config.schema import Config

LISTED = 20
"""Unproven values that an error names."""


@dataclass(frozen=True, slots=True)
class ValueProof:
    """What labelled images say of one value. `auc` is None where there is nothing to tell it from;
    `problem` is empty if the value is proven."""

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
    """`images` were looked at. `allowed` is `verification.unjudged`."""

    images: int
    values: tuple[ValueProof, ...]
    allowed: frozenset[str]

    def is_allowed(self, proof: ValueProof) -> bool:
        return not self.allowed.isdisjoint({proof.property_, proof.name})

    @property
    def unproven(self) -> tuple[ValueProof, ...]:
        return tuple(proof for proof in self.values if not proof.proven)

    @property
    def blocking(self) -> tuple[ValueProof, ...]:
        """What is unproven and not allowed."""
        return tuple(proof for proof in self.unproven if not self.is_allowed(proof))

    @property
    def unproven_properties(self) -> tuple[str, ...]:
        """Properties of which no value is proven."""
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
        }


def preflight(
    examples: Mapping[str, Examples], temperatures: Mapping[str, float], images: int, config: Config
) -> Preflight:
    """`examples` of every property, judged at `temperatures`, 1 where there is none."""
    proofs: list[ValueProof] = []
    for name, found in examples.items():
        probabilities = calibrated(found.log_probabilities, temperatures.get(name, 1.0))
        aucs = one_vs_rest_auc(found, probabilities)
        for value, count, auc in zip(found.values, found.counts, aucs, strict=True):
            proofs.append(ValueProof(name, value, count, auc, _problem(found, count, auc, config)))
    return Preflight(images, tuple(proofs), frozenset(config.verification.unjudged))


def _problem(found: Examples, count: int, auc: float | None, config: Config) -> str:
    limits = config.verification
    if len(found.values) == 1:
        return "it is the only value, so that there is nothing to tell it from"
    if count < limits.min_examples:
        images = counted(count, "labelled image") if count else "no labelled images"
        return f"{images}, {limits.min_examples} needed (verification.min_examples)"
    if auc is None:
        return f"all {count} labelled images show it, and none another value"
    if auc < limits.min_auc:
        told = f"{count} labelled images told from the others with an AUC of {auc:.2f}"
        return f"{told}, {limits.min_auc:.2f} needed (verification.min_auc; chance is 0.50)"
    return ""


def refuse_unproven(found: Preflight) -> None:
    """UsageError with every unproven value, and every property of which none is proven, unless allowed."""
    if not found.blocking:
        return
    lines, names = zip(*_grouped(found), strict=True)
    whole = " (a property named so rejects no image; its values, named as property=value, still do)"
    raise UsageError(
        "\n".join(
            [
                "labelled images do not show that the verifier can judge what it will be asked:",
                *_shortened([f"  {line}" for line in lines]),
            ]
        ),
        hint="label more real images (folders and metadata of dataset.path and dataset.holdout), choose "
        "other labels or another verification.model, or go on without that proof: "
        f"verification.unjudged: [{', '.join(_shortened(names))}]"
        + (whole if set(names) & set(found.unproven_properties) else ""),
    )


def _grouped(found: Preflight) -> Iterable[tuple[str, str]]:
    """What blocks, in words, and the name that would allow it: a property where nothing of it is proven."""
    whole = set(found.unproven_properties)
    blocking = found.blocking
    for name in dict.fromkeys(proof.property_ for proof in blocking):
        proofs = [proof for proof in blocking if proof.property_ == name]
        if name not in whole:
            yield from ((f"{proof.name}: {proof.problem}", proof.name) for proof in proofs)
        elif not any(proof.examples for proof in found.values if proof.property_ == name):
            yield f"{name}: no labelled image of any value", name
        else:
            told = "; ".join(_shortened([f"{proof.value}: {proof.problem}" for proof in proofs]))
            yield f"{name}: no value of it: {told}", name


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], f"and {more} more"] if more > 0 else list(lines)


def summary(found: Preflight) -> str:
    """One line on a pre-flight that let the run go on."""
    proven = [proof for proof in found.values if proof.proven]
    told = (
        f"{len(proven)} of {counted(len(found.values), 'value')} told apart on "
        f"{counted(found.images, 'real image')}"
    )
    if proven:
        least = min(proven, key=lambda proof: proof.auc or 0.0)
        told += f", least AUC {least.auc:.2f} ({least.name})"
    if found.unproven:
        named = dict.fromkeys(
            proof.property_ if proof.property_ in found.allowed else proof.name for proof in found.unproven
        )
        told += f"; not proven, allowed by verification.unjudged: {', '.join(_shortened(list(named)))}"
    return f"pre-flight: {told}"
