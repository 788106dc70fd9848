"""The lines that every command says about a dataset it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.dataset.audit import Audit

PLAIN = "folders"
"""The layout that needs no mention."""


def describe_layout(audit: Audit) -> str:
    """As which layout the dataset was read, and why."""
    return f"read as dataset.layout: {audit.layout} ({audit.layout_reason})"


def describe_unusual_layout(audit: Audit) -> str:
    """The same for other layouts than class folders; else empty."""
    return "" if audit.layout == PLAIN else describe_layout(audit)
