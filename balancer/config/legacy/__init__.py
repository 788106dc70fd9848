"""Convert legacy configs: one JSON object `dataset_balancing_config`, from an earlier tool.

Every value keeps its place, so problems point to the line in the legacy file. Fields without a counterpart
are listed with the reason and never refused.
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
    BLOCK,
    CURRENT,
    FACETS,
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
    LegacyFacet,
)
from balancer.config.schema import EMBEDDED_MODEL
from balancer.config.yaml_reading import ConfigProblem, Document, KeyPath

__all__ = ["BLOCK", "Converted", "convert", "is_legacy"]


@dataclass(frozen=True, slots=True)
class Converted:
    """`document` has the current layout and the places of the legacy file; its problems name what is missing.

    `unused` are legacy fields without effect. `assumed` are values chosen because the file has none, by their
    path in the current layout.
    """

    document: Document
    unused: tuple[ConfigProblem, ...]
    assumed: tuple[ConfigProblem, ...]


def is_legacy(document: Document) -> bool:
    return isinstance(document.value, dict) and BLOCK in document.value


def convert(source: Document) -> Converted:
    """Raises ConfigError only if the legacy block is not a mapping."""
    conversion = Conversion(source)
    _convert_settings(conversion)
    _convert_image_size(conversion)
    names = _convert_classes(conversion)
    for facet in FACETS:
        _convert_facet(conversion, facet, names)
    _convert_models(conversion)
    _convert_class_fill(conversion)
    _require_dataset(conversion)
    return Converted(conversion.document, conversion.unused(), tuple(conversion.assumed))


def _convert_settings(conversion: Conversion) -> None:
    for new, spellings in SETTINGS.items():
        if given := _find(conversion, spellings):
            change = _CHANGES.get(new)
            conversion.take(new, given[0], change and change(conversion.value(given[0])))
            _ignore_others(conversion, given)


def _find(conversion: Conversion, spellings: Iterable[str]) -> list[KeyPath]:
    """Paths at which a setting is given, under any of its names."""
    paths = [(*section, key) for key in spellings for section in SECTIONS]
    return [path for path in paths if not isinstance(conversion.value(path), dict | None)]


def _ignore_others(conversion: Conversion, paths: Sequence[KeyPath]) -> None:
    """Use the first of several synonymous fields. Report the others only if their values differ."""
    first, *others = paths
    for other in others:
        if conversion.value(other) == conversion.value(first):
            conversion.use(other)
        else:
            conversion.reasons[other] = f"{'.'.join(map(str, within_block(first)))} is used instead"


def _convert_image_size(conversion: Conversion) -> None:
    paths = [(*section, key) for key in IMAGE_SIZE for section in SECTIONS]
    sizes = [path for path in paths if conversion.value(path) is not None]
    sides: tuple[KeyPath, KeyPath] = (("generation", "width"), ("generation", "height"))
    if not sizes:
        return
    if any(conversion.has(side) for side in sides):
        conversion.reasons.update(dict.fromkeys(sizes, "width and height are given, too"))
        return
    for side, pixels in zip(sides, _two_sides(conversion.value(sizes[0])), strict=True):
        conversion.take(side, sizes[0], pixels)
    _ignore_others(conversion, sizes)


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
    """The target of all classes, and of single classes what differs from it. If the file gives none for all,
    it is that of the classes, if these have the same."""
    common: KeyPath = ("target", "per_class")
    wanted = {name: _target(conversion, name) for name in names}
    values = [value for _, value in wanted.values()]
    if conversion.has(common):
        for_all = cast("dict[str, dict[str, object]]", conversion.document.value)["target"]["per_class"]
    else:
        for_all = values[0] if values.count(values[0]) == len(values) else None
        if for_all is not None:
            conversion.put(common, for_all, wanted[names[0]][0])
    for name, (old, value) in wanted.items():
        has_none = value is None and conversion.has(common)
        conversion.use(old)
        if value != for_all and not has_none:
            conversion.put(("target", "classes", name), value, old)


def _target(conversion: Conversion, name: str) -> tuple[KeyPath, object]:
    """The field with the target of a class, and its value."""
    old = (*TARGETS, name)
    entry = conversion.value(old)
    if not isinstance(entry, dict):
        return old, entry
    key = next((key for key in TARGET if key in entry), None)
    if key is not None:
        return (*old, key), entry[key]
    parts = [next((key for key in keys if key in entry), "") for keys in (CURRENT, TO_GENERATE)]
    numbers = [entry.get(key) for key in parts]
    if all(isinstance(number, int) for number in numbers):
        return (*old, parts[1]), sum(cast("list[int]", numbers))
    return old, None


def _convert_class(conversion: Conversion, name: str, at: KeyPath) -> None:
    new: KeyPath = ("classes", name)
    old = (*PROMPTS, name)
    given = conversion.value(old)
    entry = given if isinstance(given, dict) else {}
    if isinstance(given, str | list):
        _take_phrases(conversion, (*new, "prompts"), [old])
    else:
        _take_phrases(conversion, (*new, "prompts"), [(*old, key) for key in WORDINGS if key in entry])
    _take_phrases(conversion, (*new, "variations"), [(*old, "variations")])
    _take_phrases(conversion, (*new, "fallback_prompts"), [(*old, key) for key in FALLBACK_WORDINGS])
    for key in ("negative_prompts", "negative_prompt"):
        if entry.get(key) is not None and not conversion.has((*new, "negative_prompt")):
            conversion.take((*new, "negative_prompt"), (*old, key), _joined(entry[key]))
    if not _has_phrases(conversion, (*new, "prompts")):
        why = "the file has no prompts for this class; say what it looks like"
        conversion.assume((*new, "prompts"), [class_wording(name)], at, why)


def _take_phrases(conversion: Conversion, new: KeyPath, sources: Iterable[KeyPath]) -> None:
    """Join the phrases of several fields without duplicates. A plain text counts as a list of one."""
    joined: list[object] = []
    for old in sources:
        given = conversion.value(old)
        if not isinstance(given, str | list):
            continue
        conversion.use(old)
        for index, phrase in enumerate(given if isinstance(given, list) else [given]):
            if phrase not in joined:
                place = (*old, index) if isinstance(given, list) else old
                conversion.document.places[*new, len(joined)] = conversion.place(place)
                joined.append(phrase)
        conversion.put(new, joined, at=old)


def _has_phrases(conversion: Conversion, new: KeyPath) -> bool:
    return (*new, 0) in conversion.document.places


def _convert_facet(conversion: Conversion, facet: LegacyFacet, names: Sequence[str]) -> None:
    old: KeyPath = (BLOCK, facet.section)
    if conversion.value(old) is None:
        return
    classes = [name for name in names if _applies(conversion, facet, name)]
    if not classes:
        conversion.reasons[old] = f"no class is called {facet.only_class}"
        return
    shares = _shares(conversion, old)
    if shares is None:
        return
    new: KeyPath = ("facets", facet.name)
    conversion.put((*new, "classes"), "all" if facet.only_class is None else classes, old)
    conversion.put((*new, "values"), {}, old)
    for value, (at, share) in shares.items():
        if share is not None:
            conversion.take((*new, "values", value, "share"), at, share)
        _convert_wordings(conversion, facet, value, names, at)


def _applies(conversion: Conversion, facet: LegacyFacet, class_name: str) -> bool:
    if facet.only_class in (None, class_name):
        return True
    return any(conversion.value((*PROMPTS, class_name, key)) is not None for key in facet.wordings)


def _shares(conversion: Conversion, old: KeyPath) -> dict[str, tuple[KeyPath, object]] | None:
    """The path and the share of each facet value: a fraction, or None for even shares.

    Returns None and records a problem if the field has no values.
    """
    given = conversion.value(old)
    if isinstance(given, list) and all(isinstance(value, str) for value in given):
        conversion.use(old)
        return {value: ((*old, index), None) for index, value in enumerate(given)}
    entries = conversion.mapping(old)
    if not isinstance(given, dict):
        return None
    conversion.look_into(old)
    shares: dict[str, tuple[KeyPath, object]] = {}
    for value, entry in entries.items():
        at = (*old, value)
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


def _convert_wordings(
    conversion: Conversion, facet: LegacyFacet, value: str, names: Sequence[str], at: KeyPath
) -> None:
    """A value has the same prompts in all classes now. In legacy configs each class may have its own."""
    new: KeyPath = ("facets", facet.name, "values", value, "prompts")
    sources: list[KeyPath] = [(BLOCK, facet.section, value, key) for key in (*WORDINGS, "description")]
    sources += [(BLOCK, key, value) for key in facet.wordings]
    of_classes: list[KeyPath] = [(*PROMPTS, name, key, value) for name in names for key in facet.wordings]
    in_classes = [path for path in of_classes if conversion.value(path) is not None]
    _take_phrases(conversion, new, [*sources, *in_classes])
    if not _has_phrases(conversion, new):
        words = in_words(value)
        words += "" if words.endswith(facet.suffix) else facet.suffix
        conversion.assume(new, [words], at, "the file has no prompts for this value; say what it looks like")
    elif len(in_classes) > 1:
        why = f"joined from {len(in_classes)} classes: a value has the same prompts in every class"
        conversion.assumed.append(ConfigProblem(new, conversion.place(in_classes[0]), why))


def _convert_models(conversion: Conversion) -> None:
    """Choose models pinned to commits if the file names none."""
    at: KeyPath = (BLOCK,)
    generator, verifier = suggested.GENERATOR, suggested.VERIFIER
    if not conversion.has(("generation", "model")):
        why = "the file names no model by its id; this one makes photographs"
        conversion.assume(("generation", "model"), generator.model, at, why)
    model = cast("dict[str, dict[str, object]]", conversion.document.value)["generation"]["model"]
    if model == generator.model and not conversion.has(("generation", "revision")):
        conversion.assume(("generation", "revision"), generator.revision, at, "the commit known to work")
        if not conversion.has(("generation", "variant")):
            conversion.put(("generation", "variant"), generator.variant, at)
    why = "the earlier tool judged by rules for brightness and colour; now a model gives probabilities"
    if model == EMBEDDED_MODEL:
        conversion.assume(("verification", "model"), EMBEDDED_MODEL, at, why)
    else:
        conversion.assume(("verification", "model"), verifier.model, at, why)
        conversion.put(("verification", "revision"), verifier.revision, at)


def _convert_class_fill(conversion: Conversion) -> None:
    """Convert the minimum number of images per class into a fraction of the target."""
    given = _find(conversion, ("min_images_per_class",))
    target = cast("dict[str, dict[str, object]]", conversion.document.value).get("target", {})
    least = conversion.value(given[0]) if given else None
    if given and "classes" in target:
        conversion.reasons[given[0]] = "it becomes a fraction of the target, and targets differ by class"
    common = target.get("per_class")
    if isinstance(least, int) and isinstance(common, int) and common > 0:
        conversion.take(("criteria", "class_fill"), given[0], min(1.0, round(least / common, 4)))


def _require_dataset(conversion: Conversion) -> None:
    if not conversion.has(("dataset", "path")):
        text = "missing: the file does not say where the images are; give --set dataset.path=FOLDER"
        conversion.problem(("dataset", "path"), text, at=(BLOCK,))


def _joined(given: object) -> object:
    """Join a list of texts. Anything else stays as it is: validation reports it."""
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return ", ".join(given)
    return given


def _part(number: object) -> object:
    """A fraction of 1, converted if it is given in percent."""
    return _hundredth(number) if isinstance(number, int | float) and number > 1 else number


def _hundredth(number: object) -> object:
    """Anything but a finite number stays as it is: validation reports it."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    return float(Fraction(str(number)) / 100) if is_number else number


_CHANGES: Mapping[KeyPath, Callable[[object], object]] = {
    ("generation", "negative_prompt"): _joined,
    ("review", "fraction"): _part,
    ("criteria", "success_rate"): _part,
}
