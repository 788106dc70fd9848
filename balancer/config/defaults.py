"""Suggested models and prompts for new configs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub, pinned to a commit."""

    model: str
    revision: str
    variant: str | None = None


GENERATOR = HubModel(
    "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", variant="fp16"
)
VERIFIER = HubModel(
    "hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "1627032197142fbe2a7cfec626f4ced3ae60d07a"
)


_INSIDE = "'’·\u0f0b\u05f3\u05f4\u200c\u200d"
"""Characters inside words: apostrophes, dots of several scripts, joiners."""


_SIGNS = re.compile(
    r"(?<![^\s_])(?:[-\u2212+](?=\d)|(?:[<>]=?|[\u2264\u2265])(?=\s?\d))"  # -1, >= 30
    r"|(?<=[^\W_])(?:\++|#)(?![^\s_])"  # C++, 60+
    r"|(?<=\d)[%\u00b0]"
)
"""Signs without which names would mean something else, or the same: -1 and +1, C and C#, <30 and >30."""


def in_words(name: str) -> str:
    """`severely burnt` for `severely_burnt`. A name without letters and digits stays as it is."""
    signs = {place for sign in _SIGNS.finditer(name) for place in range(*sign.span())}
    spaced = "".join(char if place in signs or _is_in_word(char) else " " for place, char in enumerate(name))
    words = re.sub(rf"(?<!\S)[{_INSIDE}.]+|[{_INSIDE}.]+(?!\S)", "", _without_dots(spaced))
    return " ".join(words.split()) or name


def _is_in_word(char: str) -> bool:
    """In many scripts, vowel signs and accents are separate combining marks (category M), not letters."""
    return char.isalnum() or char in _INSIDE or char == "." or unicodedata.category(char).startswith("M")


def _without_dots(text: str) -> str:
    """Remove all dots but those between digits: `1.5`."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)


_VOWEL = re.compile(r"[aeiou]|(?:hon(?:est|ou?r)|hour|heir)")
_CONSONANT = re.compile(r"eu|ewe|one\b|uni(?!d|n|m)|us(?:e|u|a)|ut(?:e|i)|ur[aeio]|ukulele")
"""Words spelled with a vowel but pronounced with a consonant: a European, a unicorn; but an uninvited one."""


def with_article(words: str) -> str:
    """`an empty shelf`, `a unicorn`, `an éclair`."""
    plain = unicodedata.normalize("NFD", words).casefold()
    is_vowel = _VOWEL.match(plain) and not _CONSONANT.match(plain)
    return f"{'an' if is_vowel else 'a'} {words}"


def distinct_words(names: Iterable[str]) -> dict[str, str]:
    """Each name in words; those that would read alike (`v1_2` and `v1-2`) as they are written."""
    words = {name: in_words(name) for name in names}
    used = Counter(text.casefold() for text in words.values())
    return {name: text if used[text.casefold()] == 1 else name for name, text in words.items()}


def class_wording(class_name: str) -> str:
    return class_wordings([class_name])[class_name]


def class_wordings(class_names: Iterable[str]) -> dict[str, str]:
    """A wording for each class, unlike those of the others."""
    return {name: f"a photo of {with_article(text)}" for name, text in distinct_words(class_names).items()}
