"""Pydantic's errors about a config, as problems a person can act on: the value, the limit, the near miss."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from balancer.config import yaml_reading as yamltext
from balancer.config.dotted import join_keys, keys_of, split_setting
from balancer.config.schema import Config
from balancer.config.yaml_reading import Document, Problem


@dataclass(frozen=True, slots=True)
class _Fault:
    """One of pydantic's errors. `path` leads to what the user wrote (or left out), without the names
    pydantic gives to the branches of a union; `branch` says that there was such a name."""

    path: yamltext.Path
    error: ErrorDetails
    branch: bool

    @property
    def kind(self) -> str:
        return self.error["type"]


def line(problem: Problem) -> str:
    """`file:line: dotted.path: problem`"""
    return ": ".join(part for part in (problem.place, join_keys(problem.path), problem.text) if part)


def explain(errors: Iterable[ErrorDetails], document: Document) -> list[Problem]:
    """One problem a path: a misspelt key is not also a missing one, nor a union as many errors as it has
    branches."""
    faults = [_fault(error, document.value) for error in errors]
    faults = [fault for fault in faults if not _is_echo(fault)]
    unknown = {fault.path: _suggestion(fault.path) for fault in faults if fault.kind == "extra_forbidden"}
    meant = {(*path[:-1], suggestion) for path, suggestion in unknown.items()}
    by_path: dict[yamltext.Path, list[_Fault]] = {}
    for fault in faults:
        if fault.path not in meant or fault.kind != "missing":
            by_path.setdefault(fault.path, []).append(fault)
    return [
        Problem(path, _place(document, path), _text(group))
        for path, group in _deepest_of_unions(by_path).items()
    ]


def _fault(error: ErrorDetails, value: object) -> _Fault:
    path: list[str | int] = []
    branch = False
    loc = _loc_of_validator(error, value) or error["loc"]
    for step, part in enumerate(loc):
        is_last = step == len(loc) - 1
        if isinstance(value, dict) and part in value:
            value = value[cast("str", part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (is_last and error["type"] == "missing"):
            branch = branch or part != "[key]"
            continue
        path.append(part)
    return _Fault(tuple(path), error, branch)


def _loc_of_validator(error: ErrorDetails, value: object) -> tuple[str, ...] | None:
    """Where a check across sections points to: it puts the dotted path before its message."""
    dotted, colon, _ = error["msg"].removeprefix("Value error, ").partition(": ")
    at_root = error["type"] == "value_error" and not error["loc"]
    return keys_of(split_setting(dotted)[0], value) if at_root and colon else None


def _is_echo(fault: _Fault) -> bool:
    """A list reported too short only because pydantic dropped its faulty entries."""
    entries = fault.error["input"]
    return (
        fault.kind == "too_short"
        and isinstance(entries, list | dict)
        and len(entries) >= fault.error["ctx"]["min_length"]
    )


def _deepest_of_unions(by_path: Mapping[yamltext.Path, list[_Fault]]) -> dict[yamltext.Path, list[_Fault]]:
    """Without the branches of a union that the user cannot have meant: a list with a faulty entry is
    not a failed `auto`."""
    kept = {}
    for path, group in by_path.items():
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
        if not (deeper and all(fault.branch for fault in group)):
            kept[path] = group
    return kept


def _text(group: Sequence[_Fault]) -> str:
    first = group[0]
    if first.kind == "missing":
        return "missing"
    if first.kind == "extra_forbidden":
        return _unknown_key(first.path)
    if first.kind == "value_error":
        return first.error["msg"].removeprefix("Value error, ").removeprefix(f"{join_keys(first.path)}: ")
    given = first.error["input"]
    if first.kind == "too_short":
        return f"has {len(given)} entries, needs at least {first.error['ctx']['min_length']}"
    wanted = " or ".join(dict.fromkeys(_wanted(fault.error) for fault in group))
    advice = _did_you_mean(given, _choices(group))
    if first.kind in ("model_type", "dict_type") and given is None:
        advice = _instead_of_null(first.path)
    return f"should be {wanted}, not {_shown(given)}{advice}"


def _instead_of_null(path: yamltext.Path) -> str:
    """An entry is not there, or null would have taken it away."""
    if not path:
        return ""
    section = _model_at(path[:-1])
    if section is None:
        return "; null takes away an entry that is there, and there is none of this name"
    if section.model_fields[str(path[-1])].is_required():
        return ""
    return "; leave the line out to have the defaults"


def _wanted(error: ErrorDetails) -> str:
    describe = _WANTED.get(error["type"])
    return describe(error.get("ctx", {})) if describe else error["msg"].removeprefix("Input should be ")


_WANTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text (in quotes if it looks like a number)",
    "string_pattern_mismatch": lambda _: "a name of at most 100 characters without `/`",
    "string_too_short": lambda _: "text that is not empty",
    "string_too_long": lambda ctx: f"text of at most {ctx['max_length']} characters",
    "tuple_type": lambda _: "a list",
    "dict_type": lambda _: "a mapping of names to settings",
    "model_type": lambda _: "a mapping of settings",
    "greater_than": lambda ctx: f"more than {_number(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"at least {_number(ctx['ge'])}",
    "less_than_equal": lambda ctx: f"at most {_number(ctx['le'])}",
    "multiple_of": lambda ctx: f"a multiple of {ctx['multiple_of']}",
    "literal_error": lambda ctx: str(ctx["expected"]).replace("'", "`"),
}


def _choices(group: Sequence[_Fault]) -> list[str]:
    expected = [str(fault.error["ctx"]["expected"]) for fault in group if fault.kind == "literal_error"]
    return [choice for text in expected for choice in text.split("'")[1::2]]


def _unknown_key(path: yamltext.Path) -> str:
    suggestion = _suggestion(path)
    if suggestion:
        return f"unknown key `{path[-1]}`, did you mean `{suggestion}`?"
    known = ", ".join(_known_keys(path[:-1]))
    return f"unknown key `{path[-1]}`; the keys here are {known}"


def _suggestion(path: yamltext.Path) -> str | None:
    """The same key in another section, or the nearest key of this one."""
    key = str(path[-1])
    near = difflib.get_close_matches(key, _known_keys(path[:-1]), n=1)
    return next(iter((*_sections_with(key), *near)), None)


def _sections_with(key: str) -> Iterator[str]:
    for section in Config.model_fields:
        model = _model_at((section,))
        if model is not None and key in model.model_fields:
            yield f"{section}.{key}"


def _known_keys(path: yamltext.Path) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _model_at(path: yamltext.Path) -> type[BaseModel] | None:
    return _as_model(_kind_at(path))


def _as_model(kind: object) -> type[BaseModel] | None:
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _kind_at(path: yamltext.Path) -> object:
    kind: object = Config
    for part in path:
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            kind = _section_in(field.annotation) if field else None
        else:
            kind = next(iter(get_args(kind)[1:]), None)
    return kind


def is_section(path: yamltext.Path) -> bool:
    """Whether a path leads to a mapping: of settings, an entry of a mapping of names among them, or of names
    to settings, such as `facets`."""
    kind = _kind_at(path) if path else None
    named = get_args(kind)[1:] if get_origin(kind) is dict else ()
    return any(_as_model(each) is not None for each in (kind, *named))


def _section_in(annotation: object) -> object:
    """The model among the branches of an optional section, else the annotation itself."""
    models = [arg for arg in get_args(annotation) if inspect.isclass(arg) and issubclass(arg, BaseModel)]
    return models[0] if models and type(None) in get_args(annotation) else annotation


def _place(document: Document, path: yamltext.Path) -> str:
    while path not in document.places:
        path = path[:-1]
    return document.places[path]


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _did_you_mean(value: object, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f", did you mean `{near[0]}`?" if near else ""
