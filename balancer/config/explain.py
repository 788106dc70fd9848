"""Turn pydantic's errors into problems a user can act on: the value, the limit, the near miss."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from balancer.config.dotted import join_keys, resolve_keys, split_setting
from balancer.config.evaluation import ARCHITECTURE_PATTERN
from balancer.config.loras import FILE_PATTERN
from balancer.config.schema import NAME_PATTERN, SCHEDULER_PATTERN, Config
from balancer.config.yaml_reading import ConfigProblem, Document, KeyPath
from balancer.text.names import near


@dataclass(frozen=True, slots=True)
class _Fault:
    """One of pydantic's errors. `path` is the path in the user's file, without pydantic's names for the
    branches of a union; `branch` is True if there was such a name."""

    path: KeyPath
    error: ErrorDetails
    branch: bool

    @property
    def kind(self) -> str:
        return self.error["type"]


def format_problem(problem: ConfigProblem) -> str:
    """`file:line: dotted.path: problem`"""
    return ": ".join(part for part in (problem.place, join_keys(problem.path), problem.text) if part)


def explain_errors(errors: Iterable[ErrorDetails], document: Document) -> list[ConfigProblem]:
    """One problem per path: a misspelt key is not reported as missing too, and a union is reported once, not
    once per branch."""
    faults = [_locate_fault(error, document.value) for error in errors]
    faults = [fault for fault in faults if not _is_echo(fault)]
    unknown = {fault.path: _suggestion(fault.path) for fault in faults if fault.kind == "extra_forbidden"}
    meant = {(*path[:-1], suggestion) for path, suggestion in unknown.items()}
    by_path: dict[KeyPath, list[_Fault]] = {}
    for fault in faults:
        if fault.path not in meant or fault.kind != "missing":
            by_path.setdefault(fault.path, []).append(fault)
    return [
        ConfigProblem(path, _find_place(document, path), _describe(group))
        for path, group in _drop_union_branches(by_path).items()
    ]


def _locate_fault(error: ErrorDetails, value: object) -> _Fault:
    path: list[str | int] = []
    branch = False
    loc = _validator_loc(error, value) or error["loc"]
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


def _validator_loc(error: ErrorDetails, value: object) -> tuple[str, ...] | None:
    """The path that a check across sections writes before its message."""
    dotted, colon, _ = error["msg"].removeprefix("Value error, ").partition(": ")
    at_root = error["type"] == "value_error" and not error["loc"]
    return resolve_keys(split_setting(dotted)[0], value) if at_root and colon else None


def _is_echo(fault: _Fault) -> bool:
    """Whether pydantic reports a list as too short only because it dropped faulty entries."""
    entries = fault.error["input"]
    return (
        fault.kind == "too_short"
        and isinstance(entries, list | dict)
        and len(entries) >= fault.error["ctx"]["min_length"]
    )


def _drop_union_branches(by_path: Mapping[KeyPath, list[_Fault]]) -> dict[KeyPath, list[_Fault]]:
    """Drop union branches that the user did not mean: a list with a faulty entry is no failed `auto`."""
    kept = {}
    for path, group in by_path.items():
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
        if not (deeper and all(fault.branch for fault in group)):
            kept[path] = group
    return kept


def _describe(group: Sequence[_Fault]) -> str:
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
        advice = _null_advice(first.path)
    return f"should be {wanted}, not {_quote(given)}{advice}"


def _null_advice(path: KeyPath) -> str:
    """Advice for a section that is null: null removes an existing entry, and here there is none."""
    if not path:
        return ""
    section = _model_at(path[:-1])
    if section is None:
        return "; null removes an existing entry, and there is none of this name"
    if section.model_fields[str(path[-1])].is_required():
        return ""
    return "; leave the line out to use the defaults"


def _wanted(error: ErrorDetails) -> str:
    describe = _WANTED.get(error["type"])
    return describe(error.get("ctx", {})) if describe else error["msg"].removeprefix("Input should be ")


PATTERNS = {
    NAME_PATTERN: "a name of at most 100 characters without `/`",
    SCHEDULER_PATTERN: "a scheduler class of diffusers, such as `EulerDiscreteScheduler`",
    FILE_PATTERN: "a file name that ends in `.safetensors`",
    ARCHITECTURE_PATTERN: "an architecture of torchvision or timm, such as `resnet18` or `timm:vit_tiny`",
}
"""What text that breaks a pattern of the schema should have been."""

_WANTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text (in quotes if it looks like a number)",
    "string_pattern_mismatch": lambda ctx: PATTERNS[ctx["pattern"]],
    "string_too_short": lambda _: "text that is not empty",
    "string_too_long": lambda ctx: f"text of at most {_number(ctx['max_length'])} characters",
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


def _unknown_key(path: KeyPath) -> str:
    suggestion = _suggestion(path)
    if suggestion:
        return f"unknown key `{path[-1]}`, did you mean `{suggestion}`?"
    known = ", ".join(_known_keys(path[:-1]))
    return f"unknown key `{path[-1]}`; the keys here are {known}"


def _suggestion(path: KeyPath) -> str | None:
    """The same key in another section, or the nearest key of this one."""
    key = str(path[-1])
    return next(_sections_with(key), near(key, _known_keys(path[:-1])))


def _sections_with(key: str) -> Iterator[str]:
    for section in Config.model_fields:
        model = _model_at((section,))
        if model is not None and key in model.model_fields:
            yield f"{section}.{key}"


def _known_keys(path: KeyPath) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    return _as_model(_kind_at(path))


def _as_model(kind: object) -> type[BaseModel] | None:
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _kind_at(path: KeyPath) -> object:
    kind: object = Config
    for part in path:
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            kind = _section_in(field.annotation) if field else None
        else:
            kind = next(iter(get_args(kind)[1:]), None)
    return kind


def is_section(path: KeyPath) -> bool:
    """Whether a path leads to a mapping of settings, of names to settings such as `facets`, or to an entry of
    such a mapping."""
    if not path:
        return False
    kind, above = _kind_at(path), _kind_at(path[:-1])
    return _as_model(kind) is not None or dict in (get_origin(kind), get_origin(above))


def _section_in(annotation: object) -> object:
    """The model of an optional section; any other annotation as it is."""
    models = [arg for arg in get_args(annotation) if inspect.isclass(arg) and issubclass(arg, BaseModel)]
    return models[0] if models and type(None) in get_args(annotation) else annotation


def _find_place(document: Document, path: KeyPath) -> str:
    while path not in document.places:
        path = path[:-1]
    return document.places[path]


def _quote(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(limit: float) -> str:
    """With thousands separators, as in the documentation."""
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def _did_you_mean(value: object, choices: Sequence[str]) -> str:
    meant = near(value, choices) if isinstance(value, str) else None
    return f", did you mean `{meant}`?" if meant else ""
