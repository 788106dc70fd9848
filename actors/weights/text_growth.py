"""How much longer the rules of a tokenizer can make a text.

No sentence of a trial has every word that a rule may be made for, so the rules themselves are read.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

MOST_GROWTH = 128
"""Published tokenizers have up to 36: Unicode's longest compatibility form has 18 letters."""

_TRIE_SIZE_BYTES = 4


def refuse_growth(tokenizer: Any) -> None:
    """ValueError if the content of a `tokenizer.json` can lengthen a text too much."""
    growth = math.prod(map(_growth, _rules(tokenizer)))
    if growth > MOST_GROWTH:
        raise ValueError(f"its rules can make a text {growth:.3g} times as long; the limit is {MOST_GROWTH}")


def _rules(tokenizer: Any) -> Iterator[dict[str, Any]]:
    parts = [tokenizer]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield part
            parts += [value for key, value in part.items() if key not in ("model", "added_tokens")]
        elif isinstance(part, list):
            parts += part


def _growth(rule: dict[str, Any]) -> float:
    """Which rule it is is told by its keys, as the library takes some without a type."""
    match rule:
        case {"content": str(content), "pattern": {"String": str(replaced)}} if replaced:
            return max(1.0, len(content) / len(replaced))
        case {"content": str(content), "pattern": _}:  # it may match nothing, between any two letters
            return float(len(content) + 1)
        case {"precompiled_charsmap": str(encoded)}:
            return float(max(1, _longest_form(encoded)))
    return 1.0


def _longest_form(encoded: str) -> int:
    """Letters of the longest text in a map that SentencePiece made: a trie, and texts that end in NUL."""
    data = base64.b64decode(encoded)
    begin = _TRIE_SIZE_BYTES + int.from_bytes(data[:_TRIE_SIZE_BYTES], "little")
    return max(len(text.decode(errors="replace")) for text in data[begin:].split(b"\0"))
