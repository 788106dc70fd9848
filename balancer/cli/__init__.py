"""The `balancer` command. Each subcommand has its own file, imported only when it is called.

Each file defines `command`. A command returns on success, calls `ctx.exit(code)` for another exit code, and
raises a `BalancerError` on failure, which is printed here as `error: ...` and `hint: ...`.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple, cast

import click

from balancer.cli import streams
from balancer.errors import BalancerError, StorageError, UnavailableError, UsageError
from balancer.process.early import end_command, leave_command
from balancer.process.limits import refuse_too_few_processes
from balancer.process.shadowed import refuse_shadowed
from balancer.process.signals import StopSignal, caught
from balancer.text.safetext import has_credentials, printable, redacted


class Listing(NamedTuple):
    """Where a command's module is (`balancer/cli/FOLDER/NAME.py`), its line in `balancer --help`, which
    imports no command, and whether it imports the package `actors`."""

    folder: str
    help: str
    uses_actors: bool = False


COMMANDS = {
    "sample": Listing("datasets", "Render the sample dataset."),
    "audit": Listing("datasets", "Count a dataset's images, and list its problems."),
    "init": Listing("datasets", "Write a config for a dataset, to edit."),
    "convert": Listing("datasets", "Convert a legacy JSON config to YAML."),
    "calibrate": Listing(
        "datasets", "Fit the verifier's probabilities to labelled real images.", uses_actors=True
    ),
    "plan": Listing("datasets", "Show what a run would generate, and what it would cost.", uses_actors=True),
    "adapt": Listing("runs", "Train LoRA adapters on the training images.", uses_actors=True),
    "run": Listing("runs", "Generate, verify and commit images until every quota is met.", uses_actors=True),
    "submit": Listing("runs", "Run on a Ray cluster, Kubernetes or Slurm.", uses_actors=True),
    "status": Listing("runs", "Show how far a run is."),
    "watch": Listing("runs", "Show a run live in a browser."),
    "review": Listing("runs", "Let people accept or reject a run's images in a browser."),
    "rejudge": Listing("runs", "Judge a run's candidates again under other limits."),
    "query": Listing("runs", "Select rows of a run's manifest."),
    "report": Listing("runs", "Write a run's report, one HTML file."),
    "evaluate": Listing("runs", "Decide whether a run's images make a classifier better.", uses_actors=True),
    "compact": Listing("upkeep", "Make queries of a long run fast."),
    "export": Listing("runs", "Write a run's images for other tools."),
    "reproduce": Listing("runs", "Make a run's images again and compare.", uses_actors=True),
    "fsck": Listing("upkeep", "Check a run's manifest and every image it names."),
    "repair": Listing("upkeep", "Save what can be saved of a damaged manifest."),
    "gc": Listing("upkeep", "List files of a run that nothing needs, or delete them."),
    "doctor": Listing("datasets", "Check this machine: versions, GPUs, Ray, weights.", uses_actors=True),
}


class _Failure(click.ClickException):
    """The lines a failed command prints to stderr, and its exit code."""

    def __init__(self, lines: Sequence[str], exit_code: int) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = exit_code  # type: ignore[misc]  # click's main() reads it off the instance

    def show(self, file: IO[Any] | None = None) -> None:
        with suppress(OSError):
            print(self.message, file=file or sys.stderr, flush=True)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if COMMANDS[cmd_name].uses_actors:
            refuse_shadowed()
        module = importlib.import_module(f"balancer.cli.{COMMANDS[cmd_name].folder}.{cmd_name}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, listing.help) for name, listing in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            question = f", did you mean `{near[0]}`?" if near else ""
            raise click.UsageError(f"no command `{args[0]}`{question}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        streams.prepare()
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            leave_command(end.code)
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _failures_as_lines(StopSignal()), streams.results():  # of --help and --version
            _refuse_credentials(args)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with caught() as stop, _failures_as_lines(stop):
            _refuse_lost_folder()
            refuse_too_few_processes()
            result: object = super().invoke(ctx)
            with streams.results():
                pass  # a closed pipe is noticed here, and causes no traceback at exit
            return result


def _refuse_credentials(args: Sequence[str]) -> None:
    """Called before anything could print them."""
    for number, arg in enumerate(args, start=1):
        if has_credentials(arg):
            raise UsageError(
                f"argument {number} contains a user name or password, so it is not shown",
                hint="credentials and options come from the environment, never from an address",
            )


_NOT_A_NUMBER = re.compile(r"is not a valid (float|integer)(?: range)?\.")


def _plain(message: str) -> str:
    """click's message without its names of types."""
    nouns = {"float": "a number", "integer": "a whole number"}
    return _NOT_A_NUMBER.sub(lambda match: f"is not {nouns[match[1]]}.", message)


def _refuse_lost_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise StorageError("the working folder is gone", hint="cd to a folder that is there") from error


@contextmanager
def _failures_as_lines(stop: StopSignal) -> Iterator[None]:
    try:
        yield
    except BalancerError as error:
        raise _failure(_error_lines(error.message, error.hint), error.exit_code) from error
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "balancer"
        lines = _error_lines(_plain(error.format_message()), f"`{command} --help` shows what it takes")
        raise _failure(lines, error.exit_code) from error
    except KeyboardInterrupt as error:
        stop.raises = False
        streams.abandon_stdout()
        number = stop.number or signal.SIGINT
        end_command(number)
        raise _failure(["interrupted"], 128 + number) from error
    except BrokenPipeError as error:
        streams.abandon_stdout()
        raise click.exceptions.Exit(128 + signal.SIGPIPE) from error
    except OSError as error:
        lines = _error_lines(_refusal(error), _LIMITS.get(error.errno or 0, ""))
        raise _failure(lines, StorageError.exit_code) from error
    except Exception as error:
        if not (reason := _exhausted_resource(error)):
            raise
        hint = "raise the limits of the process (`ulimit -u` and `ulimit -v`), or free memory"
        raise _failure(_error_lines(reason, hint), UnavailableError.exit_code) from error


def _failure(lines: Sequence[str], exit_code: int) -> _Failure:
    streams.abandon_stdout()
    return _Failure(lines, exit_code)


_LIMITS = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space in the quota",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`)",
    errno.ENOMEM: "free some memory",
}
"""Hints for system errors that no other code explains."""


def _exhausted_resource(error: BaseException) -> str:
    """Which resource ran out, for errors other than OSError; empty for any other error."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if any(text in str(error) for text in ("can't start new thread", "Failed to launch worker thread")):
        return "cannot start another thread"
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return "not enough memory to load a library"
    return ""


def _refusal(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


def _error_lines(message: str, hint: str) -> list[str]:
    lines = [f"error: {printable(redacted(line))}" for line in message.split("\n")]
    return [*lines, f"hint: {printable(redacted(hint))}"] if hint else lines


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("balancer")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"balancer {version}")
    ctx.exit()


@click.group(cls=_Commands, name="balancer", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
def main() -> None:
    """Balance an image dataset: generate the images its classes lack, and keep those that pass verification.

    Exit codes: 0 every quota met, 1 error, 2 usage or config, 3 ended with images missing,
    4 something missing (GPU, Ray, weights, storage), 5 another driver took the run over,
    129, 130, 143 interrupted by SIGHUP, SIGINT, SIGTERM.
    """
