"""Format numbers and lists for sentences: percentages, counts, file sizes, durations, the first of many."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(
    part: float, whole: float, places: int = 0, *, unit: str = "%", nothing: str = "–", down: bool = False
) -> str:
    """`54%`, or `54.5%` with one place.

    Only an exact zero is `0%` and only the whole is `100%`; otherwise `<1%` and `>99%`. `nothing` is
    returned if `whole` is 0. Round `down` what is compared with a limit: 79.9 % is not 80 %.
    """
    if not whole:
        return nothing
    share, scale = 100 * part / whole, 10**places
    if part in (0, whole):
        return f"{share:.0f}{unit}"
    shown = (math.floor(share * scale) if down else round(share * scale)) / scale
    if shown == 0 and part > 0:
        return f"<{1 / scale:.{places}f}{unit}"
    if shown >= 100 and part < whole:
        return f">{100 - 1 / scale:.{places}f}{unit}"
    return f"{shown:.{places}f}{unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def listed(texts: Sequence[str], most: int, between: str = ", ", last: str = " and ") -> str:
    """`a, b and 3 more`: the first `most`, and how many there are besides."""
    rest = len(texts) - most
    return between.join(texts[:most]) + (f"{last}{rest} more" if rest > 0 else "")


def are(number: int) -> str:
    """The verb after `counted`."""
    return "is" if number == 1 else "are"


def were(number: int) -> str:
    return "was" if number == 1 else "were"


def size(num_bytes: float) -> str:
    """`700 bytes`, `29 kB`, `7.0 MB`, `1.2 GB`."""
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= power:
            return f"{num_bytes / power:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB" if num_bytes >= 1e3 else counted(round(num_bytes), "byte")


def duration(seconds: float) -> str:
    """`0:27`, `12:05`, `1:57:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
