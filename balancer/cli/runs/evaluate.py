"""`balancer evaluate`: whether the generated images of a run make a classifier better."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.errors import UsageError

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.manifest.runfile import RunInfo

SECTION = "evaluation."


@click.command("evaluate")
@click.argument("run", metavar="RUN")
@click.option(
    "--config", "config_file", type=click.Path(), help="Take `evaluation` and the hold-out from here."
)
@click.option("--depth", type=click.Choice(["quick", "full"]), help="Override evaluation.depth.")
@click.option("--seeds", type=int, metavar="N", help="Override evaluation.seeds.")
@click.option("--holdout", metavar="FOLDER", help="Held-out real images, laid out like the dataset.")
@click.option("--address", default=None, help="Ray cluster, host:port or `auto`.  [default: RAY_ADDRESS]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a setting of the section `evaluation`, such as evaluation.margin=0.01.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: str,
    config_file: str | None,
    depth: str | None,
    seeds: int | None,
    holdout: str | None,
    address: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Decide by an experiment whether the generated images of RUN make a classifier better.

    Trains with and without them, with several seeds, and tests on held-out real images: add, do not add, or
    cannot tell, and what would be needed to tell. Exits with 0 whatever it decides. The results are in
    RUN/evaluation; the same command goes on where it was stopped.
    """
    from actors.evaluation.evaluate import Reporter, evaluate
    from balancer.evaluation.outcome import PRINTED
    from balancer.manifest.runfile import read_run
    from balancer.storage import open_storage

    given = {"depth": depth, "seeds": seeds}
    settings = [
        *overrides,
        *(f"{SECTION}{name}={value}" for name, value in given.items() if value is not None),
    ]
    config = _config(read_run(open_storage(run, create=False)), config_file, settings, holdout)
    watched: list[Any] = []

    def progress(done: int, total: int) -> None:
        if not watched:
            watched.append(stack.enter_context(console.counting("trainings", total)))
        watched[0](done)

    with contextlib.ExitStack() as stack:
        outcome = evaluate(run, config, address=address, reporter=Reporter(console.note, progress))
    if as_json:
        console.print_json({name: outcome[name] for name in PRINTED})
    else:
        _print(outcome)


def _config(info: RunInfo, config_file: str | None, settings: list[str], holdout: str | None) -> Config:
    """The config of the run with the settings of this evaluation. Which cluster may be joined is the user's
    to say: the run may be from somebody else."""
    from balancer.config.load import load_config, validate_document
    from balancer.config.schema import Config
    from balancer.config.yaml_reading import Document

    for setting in settings:
        if not setting.startswith(SECTION):
            raise UsageError(f"--set {setting}: only settings of `evaluation` have an effect here")
    config = info.config_as(Config)
    if config_file is not None:
        loaded = load_config(config_file, settings)
        folder = loaded.dataset.holdout
    else:
        values = {"classes": {"any": {"prompts": ["any"]}}, "target": {"per_class": 1}}
        kept = info.config.get("evaluation")
        document = Document({**values, **({"evaluation": dict(kept)} if isinstance(kept, dict) else {})})
        loaded = validate_document(document, settings)
        folder = config.dataset.holdout
    dataset = config.dataset.model_copy(update={"holdout": folder if holdout is None else holdout})
    changed = config.model_copy(
        update={"evaluation": loaded.evaluation, "dataset": dataset, "actors": loaded.actors}
    )
    return changed.with_bases(loaded.bases)


def _print(outcome: dict[str, Any]) -> None:
    from balancer.evaluation.sentence import class_needs, points

    rows = [(name, _share(each["mean"]), _range(each)) for name, each in outcome["arms"].items()]
    console.table(f"{outcome['metric']} of each arm", ["arm", "mean", "95 % interval"], rows)
    console.say()
    verdicts = [
        (
            name,
            each["decision"],
            None if each["difference"] is None else points(each["difference"]),
            None if each["low"] is None else f"{points(each['low'])} to {points(each['high'])}",
            each["test_images"],
            class_needs(each["needed"], each["needed_seeds"], each["needed_together"]) or None,
        )
        for name, each in outcome["classes"].items()
    ]
    columns = ["class", "verdict", "recall, points", "95 % interval", "test images", "needed"]
    console.first_rows("classes", columns, verdicts, "classes", every=False)
    console.say()
    console.say(outcome["sentence"])
    for line in outcome["notes"]:
        console.say(line)


def _share(value: float) -> str:
    return f"{value:.3f}"


def _range(each: dict[str, float]) -> str:
    return f"{_share(each['low'])} to {_share(each['high'])}"
