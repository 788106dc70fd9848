"""The words the embedded models know: wordings of every property, and how captions are made."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from balancer.verification.negatives import NEGATIVES

CLASS_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "basic": (
        "a basic pizza",
        "a plain cheese pizza",
        "a simple margherita pizza",
        "a classic pizza with basil leaves",
    ),
    "burnt": (
        "a burnt pizza",
        "an overcooked pizza",
        "a pizza left too long in the oven",
    ),
    "combined": (
        "a pizza with combined toppings",
        "a pizza with many toppings",
        "a loaded supreme pizza",
        "a pizza with pepperoni peppers olives and mushrooms",
    ),
    "mixed": (
        "a pizza half burnt and half fresh",
        "a mixed pizza with one dark half",
        "a half and half pizza",
    ),
    "progression": (
        "a cooking progression of three pizzas",
        "three pizzas from raw to dark",
        "three stages of baking side by side",
    ),
    "segment": (
        "a segment of pizza",
        "a single slice of pizza",
        "one triangular pizza slice",
    ),
}

LIGHTING_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "overhead_harsh": (
        "harsh overhead lighting",
        "hard light from above",
        "bright noon light straight down",
    ),
    "side_dramatic": (
        "dramatic side lighting",
        "strong light from one side",
        "deep shadows and light from the side",
    ),
    "dim_ambient": (
        "dim ambient lighting",
        "a dimly lit room",
        "soft low light",
    ),
    "backlit_rim": (
        "backlit with rim lighting",
        "a glowing rim and light from behind",
        "strong backlight",
    ),
}

BURN_LEVEL_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "slightly_burnt": (
        "slightly burnt",
        "slightly charred",
        "a few dark spots on the crust",
    ),
    "moderately_burnt": (
        "moderately burnt",
        "moderately charred",
        "black patches here and there",
    ),
    "severely_burnt": (
        "severely burnt",
        "severely charred",
        "charred nearly black all over",
    ),
}

# True of the picture: the renderer's table is the one named.
TABLE_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "wood": ("on a wooden table", "on wooden planks"),
    "slate": ("on a slate board", "on dark stone"),
    "marble": ("on a marble counter", "on white marble"),
}

# True of any picture: they only move the text embedding, as such words do in larger models.
STYLE_WORDINGS: tuple[str, ...] = (
    "close up",
    "food photography",
    "homemade",
    "rustic",
    "seen from the top",
)

OPENINGS: tuple[str, ...] = ("", "a photo of", "a picture of", "a photograph of")

PAD, BEGIN, UNKNOWN, END = "<pad>", "<bos>", "<unk>", "<eos>"
# The end must not be number 2: for a CLIP text model that is a mark of old configs, whose pooled
# embedding is taken at the largest token id instead of at the end.
SPECIAL_TOKENS = (PAD, BEGIN, UNKNOWN, END)
MAX_TOKENS = 40

MISSING_PHRASES = 0.07


def vocabulary() -> tuple[str, ...]:
    """Special tokens first, then every word in use, in alphabetical order."""
    return (*SPECIAL_TOKENS, *sorted({word for phrase in phrases() for word in words(phrase)}))


def verifier_vocabulary() -> tuple[str, ...]:
    """The generator's vocabulary, then the other words of the negatives, which only the verifier knows."""
    known = vocabulary()
    return (*known, *sorted({word for phrase in NEGATIVES for word in words(phrase)} - set(known)))


def phrases() -> list[str]:
    by_value = (CLASS_WORDINGS, LIGHTING_WORDINGS, BURN_LEVEL_WORDINGS, TABLE_WORDINGS)
    phrases = [phrase for wordings in by_value for values in wordings.values() for phrase in values]
    return [*phrases, *STYLE_WORDINGS, *OPENINGS]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def property_wordings(class_name: str, lighting: str, burn_level: str | None) -> list[Sequence[str]]:
    """The wordings of each property that a picture has; its class comes first."""
    wordings: list[Sequence[str]] = [CLASS_WORDINGS[class_name], LIGHTING_WORDINGS[lighting]]
    if burn_level is not None:
        wordings.append(BURN_LEVEL_WORDINGS[burn_level])
    return wordings


def random_caption(
    class_name: str, lighting: str, burn_level: str | None, table: str, rng: random.Random
) -> str:
    """True phrases about one picture, in any order, not always all of them."""
    chosen = [rng.choice(w) for w in property_wordings(class_name, lighting, burn_level)]
    chosen[0] = f"{rng.choice(OPENINGS)} {chosen[0]}".strip()
    # Any phrase may be missing, since negative prompts name one property only.
    chosen = [phrase for phrase in chosen if rng.random() >= MISSING_PHRASES]
    if rng.random() < 0.5:
        chosen.append(rng.choice(TABLE_WORDINGS[table]))
    if rng.random() < 0.3:
        chosen.append(rng.choice(STYLE_WORDINGS))
    if rng.random() < 0.05:
        # A word that no caption uses makes the model robust to other people's prompts.
        chosen.append(UNKNOWN)
    rng.shuffle(chosen)
    return ", ".join(chosen)
