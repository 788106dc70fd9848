"""Load a config file into a `Config`, or report every problem in it with its line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from balancer.config import legacy
from balancer.config.dotted import resolve_keys, split_setting
from balancer.config.explain import explain_errors, format_problem, is_section
from balancer.config.schema import Config, DatasetConfig, PathBases
from balancer.config.yaml_reading import ConfigProblem, Document, KeyPath, read_document
from balancer.errors import ConfigError, UsageError
from balancer.storage.address import refuse_credentials
from balancer.storage.regular_files import NotRegularError, TooLargeError, read_regular
from balancer.storage.user_paths import expanded
from balancer.text.names import composed
from balancer.text.quantities import size

MAX_FILE_BYTES = 1_000_000

EXTENDS = "extends"
"""A config may extend another one beside it: `extends: base.yaml`. Its own values win."""

MAX_EXTENDS = 5

OVERRIDE = "--set "
"""Prefix of the place of a value from the command line."""

log = logging.getLogger(__name__)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML or JSON config, or a legacy one. `overrides` are `dotted.path=value` in the current layout,
    with YAML values.

    Raises ConfigError with all problems at once, in the file's order.
    """
    document = read_config_file(path)
    if legacy.is_legacy(document):
        converted = legacy.convert(document)
        document = converted.document
        if converted.unused:
            log.warning(
                "%s: %d fields of the legacy layout are not used; `balancer convert` lists them",
                path, len(converted.unused),
            )  # fmt: skip
    return validate_document(document, overrides)


def load_dataset_settings(overrides: Sequence[str]) -> DatasetConfig:
    """The section `dataset` that `--set` gives to a command without a config."""
    for override in overrides:
        if not override.startswith("dataset."):
            raise UsageError(f"--set {override}: only settings of `dataset` have an effect here")
    values = {"classes": {"any": {"prompts": ["any"]}}, "target": {"per_class": 1}}
    return validate_document(Document(values), overrides).dataset


def read_config_file(path: str | os.PathLike[str]) -> Document:
    """The values of a config file and of the files it extends, not validated. Raises ConfigError if one
    cannot be read."""
    refuse_credentials(os.fspath(path), "the path of this config")
    return _read_extended(expanded(path), ())


def _read_extended(path: Path, before: tuple[Path, ...]) -> Document:
    document = read_document(_read_text(path), lambda line: f"{path}:{line}")
    if document is None:
        raise ConfigError([f"{path} is empty"], hint="`balancer init DATASET` writes one to edit")
    if not isinstance(document.value, dict) or EXTENDS not in document.value:
        return document
    place = document.places[(EXTENDS,)]
    base = document.value.pop(EXTENDS)
    if not isinstance(base, str):
        raise ConfigError(
            [f"{place}: {EXTENDS}: should be the name of a config file, not {json.dumps(base)}"]
        )
    if len(before) == MAX_EXTENDS:
        raise ConfigError([f"{place}: {EXTENDS}: more than {MAX_EXTENDS} files, or a cycle"])
    return _merge(_read_extended(path.parent / base, (*before, path)), document)


def _merge(base: Document, document: Document) -> Document:
    """Merge `document` over `base`. Sections are merged, lists are replaced, and null removes a section or
    an entry."""

    def joined(below: object, above: object, path: KeyPath) -> object:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            hidden.append(path)
            return above
        gone = {key for key in below.keys() & above.keys() if _removes((*path, key), above[key])}
        hidden.extend((*path, key) for key in gone)
        both = (below.keys() & above.keys()) - gone
        shared = {key: joined(below[key], above[key], (*path, key)) for key in both}
        return {key: value for key, value in (below | above | shared).items() if key not in gone}

    hidden: list[KeyPath] = []
    value = joined(base.value, document.value, ())

    def is_hidden(path: KeyPath) -> bool:
        return any(path[: len(replaced)] == replaced for replaced in hidden)

    places = {path: place for path, place in base.places.items() if not is_hidden(path)}
    problems = [problem for problem in base.problems if not is_hidden(problem.path)]
    return Document(value, places | document.places, [*problems, *document.problems])


def _removes(path: KeyPath, value: object) -> bool:
    return value is None and is_section(path)


def validate_document(document: Document, overrides: Sequence[str] = ()) -> Config:
    """Apply `overrides` to a document and validate it. Raises ConfigError."""
    stages = [examine(document)] if overrides else []
    for override in overrides:
        apply_override(document, override)
        stages.append(examine(document))
    config, problems = stages[-1] if stages else examine(document)
    if config is None or problems:
        raise config_error([_blame_override(problem, overrides, stages) for problem in problems])
    return config.with_bases(_find_path_bases(document))


def _blame_override(
    problem: ConfigProblem,
    overrides: Sequence[str],
    stages: Sequence[tuple[Config | None, list[ConfigProblem]]],
) -> ConfigProblem:
    """Place a problem at the override that caused it: the first one after which it appears.

    The problem stays at its line if the file was invalid before and the override is in another section: the
    override may only have uncovered it.
    """
    seen = ((problem.path, problem.text) in [(p.path, p.text) for p in problems] for _, problems in stages)
    first = next((stage for stage, there in enumerate(seen) if there), 0)
    if first == 0 or problem.place.startswith(OVERRIDE):
        return problem
    override, (before, _) = overrides[first - 1], stages[first - 1]
    parts = tuple(part.text for part in split_setting(override)[0])
    if before is None and parts[: len(problem.path)] != problem.path:
        return problem
    return replace(problem, place=f"{OVERRIDE}{override}")


LOCAL_PATHS = (
    ("dataset", "path"),
    ("dataset", "holdout"),
    ("target", "evaluation"),
    ("verification", "calibration"),
)
"""Settings that are local paths."""


def _find_path_bases(document: Document) -> PathBases:
    """The folder of the file that gives each local path; `extends` can involve several files."""
    folders = {}
    for path in LOCAL_PATHS:
        file, _, line = document.places.get(path, "").rpartition(":")
        if line.isdigit() and not file.startswith(OVERRIDE):
            folders[".".join(path)] = Path(file).parent
    return PathBases(folders)


def examine(document: Document) -> tuple[Config | None, list[ConfigProblem]]:
    """Validate a document: the config, None if it is invalid, and every problem."""
    problems = [*document.problems]
    _compose_names(document.value)
    try:
        return Config.model_validate_json(json.dumps(document.value), strict=True), problems
    except ValidationError as error:
        known_bad = {problem.path for problem in problems}
        explained = explain_errors(error.errors(include_url=False), document)
        return None, problems + [problem for problem in explained if problem.path not in known_bad]


def _compose_names(value: object) -> None:
    """Compose names that are values; keys are composed already. Paths and prompts stay as written."""
    for names in _find_name_lists(value):
        names[:] = [composed(name) if isinstance(name, str) else name for name in names]


def _find_name_lists(value: object) -> Iterator[list[object]]:
    match value:
        case {"verification": {"unjudged": list(names)}}:
            yield names
    match value:
        case {"facets": dict(facets)}:
            for facet in facets.values():
                match facet:
                    case {"classes": list(names)}:
                        yield names


def config_error(problems: Iterable[ConfigProblem]) -> ConfigError:
    return ConfigError([format_problem(problem) for problem in sorted(problems, key=_file_order)])


def _read_text(path: Path) -> str:
    try:
        data = read_regular(path, max_bytes=MAX_FILE_BYTES, follow_links=True)
    except FileNotFoundError as error:
        raise ConfigError([f"config {path} does not exist"]) from error
    except TooLargeError as error:
        raise ConfigError([f"config {path} is larger than {size(MAX_FILE_BYTES)}"]) from error
    except NotRegularError as error:
        hint = "" if path.is_dir() else "save the config to a file; pipes and devices are not read"
        raise ConfigError([f"config {path} is {error.strerror}"], hint=hint) from error
    except OSError as error:
        raise ConfigError([f"config {path} cannot be read: {error.strerror}"]) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"config {path} is not UTF-8 text"]) from error


def apply_override(document: Document, override: str) -> None:
    """Replace one value, and the problems reported for it."""
    place = f"{OVERRIDE}{override}"
    parts, text = split_setting(override)
    keys = resolve_keys(parts, document.value)
    if text is None or not all(keys):
        raise ConfigError(
            [f"{place}: write it as section.key=value, such as generation.steps=20"],
            hint="quote a name that has a dot: --set 'classes.\"v1.0\".prompts=[a photo]'",
        )
    given = read_document(text, lambda _line: place) or Document()
    if not isinstance(document.value, dict):
        return
    section = document.value
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    if keys[-1] in section and _removes(keys, given.value):
        del section[keys[-1]]
    else:
        section[keys[-1]] = given.value
    document.places = {path: at for path, at in document.places.items() if path[: len(keys)] != keys}
    document.problems = [problem for problem in document.problems if problem.path[: len(keys)] != keys]
    for depth in range(1, len(keys)):
        document.places.setdefault(keys[:depth], place)
    document.places.update({(*keys, *path): place for path in given.places} | {keys: place})
    document.problems += [ConfigProblem((*keys, *p.path), place, p.text) for p in given.problems]


def _file_order(problem: ConfigProblem) -> tuple[str, int]:
    file, _, line = problem.place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.place, 0)
