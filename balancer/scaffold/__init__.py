"""Write a commented first config for a dataset."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from balancer.cells import CLASS_PROPERTY
from balancer.config.defaults import distinct_words, in_words
from balancer.config.load import MAX_FILE_BYTES, validate_document
from balancer.config.schema import (
    INTERNAL_PREFIX,
    RESERVED_FACET_NAMES,
    SAMPLE_DATASET,
    Config,
    DatasetConfig,
    Name,
    VerificationConfig,
)
from balancer.config.yaml_reading import Document, read_document
from balancer.dataset.audit import Audit, RealImage, audit_path, find_dataset, list_columns
from balancer.dataset.decoding.watching import Watch, unwatched
from balancer.dataset.splits import is_kept_apart
from balancer.errors import DatasetError
from balancer.scaffold.text import ConfigDraft, DraftFacet, Holdout, format_config
from balancer.text.quantities import counted, size

HOLDOUT_FOLDERS = ("holdout", "val", "valid", "validation", "test", "testing")
"""Names of hold-out folders beside the dataset, the likeliest first."""

MAX_CELLS_PER_CLASS = 60
"""Three facets of four, three and five values. With more cells, most would stay empty."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NAME_RULE = "a name has at most 100 characters, no `/`, no control characters and no space at its ends"

_LIGHTING = {
    "bright": ("bright even light", "bright daylight"),
    "dim": ("dim light, a dark scene", "soft low light"),
    "side_lit": ("strong light from one side, long shadows", "dramatic side lighting"),
    "backlit": ("backlit, light from behind", "strong backlight, a bright rim"),
}


def starter_config(dataset: str) -> str:
    """A config for the dataset at this path, as YAML for `load_config`; see `draft_config`."""
    return draft_config(dataset, DatasetConfig())[0]


def draft_config(
    dataset: str,
    settings: DatasetConfig,
    look: Callable[[Config], str] = lambda config: "",
    watch: Watch = unwatched,
) -> tuple[str, tuple[str, ...]]:
    """A config for the dataset at this path, as YAML for `load_config`, and warnings about the dataset.
    `look` may say what a head sees in the labelled images of a config.

    Raises DatasetError if it is not a dataset, or has classes that no config can name.
    """
    audit = audit_path(dataset, settings, watch=watch)
    _check_names(dataset, audit)
    holdout = _find_holdout(dataset, audit, settings, watch)
    names = sorted({*audit.counts, *(holdout.audit.counts if holdout else ())})
    training = Counter(image.class_name for image in audit.images if not is_kept_apart(image))
    facets, left_out = _read_facets(audit)
    shown = facets or (DraftFacet("lighting", _LIGHTING, None, {}),)
    labelled = [*audit.images, *(holdout.audit.images if holdout else ())]
    draft = ConfigDraft(
        dataset=dataset,
        settings=settings.model_dump(mode="json", exclude_defaults=True, exclude={"path", "holdout"}),
        audit=audit,
        counts={name: audit.counts.get(name, 0) for name in names},
        training={name: training[name] for name in names},
        holdout=holdout,
        facets=shown,
        has_facets=bool(facets),
        left_out=left_out,
        unproven=_unproven(names, facets, labelled),
    )
    text, config = _formatted(draft)
    if seen := look(config):
        text, _ = _formatted(replace(draft, heads=seen))
    return text, audit.warnings


def _formatted(draft: ConfigDraft) -> tuple[str, Config]:
    text = format_config(draft)
    if len(text.encode()) > MAX_FILE_BYTES:
        limit, classes = size(MAX_FILE_BYTES), len(draft.counts)
        raise DatasetError(
            f"{draft.dataset}: {classes} classes need more than {limit}, the limit of a config"
        )
    document = read_document(text, lambda line: f"config for {draft.dataset}, line {line}")
    return text, validate_document(document or Document())  # never return a config that does not load


def _check_names(dataset: str, audit: Audit) -> None:
    try:
        dataset.encode()
    except UnicodeEncodeError:
        hint = "rename the folder"
        raise DatasetError(f"{os.fsencode(dataset)!r}: the path is not valid UTF-8", hint=hint) from None
    unusable = [name for name in audit.counts if not _is_name(name)]
    if unusable:
        named = ", ".join(repr(name) for name in unusable[:5])
        raise DatasetError(
            f"{dataset}: {counted(len(unusable), 'class folder')} cannot be named in a config: {named}",
            hint=f"rename them: {_NAME_RULE}",
        )


def _is_name(name: str) -> bool:
    """Whether a config accepts the name unchanged."""
    try:
        return _NAME.validate_python(name) == name
    except ValidationError:
        return False


# The hold-out


def _find_holdout(dataset: str, audit: Audit, settings: DatasetConfig, watch: Watch) -> Holdout | None:
    """A sibling folder with most of the dataset's classes; it may have other classes, too."""
    if dataset == SAMPLE_DATASET:
        at = str(find_dataset(dataset, "holdout"))
        return Holdout(SAMPLE_DATASET, audit_path(at, settings, audit.facet_names, watch))
    if audit.given is not None:  # the folders beside a table are its own
        return None
    for name in HOLDOUT_FOLDERS:
        path = os.path.normpath(os.path.join(dataset, os.pardir, name))
        folder = find_dataset(path)
        if not folder.is_dir() or folder.samefile(audit.path):
            continue
        try:
            sibling = audit_path(path, settings, audit.facet_names, watch)
        except DatasetError:
            continue
        common = sibling.counts.keys() & audit.counts.keys()
        if 2 * len(common) >= len(audit.counts) and all(map(_is_name, sibling.counts)):
            return Holdout(path, sibling)
    return None


# Facets


def _read_facets(audit: Audit) -> tuple[tuple[DraftFacet, ...], tuple[str, ...]]:
    """The facets in the metadata table, and "column: reason" for the columns that are none."""
    facets: list[DraftFacet] = []
    left_out = []
    for column in audit.facet_names:
        facet = _read_facet(audit, column)
        reason = _why_unusable(audit, facet, facets)
        if reason:
            left_out.append(f"{column}: {reason}")
        else:
            facets.append(facet)
    if audit.passed_over:
        left_out.append(f"{list_columns(audit.passed_over)}: values that hardly repeat")
    return tuple(facets), tuple(left_out)


def _read_facet(audit: Audit, column: str) -> DraftFacet:
    images = [image for image in audit.images if column in image.facets]
    counts = Counter(image.facets[column] for image in images)
    having = {image.class_name for image in images}
    everywhere = all(name in having for name, count in audit.counts.items() if count)
    return DraftFacet(
        name=column,
        prompts={
            value: (_facet_wording(words, column),) for value, words in distinct_words(sorted(counts)).items()
        },
        classes=None if everywhere else tuple(name for name in audit.counts if name in having),
        counts=counts,
    )


def _facet_wording(words: str, facet: str) -> str:
    """`rainy weather` for value `rainy` of `weather`, and `dim lighting` for `dim_lighting` of `lighting`."""
    noun = in_words(facet)
    return words if any(word in words for word in noun.split()) else f"{words} {noun}"


def _why_unusable(audit: Audit, facet: DraftFacet, others: Sequence[DraftFacet]) -> str:
    """Why the facet cannot go into the config with the others; empty if it can."""
    if not _is_name(facet.name) or not all(map(_is_name, facet.prompts)):
        return f"it or one of its values cannot be named in a config; {_NAME_RULE}"
    if facet.name.startswith(INTERNAL_PREFIX):
        return f"names that begin with {INTERNAL_PREFIX} are reserved; rename it if it is a facet"
    if facet.name.lower() in RESERVED_FACET_NAMES:
        return "the manifest has a column of this name; rename it if it is a facet"
    if any(facet.name.lower() == other.name.lower() for other in others):
        return "another column differs from it only in case"
    if len(facet.prompts) < 2:
        return "it has a single value"
    if _follows_from_class(audit, facet.name):
        return "each class has only one value of it"
    cells = math.prod(len(each.prompts) for each in (*others, facet))
    if cells > MAX_CELLS_PER_CLASS:
        return f"with it a class would have {cells} cells; use it instead of another facet"
    return ""


def _follows_from_class(audit: Audit, column: str) -> bool:
    pairs = {(image.class_name, image.facets[column]) for image in audit.images if column in image.facets}
    return len(pairs) == len({class_name for class_name, _ in pairs}) and len(audit.counts) > 1


# What labelled images can prove


def _unproven(
    classes: Iterable[str], facets: Iterable[DraftFacet], labelled: Sequence[RealImage]
) -> tuple[str, ...]:
    """Entries of `verification.unjudged` that the pre-flight would ask for, for lack of labelled images.

    Classes are always judged, so each one is listed.
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
    """Values with too few images, or without images of any other value."""
    least = VerificationConfig().min_examples
    return [value for value in values if counts[value] < least or counts[value] == counts.total()]
