"""Where the parts of a run folder stand, as paths relative to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from balancer.cells import Candidate
from balancer.storage import slug, slug_of_before

RUN_FILE = "run.json"
RUN_LOG = "run.log"
IMAGES_DIR = "images"
LOG_DIR = "manifest/log"
HEAD_FILE = "manifest/head.json"
CURRENT_FILE = "manifest/current.parquet"
DATA_DIR = "manifest/data"
INDEX_FILE = f"{DATA_DIR}/_index.json"
DAMAGED_DIR = "manifest/damaged"
REJECTED_DIR = "rejected"
TYPICALITY_DIR = "typicality"
HEADS_DIR = "heads"
REVISIONS_DIR = "revisions"
PENDING_DIR = "review/pending"

DOES_NOT_APPLY = "-"
"""Folder name for a facet that does not apply to the class; no value is ever slugged to it."""

MAX_SEQ = 10**12
"""Fragments that a log may have, and epochs; at ten commits a second it takes 3,000 years."""

_LEARNED = re.compile(rf"({TYPICALITY_DIR}|{HEADS_DIR})/[0-9a-f]{{64}}\.safetensors")
_REVISION = re.compile(rf"{REVISIONS_DIR}/([0-9a-f]{{64}})\.json")
_FRAGMENT = re.compile(rf"{LOG_DIR}/([0-9]{{20}})\.arrow")


def typicality_path(sha256: str) -> str:
    """What candidates are compared with, under the hash of its content."""
    return f"{TYPICALITY_DIR}/{sha256}.safetensors"


def head_path(sha256: str) -> str:
    """What judges a property besides the words, under the hash of its content."""
    return f"{HEADS_DIR}/{sha256}.safetensors"


def is_learned(path: str) -> bool:
    """Whether it is one of the files that are written before run.json, which names them."""
    return _LEARNED.fullmatch(path) is not None


def revision_path(sha256: str) -> str:
    """The run as a later plan revision has it, under the hash of its content."""
    return f"{REVISIONS_DIR}/{sha256}.json"


def revision_sha256(path: str) -> str | None:
    match = _REVISION.fullmatch(path)
    return match[1] if match else None


def fragment_path(seq: int) -> str:
    """Fragments count from 1."""
    return f"{LOG_DIR}/{seq:020d}.arrow"


def fragment_seq(path: str) -> int | None:
    """The number of a committed fragment; None if `path` is something else, such as a temporary file."""
    match = _FRAGMENT.fullmatch(path)
    return seq if match and (seq := int(match[1])) <= MAX_SEQ else None


def image_stem(candidate: Candidate, facet_names: Sequence[str]) -> str:
    """`images/<class>/<value of each facet, or ->/0003-1`: the writer adds hash and suffix."""
    cell = candidate.slot.cell
    values = [cell.value(name) for name in facet_names]
    folders = [DOES_NOT_APPLY if value is None else slug(value) for value in values]
    name = f"{candidate.slot.index:04d}-{candidate.attempt}"
    return "/".join((IMAGES_DIR, slug(cell.class_name), *folders, name))


def rejected_path(candidate_id: str, reason: str) -> str:
    """Where the image of a rejected candidate stands, if it is one of the few that are kept."""
    return _rejected_path(candidate_id, reason, slug)


def rejected_paths(candidate_id: str, reason: str) -> tuple[str, str]:
    """As `rejected_path`, now and as an earlier version of this program wrote it."""
    return rejected_path(candidate_id, reason), _rejected_path(candidate_id, reason, slug_of_before)


def path_in_reason(path: str) -> str:
    """Of the image of a rejected candidate: its path without the reason, which may be another one by now."""
    return path.split("/", 2)[-1]


def _rejected_path(candidate_id: str, reason: str, name: Callable[[str], str]) -> str:
    return "/".join((REJECTED_DIR, name(reason), *map(name, candidate_id.split("/")))) + ".png"
