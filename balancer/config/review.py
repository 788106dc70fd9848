"""How people review a run: `review` in the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from balancer.config.section import Section

LEAST_MARGIN = 0.0005
"""A sample that shows less has more than 7,000 images."""


class ReviewConfig(Section):
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the accepted images marked `review` for a person to check, spread evenly over the cells.
    They are the sample that `balancer review` estimates the label error from, unless `margin` is set."""

    margin: float | None = Field(default=None, ge=LEAST_MARGIN, le=0.5)
    """Draw a sample of this precision instead: so many images of every cell that, if none of them is wrong,
    no more than this share of all accepted images is (95 % confidence)."""

    max_error: float | None = Field(default=None, gt=0, lt=1)
    """Quarantine a cell, once people have surely found more wrong labels in it than this share: the lower
    limit of its label error, with 95 % confidence. Exports leave its images out by default."""
