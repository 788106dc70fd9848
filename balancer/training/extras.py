"""Libraries that only some users need."""

from __future__ import annotations

import importlib
from typing import Any

from balancer.errors import UnavailableError


def need(module: str, extra: str) -> Any:
    """Import a library of an extra; UnavailableError with the line that installs it if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(
            f"{module} cannot be imported: {error}", hint=f"pip install 'balancer[{extra}]'"
        ) from error
