"""A first config for a dataset never seen before, with comments for whoever goes on with it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter, ValidationError

from balancer.cells import CLASS_PROPERTY
from balancer.config.defaults import in_words
from balancer.config.load import MAX_FILE_BYTES, validate_document
from balancer.config.schema import (
    INTERNAL_PREFIX,
    RESERVED_FACET_NAMES,
    SAMPLE_DATASET,
    Name,
    VerificationConfig,
)
from balancer.config.yaml_reading import Document, read_document
from balancer.dataset.audit import Audit, RealImage, audit, find_dataset, list_columns
from balancer.dataset.splits import is_kept_apart
from balancer.errors import DatasetError
from balancer.scaffold.text import Facet, Findings, Holdout, text_of

HOLDOUT_FOLDERS = ("holdout", "val", "valid", "validation", "test", "testing")
"""Beside the dataset, the likeliest first."""

MAX_CELLS_PER_CLASS = 60
"""Three facets of four, three and five values. Of more cells, few would get an image each."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NAME_RULE = "a name has at most 100 characters, no `/`, no control characters and no space at its ends"

_LIGHTING = {
    "bright": ("bright even light", "bright daylight"),
    "dim": ("dim light, a dark scene", "soft low light"),
    "side_lit": ("strong light from one side, long shadows", "dramatic side lighting"),
    "backlit": ("backlit, light from behind", "strong backlight, a bright rim"),
}


def starter_config(dataset: str) -> str:
    """A config for the dataset at this path, as YAML text that `load_config` takes.

    Raises DatasetError if it is no dataset, or has classes that no config can name.
    """
    found = audit(find_dataset(dataset))
    _check_names(dataset, found)
    holdout = _find_holdout(dataset, found)
    names = sorted({*found.counts, *_classes_of(holdout)})
    training = Counter(image.class_name for image in found.images if not is_kept_apart(image))
    facets, left_out = _facets_of_table(found)
    shown = facets or (Facet("lighting", _LIGHTING, None, {}),)
    labelled = [*found.images, *(holdout.audit.images if holdout else ())]
    text = text_of(
        Findings(
            dataset=dataset,
            audit=found,
            counts={name: found.counts.get(name, 0) for name in names},
            training={name: training[name] for name in names},
            holdout=holdout,
            facets=shown,
            facets_found=bool(facets),
            left_out=left_out,
            unproven=_unproven(names, facets, labelled),
        )
    )
    if len(text.encode()) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES / 1e6:g} MB a config may have"
        raise DatasetError(f"{dataset}: {len(names)} classes need more than the {limit}")
    document = read_document(text, lambda line: f"config for {dataset}, line {line}")
    validate_document(document or Document())  # so that nobody gets a config that does not load
    return text


def _check_names(dataset: str, found: Audit) -> None:
    try:
        dataset.encode()
    except UnicodeEncodeError:
        hint = "rename the folder"
        raise DatasetError(f"{os.fsencode(dataset)!r}: the path is not valid UTF-8", hint=hint) from None
    unusable = [name for name in found.counts if not _is_name(name)]
    if unusable:
        named = ", ".join(repr(name) for name in unusable[:5])
        raise DatasetError(
            f"{dataset}: {len(unusable)} class folders cannot be named in a config: {named}",
            hint=f"rename them: {_NAME_RULE}",
        )


def _is_name(name: str) -> bool:
    """Whether a config takes it as it is, without cutting anything off."""
    try:
        return _NAME.validate_python(name) == name
    except ValidationError:
        return False


# The hold-out


def _find_holdout(dataset: str, found: Audit) -> Holdout | None:
    """A sibling folder that has most of the dataset's classes; it may have others besides."""
    if dataset == SAMPLE_DATASET:
        return Holdout(SAMPLE_DATASET, audit(find_dataset(dataset, "holdout"), facets=found.facet_names))
    for name in HOLDOUT_FOLDERS:
        path = os.path.normpath(os.path.join(dataset, os.pardir, name))
        folder = find_dataset(path)
        if not folder.is_dir() or folder.samefile(found.path):
            continue
        try:
            sibling = audit(folder, facets=found.facet_names)
        except DatasetError:
            continue
        common = sibling.counts.keys() & found.counts.keys()
        if 2 * len(common) >= len(found.counts) and all(map(_is_name, sibling.counts)):
            return Holdout(path, sibling)
    return None


def _classes_of(holdout: Holdout | None) -> Iterable[str]:
    return holdout.audit.counts if holdout else ()


# Facets


def _facets_of_table(found: Audit) -> tuple[tuple[Facet, ...], tuple[str, ...]]:
    """The columns of the metadata table that make facets, and of the others name and reason."""
    facets: list[Facet] = []
    left_out = []
    for column in found.facet_names:
        facet = _facet_of_column(found, column)
        reason = _why_unusable(found, facet, facets)
        if reason:
            left_out.append(f"{column}: {reason}")
        else:
            facets.append(facet)
    if found.passed_over:
        left_out.append(f"{list_columns(found.passed_over)}: values that hardly repeat")
    return tuple(facets), tuple(left_out)


def _facet_of_column(found: Audit, column: str) -> Facet:
    images = [image for image in found.images if column in image.facets]
    counts = Counter(image.facets[column] for image in images)
    having = {image.class_name for image in images}
    everywhere = all(name in having for name, count in found.counts.items() if count)
    return Facet(
        name=column,
        prompts={value: (_facet_wording(value, column),) for value in sorted(counts)},
        classes=None if everywhere else tuple(name for name in found.counts if name in having),
        counts=counts,
    )


def _facet_wording(value: str, facet: str) -> str:
    """`rainy weather` for value `rainy` of `weather`, and `dim lighting` for `dim_lighting` of `lighting`."""
    words, noun = in_words(value), in_words(facet)
    return words if any(word in words for word in noun.split()) else f"{words} {noun}"


def _why_unusable(found: Audit, facet: Facet, others: Sequence[Facet]) -> str:
    """Empty if the facet can go into the config beside the others."""
    if not _is_name(facet.name) or not all(map(_is_name, facet.prompts)):
        return f"it or one of its values cannot be named in a config; {_NAME_RULE}"
    if facet.name.startswith(INTERNAL_PREFIX):
        return f"names that begin with {INTERNAL_PREFIX} are the manifest's own; rename it if it is a facet"
    if facet.name.lower() in RESERVED_FACET_NAMES:
        return "the manifest has a column of this name; rename it if it is a facet"
    if any(facet.name.lower() == other.name.lower() for other in others):
        return "another column differs from it in case only"
    if len(facet.prompts) < 2:
        return "it has a single value"
    if _follows_from_class(found, facet.name):
        return "each class has one value of it only"
    cells = math.prod(len(each.prompts) for each in (*others, facet))
    if cells > MAX_CELLS_PER_CLASS:
        return f"with it a class would have {cells} cells; put it in the place of another facet"
    return ""


def _follows_from_class(found: Audit, column: str) -> bool:
    pairs = {(image.class_name, image.facets[column]) for image in found.images if column in image.facets}
    return len(pairs) == len({class_name for class_name, _ in pairs}) and len(found.counts) > 1


# What labelled images can prove


def _unproven(
    classes: Iterable[str], facets: Iterable[Facet], labelled: Sequence[RealImage]
) -> tuple[str, ...]:
    """What the pre-flight would stop at for want of labelled images, as `verification.unjudged` names it.

    A class is always judged, so its values are named one by one.
    """
    names = _lacking(classes, Counter(image.class_name for image in labelled))
    unproven = [f"{CLASS_PROPERTY}={name}" for name in names]
    for facet in facets:
        values = [image.facets.get(facet.name) for image in labelled if facet.applies_to(image.class_name)]
        lacking = _lacking(facet.prompts, Counter(value for value in values if value in facet.prompts))
        if len(lacking) == len(facet.prompts):
            unproven.append(facet.name)
        else:
            unproven += [f"{facet.name}={value}" for value in lacking]
    return tuple(unproven)


def _lacking(values: Iterable[str], counts: Counter[str | None] | Counter[str]) -> list[str]:
    """Values with too few images, or with no image of another value to tell them from."""
    least = VerificationConfig().min_examples
    return [value for value in values if counts[value] < least or counts[value] == counts.total()]
