"""Say why images of a dataset are not counted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from balancer.dataset.audit import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from balancer.dataset.notices import audit_command
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit

MAX_REASONS = 3
"""Reasons that the message names, the most frequent first."""

_KNOBS = {
    "dataset.max_image_megabytes": ("max_image_megabytes", "MB", MAX_IMAGE_BYTES),
    "dataset.max_image_megapixels": ("max_image_megapixels", "megapixels", MAX_IMAGE_PIXELS),
}


def describe_unreadable(audit: Audit, config: Config, noun: str = "image") -> str:
    """How many images cannot be read and why, with the setting behind each limit; empty if there are none.

    `balancer audit` reads no config, so it is suggested only for what it finds unreadable as well.
    """
    if not audit.unreadable:
        return ""
    reasons = Counter(_general(reason, config) for _, reason in audit.unreadable)
    shown = reasons.most_common(MAX_REASONS)
    example = next(name for name, reason in audit.unreadable if _general(reason, config) == shown[0][0])
    total = len(audit.unreadable)
    if total == 1:
        why = f"{example}: {shown[0][0]}"
        return f"1 {noun} cannot be read, so it is not counted: {why}{_audit_hint(audit, config)}"
    parts = [_part(number, reason) for reason, number in shown]
    parts[0] += f", such as {example}"
    if rest := total - sum(number for _, number in shown):
        parts.append(f"{rest} for other reasons")
    return (
        f"{counted(total, noun)} cannot be read, so they are not counted: {'; '.join(parts)}"
        f"{_audit_hint(audit, config)}"
    )


def _part(number: int, reason: str) -> str:
    return f"{number} {reason}" if reason.startswith("over ") else f"{number}: {reason}"


def _general(reason: str, config: Config) -> str:
    """The reason without the size of the single image."""
    knob = _knob(reason)
    if knob is None or "over the limit" not in reason:
        return reason
    field, unit, _ = _KNOBS[knob]
    return f"over {getattr(config.dataset, field):,g} {unit} ({knob})"


def _knob(reason: str) -> str | None:
    return next((knob for knob in _KNOBS if knob in reason), None)


def _audit_hint(audit: Audit, config: Config) -> str:
    by_config = sum(_only_by_config(reason, config) for _, reason in audit.unreadable)
    listed = len(audit.unreadable) - by_config
    if not listed:
        return ""
    if by_config:
        which = "the other one" if listed == 1 else f"the other {listed}"
    else:
        which = "it" if listed == 1 else "them"
    return f" ({audit_command(audit, config)} lists {which})"


def _only_by_config(reason: str, config: Config) -> bool:
    """Whether a limit of the config, below that of `balancer audit`, refused the image."""
    if (knob := _knob(reason)) is None:
        return False
    field, _, usual = _KNOBS[knob]
    return bool(getattr(config.dataset, field) * 1e6 < usual)
