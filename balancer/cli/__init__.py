"""The `balancer` command: one file per subcommand, imported when it is called and not before.

Each file defines `command`. A command ends well by returning, with another exit code by `ctx.exit(code)`,
and badly by raising a `BalancerError`, which is printed here as `error: ...` and `hint: ...`.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import click

from balancer.cli import streams
from balancer.errors import BalancerError, StorageError, UnavailableError, UsageError
from balancer.process.early import end_command, leave_command
from balancer.process.limits import refuse_too_few_processes
from balancer.process.shadowed import refuse_shadowed
from balancer.process.signals import StopSignal, caught
from balancer.text.safetext import has_credentials, printable, redacted

# What `balancer --help` says of each command, so that it need not import them all.
COMMANDS = {
    "sample": "Render the sample dataset.",
    "audit": "Count what a dataset has, and what is wrong with it.",
    "init": "Write a config for a dataset, to edit.",
    "convert": "Convert a legacy JSON config to YAML.",
    "calibrate": "Fit the verifier's probabilities to labelled real images.",
    "plan": "Show what a run would generate, and what it would cost.",
    "run": "Generate, verify and commit images until every quota is met.",
    "status": "Show how far a run is.",
    "rejudge": "Judge a run's candidates again under other limits.",
    "query": "Select rows of a run's manifest.",
    "report": "Write a run's report, one HTML file.",
    "compact": "Make queries of a long run fast.",
    "export": "Write a run's images for other tools.",
    "reproduce": "Make a run's images again and compare.",
    "fsck": "Check a run's manifest and every image it names.",
    "repair": "Save what can be saved of a damaged manifest.",
    "gc": "List files of a run that nothing needs, or delete them.",
    "doctor": "Check this machine: versions, GPUs, Ray, weights.",
}


WITH_ACTORS = ("calibrate", "doctor", "plan", "reproduce", "run")
"""Those that import the package `actors`."""

_FOLDERS = {
    **dict.fromkeys(("sample", "audit", "init", "convert", "calibrate", "plan", "doctor"), "datasets"),
    **dict.fromkeys(("run", "status", "rejudge", "query", "report", "export", "reproduce"), "runs"),
    **dict.fromkeys(("compact", "fsck", "repair", "gc"), "upkeep"),
}
"""Where each command's file stands, below this one."""


class _Failure(click.ClickException):
    """The lines a failed command leaves on stderr, and its exit code."""

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
        if cmd_name in WITH_ACTORS:
            refuse_shadowed()
        module = importlib.import_module(f"balancer.cli.{_FOLDERS[cmd_name]}.{cmd_name}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

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
                pass  # here, so that a reader that has gone away is noticed and not a traceback
            return result


def _refuse_credentials(args: Sequence[str]) -> None:
    """Before anything could repeat them."""
    for number, arg in enumerate(args, start=1):
        if has_credentials(arg):
            raise UsageError(
                f"argument {number} holds a user or a password, and is not repeated",
                hint="credentials and options come from the environment, never from an address",
            )


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
        lines = _error_lines(error.format_message(), f"`{command} --help` shows what it takes")
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
        if not (reason := _out_of(error)):
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
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`)",
    errno.ENOMEM: "there is too little memory",
}
"""What may help where the system refuses something in a place that has no better words for it."""


def _out_of(error: BaseException) -> str:
    """What the system did not give, for what is no OSError; empty if it is another error."""
    if isinstance(error, MemoryError):
        return "there is too little memory"
    if any(text in str(error) for text in ("can't start new thread", "Failed to launch worker thread")):
        return "no thread can be started"
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return "there is too little memory to load a library"
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
    """Fill up an image dataset: generate what its classes lack, keep what passes verification.

    Exit codes: 0 every quota met, 1 error, 2 usage or config, 3 ended with images missing,
    4 something missing (GPU, Ray, weights, storage), 5 another driver took the run over,
    129, 130, 143 interrupted by SIGHUP, SIGINT, SIGTERM.
    """
