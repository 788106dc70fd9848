"""A tokenizer from somebody else is tried before it is used: it ends in seconds, or is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from actors.weights.tokenizer_trial import check_tokenizer
from actors.weights.view import wrap_model_errors
from balancer.errors import WeightsError
from tests import small_process

VOCABULARY = {"[UNK]": 0, "a": 1, "photo": 2}
MUCH_MORE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 32}


def tokenizer(path: Path, **parts: Any) -> Path:
    content: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    }  # fmt: skip
    path.write_text(json.dumps(content | parts))
    return path


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def refused(message: str) -> bool:
    """Whether it is the one line about a tokenizer."""
    return re.fullmatch(r"m: tokenizer\.json: the tokenizer cannot be used: .{,340}", message) is not None


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        check_tokenizer(path, "tokenizer.json", "m", "")
    assert refused(caught.value.message)
    return caught.value.message


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": split_by(r"'s|'t|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
    ],
    ids=["plain", "lower case", "words", "bytes"],
)
def test_a_tokenizer_as_they_are_published_is_taken(tmp_path, parts):
    check_tokenizer(tokenizer(tmp_path / "tokenizer.json", **parts), "tokenizer.json", "m", "")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [MUCH_MORE] * 8}},
        {"pre_tokenizer": split_by("(?:([a-z ]+)+)+(?=ZZZ)")},
        {"post_processor": {"type": "Sequence"}},
    ],
    ids=["explodes", "backtracks", "is incomplete"],
)
def test_a_tokenizer_that_does_harm_is_one_line_in_seconds(tmp_path, parts):
    path = tokenizer(tmp_path / "tokenizer.json", **parts)
    ended = small_process.call(check_tokenizer, path, "tokenizer.json", "m", "")
    assert refused(ended.message)
    assert ended.seconds < 200
    assert ended.child_bytes < 2_000_000_000


@pytest.mark.parametrize("content", ["{}", "[1]", "x", ""])
def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    refusal(tmp_path / "tokenizer.json")


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


def test_a_panic_of_a_loader_is_one_line_and_an_interrupt_stays_one(tmp_path):
    with pytest.raises(WeightsError, match="does not load: "), wrap_model_errors(tmp_path, "m", ""):
        raise Panic("index out of range")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), wrap_model_errors(tmp_path, "m", ""):
            raise kind
