"""A tokenizer from somebody else is tried before it is used: it ends in seconds, or is one line."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from actors.weights.text_growth import refuse_growth
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


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def charsmap(*forms: str) -> dict[str, Any]:
    """As SentencePiece has them, with an empty trie."""
    data = bytes(4) + b"\0".join(form.encode() for form in forms) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def sequence(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(rules)}


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
        {"normalizer": sequence({"type": "NFC"}, SPACES, {"type": "Lowercase"})},
        {"normalizer": sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"))},
        {"normalizer": sequence(replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, SPACES)},
    ],
    ids=["plain", "lower case", "words", "bytes", "clip", "llama", "xlnet"],
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


PIZZA = replace("pizza", "pizza" * 8)
LOOKS = {"type": "Replace", "pattern": {"Regex": "(?=[qz])"}, "content": "q"}
UNTYPED = {"pattern": {"String": "pizza"}, "content": "pizza" * 8}


@pytest.mark.parametrize(
    "rules",
    [
        [PIZZA] * 9, [UNTYPED] * 9, [sequence(PIZZA, PIZZA), sequence(PIZZA)], [LOOKS] * 9,
        [replace("", "qz")] * 5,
        [replace("pizza", "q" * 1000)], [charsmap("q" * 200)], [charsmap("a", "q" * 20)] * 2,
    ],
    ids=["words", "untyped", "nested", "places", "nothing", "long", "map", "maps"],
)  # fmt: skip
def test_rules_that_lengthen_a_word_of_no_trial_are_refused(tmp_path, rules):
    document = json.loads(tokenizer(tmp_path / "tokenizer.json", normalizer=sequence(*rules)).read_text())
    with pytest.raises(ValueError, match="times as long; the limit is 128"):
        refuse_growth(document)


def test_a_tokenizer_that_lengthens_one_word_is_one_line(tmp_path):
    path = tokenizer(tmp_path / "tokenizer.json", normalizer=sequence(*[PIZZA] * 9))
    assert "1.34e+08 times as long" in refusal(path)


def test_rules_as_they_are_published_lengthen_a_text_little():
    longest = "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647 \u0648\u0633\u0644\u0645"
    for rules in ([charsmap("a", longest), SPACES], [SPACES, SPACES, charsmap(longest)], [charsmap()]):
        refuse_growth({"normalizer": sequence(*rules), "model": {"vocab": {"content": 1}}})


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
