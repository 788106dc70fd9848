"""File and folder names in an export: safe on every file system, and unique even where case is ignored."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

from balancer.errors import ManifestError
from balancer.storage import slug

STEM_LENGTH = 80

_PLAIN = re.compile(r"[^\W_][\w .()+&,-]{0,99}")
_HASHED = re.compile(r".*-[0-9a-f]{16}")
"""A name that looks like a slug gets a slug of its own, or it could equal the slug of another name."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(png|jpe?g|jpe|jfif|webp)")
_KNOWN_AS = {".jpe": ".jpg", ".jfif": ".jpg"}
"""Suffixes that readers of image folders silently skip."""


def folder_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A folder name for each name: the name itself if every file system allows it, else its slug.

    `taken` are folder names in use for something else.
    """
    wanted = list(dict.fromkeys(names))
    alike = Counter(name.casefold() for name in (*wanted, *taken))
    return {name: name if _is_plain(name) and alike[name.casefold()] == 1 else _slug(name) for name in wanted}


def image_name(row_id: str, file_name: str) -> str:
    """`basic-dim_ambient-0003-1-4f2a90c1b7de.png`: readable, and unique through the hash of the id.

    ManifestError if it is not a PNG, JPEG or WebP.
    """
    suffix = _SUFFIX.search(file_name.lower(), pos=max(file_name.rfind("."), 0))
    if suffix is None or not file_name.lower().endswith(suffix[0]):
        raise ManifestError(
            f"row {row_id!r} names {file_name}, whose suffix is not that of a PNG, JPEG or WebP file"
        )
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", row_id).strip("-_")[:STEM_LENGTH] or "image"
    digest = hashlib.blake2b(row_id.encode(), digest_size=6).hexdigest()
    return f"{plain}-{digest}{_KNOWN_AS.get(suffix[0], suffix[0])}"


def _is_plain(name: str) -> bool:
    fits = (
        _PLAIN.fullmatch(name) is not None and not _RESERVED.fullmatch(name) and not _HASHED.fullmatch(name)
    )
    return fits and not name.endswith((" ", ".")) and len(name.encode()) <= 200


def _slug(name: str) -> str:
    """Always with a hash, because the plain name is taken."""
    slugged = slug(name)
    if slugged != name:
        return slugged
    return f"{name}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
