"""JSON that somebody else may have written, read within limits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

MOST_VALUES = 6_000_000
"""Values take up to 130 times their length in memory. The plan of 120,000 cells with 30 facets each has 4.3
million."""

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class InvalidJSONError(ValueError):
    pass


def read_json(data: bytes | str, *, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON. Raises InvalidJSONError for what is not JSON, has too many values, is nested too deeply, or
    has text that no file can hold."""
    if count_values(data) > MOST_VALUES:
        raise InvalidJSONError(f"it has more than {MOST_VALUES:,} values")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        document = json.loads(text, object_pairs_hook=pairs_hook)
        if isinstance(data, str):
            text.encode()
        if _ESCAPED_SURROGATE.search(text):  # pairs of them are valid
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InvalidJSONError("it is nested too deeply") from error
    except UnicodeError as error:
        raise InvalidJSONError("it is not valid Unicode") from error
    except ValueError as error:
        raise InvalidJSONError(f"it is not JSON: {error}") from error
    return document


def json_sha256(document: Mapping[str, Any]) -> str:
    """The same for documents that are equal; what one says of itself, so that damage shows."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def count_values(data: bytes | str) -> int:
    """At least as many values as there are, counted without parsing."""
    if isinstance(data, str):
        return sum(map(data.count, ",[{"))
    return sum(map(data.count, (b",", b"[", b"{")))
