"""The config layout of an earlier tool, one JSON object `dataset_balancing_config`, read as a config of ours.

Every value keeps the place it came from, so that a problem is reported where its author wrote it. What the
layout has and ours has not is listed with its reason and never refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from balancer.config import defaults as suggested
from balancer.config.defaults import class_wording, in_words
from balancer.config.legacy.conversion import Conversion, within_block
from balancer.config.legacy.fields import (
    AXES,
    BLOCK,
    CURRENT,
    FALLBACK_WORDINGS,
    IMAGE_SIZE,
    PROMPTS,
    SECTIONS,
    SETTINGS,
    SHARE,
    TARGET,
    TARGETS,
    TO_GENERATE,
    WORDINGS,
    Axis,
)
from balancer.config.schema import EMBEDDED_MODEL
from balancer.config.yaml_reading import Document, Path, Problem

__all__ = ["BLOCK", "Converted", "convert", "is_earlier_layout"]


@dataclass(frozen=True, slots=True)
class Converted:
    """`document` is in our layout, with the places of the earlier file; what it lacks is in its problems.

    `unused` are fields of the earlier file that have no effect, `assumed` what was chosen in place of
    something that the file does not say, each by its path in our layout.
    """

    document: Document
    unused: tuple[Problem, ...]
    assumed: tuple[Problem, ...]


def is_earlier_layout(document: Document) -> bool:
    return isinstance(document.value, dict) and BLOCK in document.value


def convert(source: Document) -> Converted:
    """Raises ConfigError only if the block is no mapping at all."""
    conversion = Conversion(source)
    _convert_settings(conversion)
    _convert_image_size(conversion)
    names = _convert_classes(conversion)
    for axis in AXES:
        _convert_axis(conversion, axis, names)
    _convert_models(conversion)
    _convert_class_fill(conversion)
    _require_dataset(conversion)
    return Converted(conversion.document, conversion.unused(), tuple(conversion.assumed))


def _convert_settings(conversion: Conversion) -> None:
    for ours, spellings in SETTINGS.items():
        found = _find(conversion, spellings)
        if found:
            change = _CHANGES.get(ours)
            conversion.take(ours, found[0], change and change(conversion.value(found[0])))
            _pass_over(conversion, found)


def _find(conversion: Conversion, spellings: Iterable[str]) -> list[Path]:
    """Where a setting is given, by any of its names."""
    paths = [(*section, key) for key in spellings for section in SECTIONS]
    return [path for path in paths if not isinstance(conversion.value(path), dict | None)]


def _pass_over(conversion: Conversion, found: Sequence[Path]) -> None:
    """All but the first of several fields that mean the same; silently where they say the same."""
    first, *others = found
    for other in others:
        if conversion.value(other) == conversion.value(first):
            conversion.use(other)
        else:
            conversion.reasons[other] = f"{'.'.join(map(str, within_block(first)))} is used instead"


def _convert_image_size(conversion: Conversion) -> None:
    paths = [(*section, key) for key in IMAGE_SIZE for section in SECTIONS]
    sizes = [path for path in paths if conversion.value(path) is not None]
    sides: tuple[Path, Path] = (("generation", "width"), ("generation", "height"))
    if not sizes:
        return
    if any(conversion.has(side) for side in sides):
        conversion.reasons.update(dict.fromkeys(sizes, "width and height are given besides"))
        return
    for side, pixels in zip(sides, _two_sides(conversion.value(sizes[0])), strict=True):
        conversion.take(side, sizes[0], pixels)
    _pass_over(conversion, sizes)


def _two_sides(size: object) -> tuple[object, object]:
    """Width and height of `512`, `"512x768"`, `[512, 768]` or `{"width": 512, "height": 768}`."""
    if isinstance(size, dict):
        return size.get("width", size), size.get("height", size)
    parts: list[object] = size if isinstance(size, list) else [size]
    if isinstance(size, str):
        parts = [int(part) if part.strip().isdecimal() else part for part in size.lower().split("x")]
    return (parts[0], parts[-1]) if len(parts) in (1, 2) else (size, size)


def _convert_classes(conversion: Conversion) -> tuple[str, ...]:
    targets = conversion.mapping(TARGETS)
    prompts = conversion.mapping(PROMPTS)
    names = tuple(targets or prompts)
    section = TARGETS if targets else PROMPTS
    for name in names:
        _convert_class(conversion, name, at=(*section, name))
    if targets:
        _convert_targets(conversion, names)
        for name in prompts.keys() - targets.keys():
            conversion.reasons[*PROMPTS, name] = "the class has no entry in target_distribution"
    return names


def _convert_targets(conversion: Conversion, names: Sequence[str]) -> None:
    """All classes have one target here; where they differ there, that is a problem of `target.per_class`."""
    ours: Path = ("target", "per_class")
    wanted = {name: _target(conversion, name) for name in names}
    if conversion.has(ours):
        for theirs, _ in wanted.values():
            conversion.reasons[theirs] = "the target of all classes together is used instead"
        return
    first, (at, number) = next(iter(wanted.items()))
    conversion.put(ours, number, at)
    for name, (theirs, value) in wanted.items():
        conversion.use(theirs)
        if value != number:
            text = f"{name} is to have {value}, {first} {number}, but all classes have one target here"
            conversion.problem(ours, f"{text}; choose it with --set target.per_class=N", at=theirs)
            return


def _target(conversion: Conversion, name: str) -> tuple[Path, object]:
    """Images a class is to have, and the field that says so."""
    theirs = (*TARGETS, name)
    entry = conversion.value(theirs)
    if not isinstance(entry, dict):
        return theirs, entry
    key = next((key for key in TARGET if key in entry), None)
    if key is not None:
        return (*theirs, key), entry[key]
    parts = [next((key for key in keys if key in entry), "") for keys in (CURRENT, TO_GENERATE)]
    numbers = [entry.get(key) for key in parts]
    if all(isinstance(number, int) for number in numbers):
        return (*theirs, parts[1]), sum(cast("list[int]", numbers))
    return theirs, None


def _convert_class(conversion: Conversion, name: str, at: Path) -> None:
    ours: Path = ("classes", name)
    theirs = (*PROMPTS, name)
    given = conversion.value(theirs)
    entry = given if isinstance(given, dict) else {}
    if isinstance(given, str | list):
        _take_phrases(conversion, (*ours, "prompts"), [theirs])
    else:
        _take_phrases(conversion, (*ours, "prompts"), [(*theirs, key) for key in WORDINGS if key in entry])
    _take_phrases(conversion, (*ours, "variations"), [(*theirs, "variations")])
    _take_phrases(conversion, (*ours, "fallback_prompts"), [(*theirs, key) for key in FALLBACK_WORDINGS])
    for key in ("negative_prompts", "negative_prompt"):
        if entry.get(key) is not None and not conversion.has((*ours, "negative_prompt")):
            conversion.take((*ours, "negative_prompt"), (*theirs, key), _joined(entry[key]))
    if not _has_phrases(conversion, (*ours, "prompts")):
        why = "the file has no prompts for this class; say what it looks like"
        conversion.assume((*ours, "prompts"), [class_wording(name)], at, why)


def _take_phrases(conversion: Conversion, ours: Path, sources: Iterable[Path]) -> None:
    """Join the phrases of several fields, each once; text alone counts as a list of one."""
    joined: list[object] = []
    for theirs in sources:
        given = conversion.value(theirs)
        if not isinstance(given, str | list):
            continue
        conversion.use(theirs)
        for index, phrase in enumerate(given if isinstance(given, list) else [given]):
            if phrase not in joined:
                place = (*theirs, index) if isinstance(given, list) else theirs
                conversion.document.places[*ours, len(joined)] = conversion.place(place)
                joined.append(phrase)
        conversion.put(ours, joined, at=theirs)


def _has_phrases(conversion: Conversion, ours: Path) -> bool:
    return (*ours, 0) in conversion.document.places


def _convert_axis(conversion: Conversion, axis: Axis, names: Sequence[str]) -> None:
    theirs: Path = (BLOCK, axis.section)
    if conversion.value(theirs) is None:
        return
    classes = [name for name in names if _applies(conversion, axis, name)]
    if not classes:
        conversion.reasons[theirs] = f"no class is called {axis.only_class}"
        return
    shares = _shares(conversion, theirs)
    if shares is None:
        return
    ours: Path = ("facets", axis.facet)
    conversion.put((*ours, "classes"), "all" if axis.only_class is None else classes, theirs)
    conversion.put((*ours, "values"), {}, theirs)
    for value, (at, share) in shares.items():
        if share is not None:
            conversion.take((*ours, "values", value, "share"), at, share)
        _convert_wordings(conversion, axis, value, names, at)


def _applies(conversion: Conversion, axis: Axis, class_name: str) -> bool:
    if axis.only_class in (None, class_name):
        return True
    return any(conversion.value((*PROMPTS, class_name, key)) is not None for key in axis.wordings)


def _shares(conversion: Conversion, theirs: Path) -> dict[str, tuple[Path, object]] | None:
    """Where each value of a facet is given, and its share: a part of 1, or None for even shares.

    None, and a problem, if what is there has no values.
    """
    given = conversion.value(theirs)
    if isinstance(given, list) and all(isinstance(value, str) for value in given):
        conversion.use(theirs)
        return {value: ((*theirs, index), None) for index, value in enumerate(given)}
    entries = conversion.mapping(theirs)
    if not isinstance(given, dict):
        return None
    conversion.look_into(theirs)
    shares: dict[str, tuple[Path, object]] = {}
    for value, entry in entries.items():
        at = (*theirs, value)
        if isinstance(entry, dict):
            conversion.look_into(at)
            key = next((key for key in SHARE if key in entry), None)
            at, entry = ((*at, key), entry[key]) if key else (at, None)
        if entry == 0:
            conversion.reasons[at] = "with a share of 0, no image has this value"
        else:
            shares[value] = (at, entry)
    in_percent = any(isinstance(share, int | float) and share > 1 for _, share in shares.values())
    return {value: (at, _hundredth(share) if in_percent else share) for value, (at, share) in shares.items()}


def _convert_wordings(conversion: Conversion, axis: Axis, value: str, names: Sequence[str], at: Path) -> None:
    """A value has the same prompts in all classes here; there, each class may have its own."""
    ours: Path = ("facets", axis.facet, "values", value, "prompts")
    sources: list[Path] = [(BLOCK, axis.section, value, key) for key in (*WORDINGS, "description")]
    sources += [(BLOCK, key, value) for key in axis.wordings]
    of_classes: list[Path] = [(*PROMPTS, name, key, value) for name in names for key in axis.wordings]
    in_classes = [path for path in of_classes if conversion.value(path) is not None]
    _take_phrases(conversion, ours, [*sources, *in_classes])
    if not _has_phrases(conversion, ours):
        words = in_words(value)
        words += "" if words.endswith(axis.suffix) else axis.suffix
        conversion.assume(ours, [words], at, "the file has no prompts for this value; say what it looks like")
    elif len(in_classes) > 1:
        why = f"joined from {len(in_classes)} classes: here a value has the same prompts in every class"
        conversion.assumed.append(Problem(ours, conversion.place(in_classes[0]), why))


def _convert_models(conversion: Conversion) -> None:
    """Models pinned to commits, where the file leaves that open."""
    at: Path = (BLOCK,)
    generator, verifier = suggested.GENERATOR, suggested.VERIFIER
    if not conversion.has(("generation", "model")):
        why = "the file names no model by its id; this one makes photographs"
        conversion.assume(("generation", "model"), generator.model, at, why)
    model = cast("dict[str, dict[str, object]]", conversion.document.value)["generation"]["model"]
    if model == generator.model and not conversion.has(("generation", "revision")):
        conversion.assume(("generation", "revision"), generator.revision, at, "the commit known to work")
        if not conversion.has(("generation", "variant")):
            conversion.put(("generation", "variant"), generator.variant, at)
    why = "the earlier tool judged by rules for brightness and colour; here a model gives probabilities"
    if model == EMBEDDED_MODEL:
        conversion.assume(("verification", "model"), EMBEDDED_MODEL, at, why)
    else:
        conversion.assume(("verification", "model"), verifier.model, at, why)
        conversion.put(("verification", "revision"), verifier.revision, at)


def _convert_class_fill(conversion: Conversion) -> None:
    """The least number of images of a class, as a part of the target."""
    found = _find(conversion, ("min_images_per_class",))
    target = (
        cast("dict[str, dict[str, object]]", conversion.document.value).get("target", {}).get("per_class")
    )
    in_doubt = any(problem.path == ("target", "per_class") for problem in conversion.document.problems)
    least = conversion.value(found[0]) if found else None
    if isinstance(least, int) and isinstance(target, int) and target > 0 and not in_doubt:
        conversion.take(("criteria", "class_fill"), found[0], min(1.0, round(least / target, 4)))


def _require_dataset(conversion: Conversion) -> None:
    if not conversion.has(("dataset", "path")):
        text = "missing: the file does not say where the images are; give --set dataset.path=FOLDER"
        conversion.problem(("dataset", "path"), text, at=(BLOCK,))


def _joined(given: object) -> object:
    """Several texts as one; what is no list of texts stays as it is, for the config to refuse."""
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return ", ".join(given)
    return given


def _part(number: object) -> object:
    """A part of 1, also where it is given in percent."""
    return _hundredth(number) if isinstance(number, int | float) and number > 1 else number


def _hundredth(number: object) -> object:
    """What is no number, true and NaN included, stays: the config's own check tells of it."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    return float(Fraction(str(number)) / 100) if is_number else number


_CHANGES: Mapping[Path, Callable[[object], object]] = {
    ("generation", "negative_prompt"): _joined,
    ("review", "fraction"): _part,
    ("criteria", "success_rate"): _part,
}
