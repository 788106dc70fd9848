"""Wordings that the verifier's tokenizer cuts, and the words that are lost."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.weights import resolve as weights
from actors.weights.file_rules import MARKER
from actors.weights.view import read_checked_config
from balancer.config.schema import Config
from balancer.errors import WeightsError, first_line
from balancer.text.quantities import counted, listed
from balancer.verification.negatives import negatives_of

USUAL_LENGTH = 77
"""Tokens, where a config names no other number."""

SPECIAL = 4
"""Tokens that a tokenizer may add to those of a text: begin, end, class, and a mark before the first word."""

LISTED = 3

HINT = "verification.model must name an open_clip model"

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class CutWording:
    """A wording that is longer than the verifier reads, and what it does not see of it."""

    wording: str
    lost: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Wordings:
    """`limit` is the number of tokens that the verifier reads."""

    count: int
    limit: int
    cut: tuple[CutWording, ...]

    def __str__(self) -> str:
        if not self.cut:
            return f"{counted(self.count, 'wording')} fit into the verifier's {self.limit} tokens"
        ranked = sorted(self.cut, key=lambda cut: -cut.tokens)
        lost = listed([*map(repr, dict.fromkeys(cut.lost for cut in ranked))], LISTED, "; ")
        return (
            f"{len(self.cut)} of {counted(self.count, 'wording')} are cut after the verifier's {self.limit}"
            f" tokens (the longest has {ranked[0].tokens}); lost: {lost}"
        )

    def as_dict(self) -> dict[str, Any]:
        cut = [{"wording": one.wording, "lost": one.lost, "tokens": one.tokens} for one in self.cut]
        return {"wordings": self.count, "limit": self.limit, "cut": cut}


def check_wordings(config: Config) -> Wordings | None:
    """None if the verifier is not on this machine. WeightsError if its tokenizer does not load."""
    wanted = config.verification
    if not weights.is_here(wanted.model, wanted.revision, "verifier"):
        return None
    folder = weights.check(wanted.model, wanted.revision, None, "verifier").folder
    if folder is None:
        return None
    read = read_checked_config(folder, MARKER["verifier"], wanted.model)
    text = read.get("model_cfg", {}).get("text_cfg") or {}
    texts = _texts(config)
    limit = _limit(text, wanted.model)
    if all(_is_short(text, limit) for text in texts):
        return Wordings(len(texts), limit, ())
    return Wordings(len(texts), limit, tuple(find_cut(_counter(folder, text, wanted.model), limit, texts)))


def _limit(text: Mapping[str, Any], model: str) -> int:
    length = text.get("context_length", USUAL_LENGTH)
    if type(length) is not int or length < 1:
        raise WeightsError(f"{model}: its config says that it reads {length!r} tokens", hint=HINT)
    return length


def _texts(config: Config) -> list[str]:
    properties = config.properties()
    wordings = [text for values in properties.values() for of_value in values.values() for text in of_value]
    return list(dict.fromkeys([*wordings, *negatives_of(config)]))


def _is_short(text: str, limit: int) -> bool:
    """Whether it fits with any tokenizer: a token is a byte at least. Spares loading one."""
    return text.isascii() and len(text) + SPECIAL <= limit


def _counter(folder: Path, text: Mapping[str, Any], model: str) -> Count:
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
    from tokenizers import Tokenizer

    options = text.get("tokenizer_kwargs") or {}
    try:
        clean = get_clean_fn(options.get("clean", "whitespace"))
        built_in = None if text.get("hf_tokenizer_name") else SimpleTokenizer(**options)
    except (AssertionError, TypeError) as error:
        raise WeightsError(f"{model}: tokenizer_kwargs: {first_line(error)}", hint=HINT) from error
    if built_in is not None:
        return lambda words: len(built_in.encode(built_in.clean_fn(words))) + 2
    path = folder / "tokenizer.json"  # tried within limits when the folder was checked
    if not path.is_file():
        from transformers import AutoTokenizer

        with weights.shown_to_loader(folder, model, None, "verifier", HINT) as view:
            slow = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        return lambda words: len(slow(clean(words), verbose=False)["input_ids"])
    try:
        fast = Tokenizer.from_file(str(path))
    except Exception as error:
        raise WeightsError(f"{model}: its tokenizer does not load: {first_line(error)}") from error
    fast.no_truncation()
    fast.no_padding()
    return lambda words: len(fast.encode(clean(words)).ids)


def find_cut(count: Count, limit: int, texts: Iterable[str]) -> Iterable[CutWording]:
    """Those of the texts that have more than `limit` tokens, with the words that do not fit."""
    for text in texts:
        tokens = count(text)
        if tokens <= limit:
            continue
        words = text.split()
        kept = _fitting(count, limit, [" ".join(words[:number]) for number in range(1, len(words))])
        lost = " ".join(words[kept:])
        if not kept:  # a script without spaces
            lost = text[_fitting(count, limit, [text[:number] for number in range(1, len(text))]) :]
        yield CutWording(text, lost, tokens)


def _fitting(count: Count, limit: int, beginnings: Sequence[str]) -> int:
    """How many of ever longer beginnings fit."""
    return bisect.bisect_right(beginnings, limit, key=count)
