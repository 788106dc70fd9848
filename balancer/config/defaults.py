"""What a config starts from where its author has not chosen: models that suit photographs, plain wordings."""

from __future__ import annotations

import re
import unicodedata
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
"""Marks that stand within words: apostrophes, dots of several scripts, joiners."""


def in_words(name: str) -> str:
    """`severely_burnt` as it would be said; a name without any letter or digit stays as it is."""
    spaced = "".join(mark if _is_in_word(mark) else " " for mark in name)
    words = re.sub(rf"(?<!\S)[{_INSIDE}.]+|[{_INSIDE}.]+(?!\S)", "", _without_dots(spaced))
    return " ".join(words.split()) or name


def _is_in_word(mark: str) -> bool:
    """Vowel signs and accents are marks of their own, and no letters, in many scripts."""
    return mark.isalnum() or mark in _INSIDE or mark == "." or unicodedata.category(mark).startswith("M")


def _without_dots(text: str) -> str:
    """Only dots between digits stay: `1.5`."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)


_VOWEL = re.compile(r"[aeiou]|(?:hon(?:est|ou?r)|hour|heir)")
_CONSONANT = re.compile(r"eu|ewe|one\b|uni(?!d|n|m)|us(?:e|u|a)|ut(?:e|i)|ur[aeio]|ukulele")
"""Spelled with a vowel and said with a consonant: a European, a unicorn, but an uninvited one."""


def with_article(words: str) -> str:
    """`an empty shelf`, `a unicorn`, `an éclair`."""
    plain = unicodedata.normalize("NFD", words).casefold()
    is_vowel = _VOWEL.match(plain) and not _CONSONANT.match(plain)
    return f"{'an' if is_vowel else 'a'} {words}"


def class_wording(class_name: str) -> str:
    return f"a photo of {with_article(in_words(class_name))}"
