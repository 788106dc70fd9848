"""Generate docs/configuration.md, every setting of a config, from the models in balancer/config/schema.py.

python scripts/configuration_page.py
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from balancer.config.schema import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

A config is YAML or JSON. Omitted settings have their default; an unknown key is an error.
`extends: other.yaml` starts from another config and overrides its settings; `null` removes
a section or an entry of it, such as `facets: {lighting: null}`, or all entries, as in `facets: null`.
On the command line, `--set generation.steps=20` changes one setting; quote a name with dots:
`--set 'classes."v1.0".prompts=[a photo]'`.

`balancer init DATASET` writes a config to start from, and `balancer plan CONFIG` shows what a run would do.
"""

LIMITS = {Ge: "≥ {}", Gt: "> {}", Le: "≤ {}", Lt: "< {}", MultipleOf: "multiple of {}", MinLen: "at least {}"}
BOUNDS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt", MultipleOf: "multiple_of", MinLen: "min_length"}
NAMES = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def page() -> str:
    return "\n".join([INTRODUCTION, *_sections(Config, "")])


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and all in it."""
    yield model
    for field in model.model_fields.values():
        for nested in _models_in(field.annotation):
            yield from models(nested)


def _sections(model: type[BaseModel], path: str, setting: FieldInfo | None = None) -> Iterator[str]:
    """A model's own settings, then those of the models in it."""
    inner = {name: _models_in(field.annotation) for name, field in model.model_fields.items()}
    own = [_row(name, field) for name, field in model.model_fields.items() if not inner[name]]
    title = f"## `{path}`\n" if path else "## At the top\n"
    about = inspect.cleandoc(model.__doc__ or "") if "__doc__" in vars(model) and path else ""
    about = "\n\n".join(filter(None, [*_before(setting), about, *_after(setting)]))
    if own:
        header = "| setting | type | default | |\n|---|---|---|---|"
        yield "\n".join([title, *([f"{about}\n"] if about else []), header, *own, ""])
    for name, field in model.model_fields.items():
        for nested in inner[name]:
            yield from _sections(nested, _joined(path, name, field.annotation), field)


def _before(setting: FieldInfo | None) -> list[str]:
    """The description of the section's field."""
    return [] if setting is None else [" ".join((setting.description or "").split())]


def _after(setting: FieldInfo | None) -> list[str]:
    """A note if the section is absent by default, because its table shows the defaults within it."""
    if setting is None or setting.is_required() or setting.get_default(call_default_factory=True):
        return []
    return ["By default there is none."]


def _joined(path: str, name: str, annotation: Any) -> str:
    kind = typing.get_origin(annotation)
    at = f"{path}.{name}".lstrip(".")
    return f"{at}.NAME" if kind is dict else f"{at}[]" if kind is tuple else at


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _row(name: str, field: FieldInfo) -> str:
    default = (
        "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
    )
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {_type(field.annotation, field.metadata)} | {default} | {text} |"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value) or '""'


def _type(annotation: Any, metadata: list[Any]) -> str:
    """In words: `integer, ≥ 1, ≤ 100, or null`."""
    parts = typing.get_args(annotation)
    if parts[1:] == (type(None),):
        return f"{_type(parts[0], metadata)}, or null"
    limits = [text.format(f"{value:,}") for kind, text in LIMITS.items() for value in _bounds(metadata, kind)]
    return ", ".join([_kind(annotation), *limits])


def _bounds(metadata: list[Any], kind: type) -> list[Any]:
    return [getattr(each, BOUNDS[kind]) for each in metadata if isinstance(each, kind)]


def _kind(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0], [*_flat(parts[1:])])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_kind, parts))
    if origin is tuple:
        return "list of " + _kind(parts[0]) if parts[-1] is Ellipsis else f"[{', '.join(map(_kind, parts))}]"
    if origin is dict:
        return f"mapping of {_kind(parts[0])} to {_kind(parts[1])}"
    return NAMES[annotation]


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    """Pydantic's Field holds limits of its own."""
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
