"""Files that were read by eye once."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "submission"


def golden(name: str, text: str) -> str:
    """The kept file; with `GOLDENS=write` the text is kept instead, to be read by eye."""
    if os.environ.get("GOLDENS") == "write":
        (FOLDER / name).write_text(text)
    return (FOLDER / name).read_text()
