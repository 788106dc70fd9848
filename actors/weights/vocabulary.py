"""Refuse tokenizers without a vocabulary: transformers loads them, and every word is then the same."""

from __future__ import annotations

from typing import Any

from actors.weights.file_rules import INCOMPLETE_HINT, IncompleteError

_LEAST_TOKENS = 2
"""T5's has one without a vocabulary: the mark between words."""


def refuse_empty_vocabulary(tokenizer: Any, model: str, name: str = "the tokenizer") -> None:
    """Raise WeightsError if a loaded tokenizer of transformers knows no word; other objects pass."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if vocabulary is None:
        return
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    words = sum(number not in special for number in vocabulary().values())
    if words < _LEAST_TOKENS:
        raise IncompleteError(
            f"{model}: {name} has no vocabulary ({words} tokens besides special ones), so all words would be"
            " the same to it",
            hint=INCOMPLETE_HINT,
        )
