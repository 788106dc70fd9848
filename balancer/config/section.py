"""The base of every section of the config file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SECTION = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Section(BaseModel):
    model_config = SECTION
