"""`balancer convert`: convert a legacy JSON config to YAML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import click

from balancer.cli import console
from balancer.errors import UsageError
from balancer.text.commands import suggested

if TYPE_CHECKING:
    from balancer.config.legacy import Converted
    from balancer.config.yaml_reading import ConfigProblem, KeyPath

_CLASSES = """\
prompts: prompts for the generator; each attempt at an image uses the next wording
variations: details that do not matter, added in turn"""

_VERIFICATION = """\
threshold: least probability of every property. The earlier tool's score was not a probability, so this \
threshold is a first guess.
A run stops for properties and values without labelled images, unless they are listed in `unjudged`."""

_SECTIONS: dict[KeyPath, str] = {
    ("dataset",): "A folder with one subfolder of images per class.",
    ("target",): "Images every class should have, real and generated together.",
    ("classes",): _CLASSES,
    ("facets",): "Each class gets its images in these shares.",
    ("verification",): _VERIFICATION,
}


@click.command("convert")
@click.argument("file", type=click.Path())
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, as for `plan`."
)
def command(file: str, out: str | None, overrides: tuple[str, ...]) -> None:
    """Convert FILE, a legacy JSON config (`dataset_balancing_config`), to YAML.

    Lists fields that could not be used with their reasons, on stderr and in the YAML. `plan` and `run` also
    read such a FILE directly.
    """
    from balancer.config import legacy
    from balancer.config import yaml_writing as configyaml
    from balancer.config.load import apply_override, config_error, examine, read_config_file

    if out is not None:
        configyaml.check_free(out)
    document = read_config_file(file)
    if not legacy.is_legacy(document):
        hint = "only legacy configs need a conversion; `balancer plan` reads all others"
        raise UsageError(f"{file}: not a legacy config: it has no `{legacy.BLOCK}`", hint=hint)
    converted = legacy.convert(document)
    for override in overrides:
        apply_override(converted.document, override)
    places = converted.document.places
    still = tuple(each for each in converted.assumed if not places[each.path].startswith("--set "))
    converted = replace(converted, assumed=still)
    _, problems = examine(converted.document)
    if any(problem.path != ("dataset", "path") for problem in problems):
        raise config_error(problems)
    text = _as_yaml(converted, file, has_dataset=not problems)
    _tell(converted, has_dataset=not problems)
    if out is None:
        console.emit(text.encode())
    else:
        configyaml.create_file(out, text)
        console.say(f"{out}: written; {suggested('plan', out)} shows the plan")


def _as_yaml(converted: Converted, file: str, *, has_dataset: bool) -> str:
    from balancer.config.schema import Config
    from balancer.config.yaml_writing import yaml_text

    value = cast("dict[str, object]", converted.document.value)
    if not has_dataset:
        value = {**value, "dataset": {**cast("dict[str, object]", value.get("dataset", {})), "path": None}}
    order = list(Config.model_fields)
    above = _SECTIONS | {problem.path: f"Chosen here: {problem.text}." for problem in converted.assumed}
    missing: dict[KeyPath, str] = (
        {} if has_dataset else {("dataset", "path"): "fill this in: the legacy file does not say it"}
    )
    return yaml_text(
        dict(sorted(value.items(), key=lambda item: order.index(item[0]))),
        heading=_heading(converted, file),
        above=above,
        beside=missing,
    )


def _heading(converted: Converted, file: str) -> str:
    lines = [f"Converted from {file}, a legacy config."]
    if converted.unused:
        lines_only = [replace(it, place=f"line {it.place.rpartition(':')[2]}") for it in converted.unused]
        lines += ["", "Fields not used:", *(f"  {line}" for line in _lines(lines_only))]
    return "\n".join(lines)


def _tell(converted: Converted, *, has_dataset: bool) -> None:
    for line in _lines(converted.unused):
        console.note(f"not used: {line}")
    for line in _lines(converted.assumed):
        console.note(f"chosen here: {line}")
    if not has_dataset:
        console.warn("dataset.path is empty, because the file does not say where the images are: fill it in")


def _lines(problems: Iterable[ConfigProblem]) -> list[str]:
    from balancer.config.explain import format_problem

    return [format_problem(problem) for problem in problems]
