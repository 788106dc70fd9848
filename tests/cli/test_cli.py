from __future__ import annotations

import datetime
import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.cells import cell_len

from balancer import errors
from balancer.cli import COMMANDS, console, main
from balancer.config.load import load_config
from balancer.images import NAMES_OF_FORMATS
from balancer.planning.plan import make_plan
from balancer.runs.resume import describe_run, restore_schedule
from balancer.scheduling.progress import ClassProgress, Snapshot, progress_line
from balancer.storage import open_storage
from balancer.text.quantities import duration
from tests.fake_terminal import use_terminal
from tests.manifest_samples import rejected, row, start

HEAVY = (
    "ray",
    "torch",
    "diffusers",
    "open_clip",
    "transformers",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "duckdb",
    "obstore",
    "boto3",
)


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


@pytest.fixture
def status_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Put something else behind `balancer status`."""

    def replace(callback: Callable[[], None]) -> None:
        module = SimpleNamespace(command=click.Command("status", callback=callback))
        monkeypatch.setitem(sys.modules, "balancer.cli.runs.status", module)

    return replace


def raising(error: BaseException) -> Callable[[], None]:
    def callback() -> None:
        raise error

    return callback


# What starting costs


def loaded_after(project: Path, statement: str) -> set[str]:
    """The heavy packages that are loaded after a statement in an interpreter of its own."""
    listing = f"import sys\nprint(*(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    code = f"{statement}\n{listing}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "statement", ["import balancer.cli", "import balancer.cli.console", "import balancer"]
)
def test_importing_the_command_line_loads_nothing_heavy(project: Path, statement: str):
    assert loaded_after(project, statement) == set()


def test_listing_the_commands_loads_nothing_heavy(project: Path):
    statement = "from balancer.cli import main; main(['--help'], standalone_mode=False)"
    assert loaded_after(project, statement) == set()


def test_help_of_any_command_loads_nothing_heavy(project: Path):
    statement = f"""
from balancer.cli import main
for name in {tuple(COMMANDS)!r}:
    main([name, "--help"], standalone_mode=False)"""
    assert loaded_after(project, statement) == set()


# The group


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists_and_has_help(name: str):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: balancer {name} ")


def test_help_lists_every_command():
    listed = invoke("--help").stdout
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_the_version_is_one_line():
    result = invoke("--version")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "balancer")


def test_the_module_can_be_run_as_a_program(project: Path):
    command = [sys.executable, "-m", "balancer", "--help"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: balancer [OPTIONS] COMMAND")


def test_a_misspelt_command_names_the_right_one():
    result = invoke("pln")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: no command `pln`, did you mean `plan`?\nhint: `balancer --help` shows what it takes\n"
    )


def test_a_command_like_no_other_is_refused_without_a_guess():
    assert invoke("xyzzy").stderr.startswith("error: no command `xyzzy`\n")


@pytest.mark.parametrize("args", [["--fast"], ["plan"], ["plan", "--fast", "job.yaml"], ["plan", "a", "b"]])
def test_a_wrong_call_is_two_lines_and_exit_code_2(args: Sequence[str]):
    result = invoke(*args)
    error, hint = result.stderr.splitlines()
    assert (result.exit_code, error[:7], hint[:6]) == (2, "error: ", "hint: ")


# How commands end


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.BalancerError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ConfigError(["x"]), 2),
        (errors.DatasetError("x"), 2),
        (errors.UnavailableError("x"), 4),
        (errors.ClusterError("x"), 4),
        (errors.WeightsError("x"), 4),
        (errors.StorageError("x"), 4),
        (errors.ManifestError("x"), 1),
        (errors.StalledError("x"), 1),
        (errors.FencedError("x"), 5),
        (errors.InterruptedRun("x", signal_number=2), 130),
        (errors.InterruptedRun("x", signal_number=15), 143),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_code(
    error: errors.BalancerError, exit_code: int, status_does: Callable[[Callable[[], None]], None]
):
    status_does(raising(error))
    result = invoke("status")
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", "error: x\n")


def test_every_error_of_the_tree_is_tested_above():
    def below(kind: type[errors.BalancerError]) -> set[str]:
        children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
        return {kind.__name__}.union(*(below(child) for child in children))

    (mark,) = [m for m in test_each_error_has_its_exit_code.pytestmark if m.name == "parametrize"]
    assert {type(error).__name__ for error, _ in mark.args[1]} == below(errors.BalancerError)


def test_a_hint_is_a_line_of_its_own(status_does: Callable[[Callable[[], None]], None]):
    status_does(raising(errors.ClusterError("3 GPUs asked, 2 are there", hint="lower actors.generators")))
    assert invoke("status").stderr == "error: 3 GPUs asked, 2 are there\nhint: lower actors.generators\n"


def test_each_problem_of_a_config_is_a_line(status_does: Callable[[Callable[[], None]], None]):
    status_does(raising(errors.ConfigError(["a.yaml:1: x", "a.yaml:2: y"])))
    assert invoke("status").stderr == "error: a.yaml:1: x\nerror: a.yaml:2: y\n"


def test_an_error_cannot_steer_the_terminal(status_does: Callable[[Callable[[], None]], None]):
    status_does(raising(errors.UsageError("no file \x1b[2Jx")))
    assert invoke("status").stderr == "error: no file \\x1b[2Jx\n"


def test_what_the_system_refuses_is_a_line_with_the_limit_that_helps(
    status_does: Callable[[Callable[[], None]], None],
):
    status_does(raising(OSError(errno.EMFILE, "Too many open files", "a\x1b")))
    result = invoke("status")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [
        "error: a\\x1b: too many open files",
        "hint: raise the limit of open files (`ulimit -n`)",
    ]


def test_ctrl_c_is_130_without_a_traceback(status_does: Callable[[Callable[[], None]], None]):
    status_does(raising(KeyboardInterrupt()))
    result = invoke("status")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_an_unexpected_exception_keeps_its_traceback(status_does: Callable[[Callable[[], None]], None]):
    bug = ZeroDivisionError("a bug")
    status_does(raising(bug))
    assert invoke("status").exception is bug


def test_a_command_may_end_with_its_own_exit_code(status_does: Callable[[Callable[[], None]], None]):
    status_does(lambda: click.get_current_context().exit(3))
    assert invoke("status").exit_code == 3


def test_a_reader_that_goes_away_is_no_error(project: Path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "balancer", "--help"],
        cwd=project,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


# balancer plan

PLAN = ("plan", "job.yaml", "--no-preflight")


@pytest.fixture
def small_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Classes a (2 images) and b (none), three wanted of each, half of them dark."""
    monkeypatch.chdir(tmp_path)
    for n, colour in enumerate(["red", "blue"]):
        (tmp_path / "data/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"data/a/{n}.png")
    (tmp_path / "job.yaml").write_text(
        """\
dataset: {path: data}
target: {per_class: 4}
classes:
  a: {prompts: [an a]}
  b: {prompts: [a b]}
facets:
  light:
    classes: [b]
    values:
      dark: {prompts: [dark]}
      bright: {prompts: [bright]}
generation: {width: 64, height: 64}
planning: {acceptance: 1, seconds_per_candidate: 10}
actors: {generators: 2}
output: {real_images: reference}
"""
    )
    return tmp_path


def test_plan_prints_classes_facets_and_cost_before_the_cells(small_job: Path):
    result = invoke(*PLAN)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        """\
6 images to generate in 3 cells of 2 classes
  class  now  to generate  then  target
  a        2            2     4       4
  b        0            4     4       4

light
  value   to generate
  dark              2
  bright            2

estimate
  what                  expected  basis
  candidates            6         6 images, 100% of candidates pass (planning.acceptance), up to 3 attempts
  images missing        0         0% of slots fail all 3 attempts, which pass at 100% (planning.acceptance), if all cells pass alike
  time                  0:30      6 candidates of 10 s each (planning.seconds_per_candidate), 2 generators (actors.generators)
  cost                  -         set planning.cost_per_generator_hour for an estimate
  disk                  44 kB     6 images of 7 kB (60 % of raw pixels; planning.bytes_per_image)
  candidates per image  1         100% of candidates pass (planning.acceptance)
  time per image        10 s      1 candidates of 10 s each (planning.seconds_per_candidate) on one generator
  cost per image        -         set planning.cost_per_generator_hour for an estimate

cells, in the order in which they are begun; all are filled to the same share
  priority  class  light   images
  critical  b      dark         2
  high      a      -            2
  critical  b      bright       2
"""  # noqa: E501
    )


@pytest.fixture
def large_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 classes of 8 cells, which lack 1 to 60 images."""
    monkeypatch.chdir(tmp_path)
    names = [f"class{number:02d}" for number in range(60)]
    for name in names:
        (tmp_path / "dataset" / name).mkdir(parents=True)
    config = {
        "dataset": {"path": "dataset"},
        "classes": {name: {"prompts": [name]} for name in names},
        "facets": {"light": {"values": {f"light{n}": {"prompts": ["x"]} for n in range(8)}}},
        "target": {"classes": {name: number + 1 for number, name in enumerate(names)}},
        "actors": {"kind": "simulated"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    return tmp_path


def test_plan_of_many_classes_begins_with_a_summary_and_lists_those_that_lack_most(large_job: Path):
    lines = invoke("plan", "job.yaml").stdout.splitlines()
    assert lines[:3] == [
        "priorities", "  priority  classes  cells  images", "  critical       60    452    1830",
    ]  # fmt: skip
    assert lines[4] == "1830 images to generate in 452 cells of 60 classes"
    assert lines[6].split() == ["class59", "0", "60", "60", "60"]
    assert "  and 10 more classes, which lack no more (--all lists them)" in lines
    assert lines[-1] == "  and 402 more cells (--all lists them)"


def test_plan_lists_all_if_asked(large_job: Path):
    lines = invoke("plan", "job.yaml", "--all").stdout.splitlines()
    assert lines[2].split() == ["class00", "0", "1", "1", "1"]
    assert not any("--all" in line for line in lines)
    assert len([line for line in lines if line.startswith("  critical")]) == 452


def test_plan_warns_of_some_of_many_classes_that_stay_below_their_target(large_job: Path):
    arguments = ("plan", "job.yaml", "--set", "target.max_synthetic_share=0.5")
    warnings = [line for line in invoke(*arguments).stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == console.LISTED + 1
    assert warnings[-1] == "warning: the same of 10 more classes (--all lists them)"
    assert invoke(*arguments, "--all").stderr.count("target.max_synthetic_share allows no more") == 60


def test_plan_lists_cells_in_the_order_in_which_a_run_begins_them(large_job: Path):
    config = load_config("job.yaml")
    models: dict[str, dict[str, Any]] = {
        "generator": {"model": "m", "revision": None},
        "verifier": {"model": "m", "revision": None, "embedding_dim": 8},
    }
    info = describe_run(config, make_plan(config, {}), models)
    schedule = restore_schedule(info, config, info.schema().empty_table(), None)
    begun = dict.fromkeys(candidate.slot.cell.key for candidate in schedule.next_batch(10_000))
    cells = json.loads(invoke("plan", "job.yaml", "--json").stdout)["cells"]
    assert [f"{cell['class']}/{cell['light']}" for cell in cells] == list(begun)


def test_plan_as_json_is_one_object(small_job: Path):
    plan = json.loads(invoke(*PLAN, "--json").stdout)
    assert plan["total"] == 6
    assert plan["classes"] == {
        "a": {"now": 2, "to_generate": 2, "then": 4, "target": 4},
        "b": {"now": 0, "to_generate": 4, "then": 4, "target": 4},
    }
    assert plan["cells"] == [
        {"class": "b", "light": "dark", "quota": 2, "priority": "critical"},
        {"class": "a", "light": None, "quota": 2, "priority": "high"},
        {"class": "b", "light": "bright", "quota": 2, "priority": "critical"},
    ]
    assert (plan["estimate"]["candidates"], plan["estimate"]["hours"]) == (6, pytest.approx(1 / 120))


def test_plan_says_which_cells_are_made_from_real_images(small_job: Path):
    conditioned = (*PLAN, "--set", "generation.conditioning=image", "--set", "generation.steps=10")
    plan = json.loads(invoke(*conditioned, "--json").stdout)
    assert [cell["conditioning"] for cell in plan["cells"]] == ["text", "image", "text"]
    told = plan["conditioning"]
    assert (told["strengths"], told["from_parents"], told["from_text"]) == ([0.5, 0.7, 0.9], 2, 4)
    assert told["parents"]["by_class"] == {"a": 2, "b": 0}
    shown = invoke(*conditioned).stdout
    assert "attempts at strength 0.5, 0.7, 0.9 run about 5, 7, 9 of 10 steps" in shown
    anywhere = invoke(*conditioned, "--json", "--set", "generation.contexts=dataset")
    assert json.loads(anywhere.stdout)["conditioning"]["from_text"] == 0
    assert json.loads(invoke(*PLAN, "--json").stdout)["conditioning"] is None


def test_plan_says_how_many_images_are_kept_apart_and_does_not_count_them(small_job: Path):
    shares = "dataset.splits={train: 0.5, test: 0.5}"
    result = invoke(*PLAN, "--json", "--set", shares)
    assert "1 real image is for validation or test (dataset.splits), and not counted" in result.stderr
    assert json.loads(result.stdout)["total"] == 7


def test_plan_takes_overrides(small_job: Path):
    plan = json.loads(invoke(*PLAN, "--json", "--set", "target.per_class=3").stdout)
    assert plan["total"] == 4


def test_plan_takes_what_an_earlier_run_has_measured(small_job: Path):
    run = open_storage("earlier", create=True)
    start(run).commit([row("basic/dim/0000", num_bytes=5000), rejected("basic/dim/0001")])
    estimate = json.loads(invoke(*PLAN, "--json", "--measured", "earlier").stdout)["estimate"]
    assert (estimate["candidates_per_image"], estimate["bytes"]) == (2, 30_000)
    assert estimate["candidates_per_image_basis"].endswith("/earlier)")
    assert "of 10 s each (planning.seconds_per_candidate)" in estimate["hours_basis"]


def test_plan_says_that_there_is_nothing_to_generate_only_where_it_is_so(small_job: Path):
    assert "nothing to generate" not in invoke(*PLAN).stdout
    (small_job / "data/b").mkdir(exist_ok=True)
    (small_job / "data/b/0.png").write_bytes((small_job / "data/a/0.png").read_bytes())
    met = invoke(*PLAN, "--set", "target.per_class=1").stdout
    assert met.startswith(
        "nothing to generate: every class has its target (`target` in the config sets it)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gc", "run", "--older-than", "x"], "'--older-than': 'x' is not a number."),
        (["sample", "out", "--seed", "x"], "'--seed': 'x' is not a whole number."),
    ],
)
def test_an_option_that_is_no_number_is_told_so_in_plain_words(arguments: Sequence[str], problem: str):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: Invalid value for {problem}\nhint: ")


def test_plan_measures_nothing_where_there_is_no_run(small_job: Path):
    result = invoke(*PLAN, "--measured", "data")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "data is not a run folder" in result.stderr


def test_plan_warns_of_images_that_are_unreadable_or_copies(small_job: Path):
    (small_job / "data/a/broken.png").write_bytes(b"not a picture")
    (small_job / "data/a/copy.png").write_bytes((small_job / "data/a/0.png").read_bytes())
    result = invoke(*PLAN, "--json")
    assert json.loads(result.stdout)["total"] == 5
    assert result.stderr == (
        f"warning: 1 image cannot be read, so it is not counted: a/broken.png: not a {NAMES_OF_FORMATS} image"
        " (`balancer audit data` lists it)\n"
        "warning: exact duplicates, counted: 1 (`balancer audit data` lists them)\n"
    )


def test_the_plan_of_the_demo_is_the_reference_case(project: Path):
    result = invoke("plan", str(project / "configs/demo.yaml"), "--json", "--no-preflight")
    plan = json.loads(result.stdout)
    assert (plan["total"], len(plan["cells"])) == (244, 32)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("nowhere.yaml", "error: config nowhere.yaml does not exist"),
        ("data", "error: config data is a folder, not a file"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line_and_exit_code_2(config: str, line: str, small_job: Path):
    result = invoke("plan", config)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{line}\n")


@pytest.mark.parametrize(
    ("setting", "exit_code", "line"),
    [
        ("dataset.path=nowhere", 2, "nowhere"),
        ("classes.a.promts=[x]", 2, "--set classes.a.promts=[x]: classes.a.promts: unknown key `promts`"),
        ("classes={b: {prompts: [x]}}", 2, "folder 'a' is not a class of the config"),
    ],
)
def test_what_cannot_be_planned_is_an_error_line(setting: str, exit_code: int, line: str, small_job: Path):
    result = invoke(*PLAN, "--set", setting)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert line in result.stderr.splitlines()[0]


# The console


def snapshot(**changes: Any) -> Snapshot:
    usual = Snapshot(
        wanted=244,
        accepted=131,
        short=0,
        candidates=160,
        rejected_by_reason={"lighting": 21, "burn_level": 8},
        by_class={"basic": ClassProgress(20, 20), "burnt [x]": ClassProgress(24, 11, 1)},
        elapsed_s=40.0,
        accepted_per_s=4.1,
        candidates_per_s=5.0,
        eta_s=27.4,
        generators_busy=2,
        generators=2,
        in_flight=32,
    )
    return replace(usual, **changes)


def test_a_progress_line_says_it_all():
    assert progress_line(snapshot()) == (
        "accepted 131/244 (54%) candidates 160 rejected 18% [lighting 21 burn_level 8] "
        "4.1/s eta 0:27 generators 2/2 busy in flight 32"
    )


def test_a_progress_line_before_anything_is_known():
    line = progress_line(
        snapshot(accepted=0, candidates=0, rejected_by_reason={}, accepted_per_s=0.0, eta_s=None, short=2)
    )
    assert line == ("accepted 0/244 (0%) short 2 candidates 0 0.00/s eta - generators 2/2 busy in flight 32")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, 12, 40, 10, tzinfo=datetime.UTC) + datetime.timedelta(
            seconds=self.seconds
        )


def lines_at(times: Sequence[float]) -> list[str]:
    """The progress lines of a run with a snapshot at each of these seconds, numbered as candidates."""
    clock, stream = Clock(), io.StringIO()
    display = console.LineDisplay(stream, clock, clock.now)
    for number, clock.seconds in enumerate(times):
        display.update(snapshot(candidates=number, rejected_by_reason={}))
    display.close()
    return stream.getvalue().splitlines()


def test_counts_are_told_every_ten_seconds(capsys):
    clock = Clock()
    count = console._counted_lines("images exported", 8, clock)
    for done, passed_s in ((1, 0), (2, 9), (3, 1), (4, 5), (6, 5)):
        clock.seconds += passed_s
        count(done)
    assert capsys.readouterr().err.splitlines() == [
        "3 of 8 images exported (38%)",
        "6 of 8 images exported (75%)",
    ]


def test_on_a_terminal_counts_are_a_bar(monkeypatch):
    monkeypatch.setattr("balancer.cli.console._is_terminal", lambda stream: True)
    shown: list[int] = []
    update = "rich.progress.Progress.update"
    monkeypatch.setattr(update, lambda self, task, completed: shown.append(completed))
    with console.counting("images exported", 2) as count:
        count(1)
        count(2)
    assert shown == [1, 2]


@pytest.mark.parametrize("name", ["audit", "init", "plan"])
def test_what_reads_a_dataset_says_how_far_it_is(monkeypatch, tmp_path, name):
    for place in range(2):
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / "photos" / "cat" / f"{place}.png")
    (tmp_path / "job.yaml").write_text(
        "classes: {cat: {prompts: [cat]}}\ndataset: {path: photos}\ntarget: {per_class: 3}\n"
    )
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
    monkeypatch.setattr("balancer.dataset.decoding.decoders.COUNT_EVERY_S", 0.01)
    given = tmp_path / ("photos" if name in ("audit", "init") else "job.yaml")
    result = invoke(name, str(given), *(["--no-preflight"] if name == "plan" else []))
    assert "2 of 2 images read (100%)" in result.stderr.splitlines()


def test_progress_lines_are_ten_seconds_apart():
    lines = lines_at([0, 1, 9.9, 10, 15, 30])
    assert [line[:8] for line in lines] == ["12:40:10", "12:40:20", "12:40:40"]


def test_the_last_snapshot_is_always_printed_and_once():
    lines = lines_at([0, 1, 2])
    assert [line.partition("candidates ")[2][0] for line in lines] == ["0", "2"]


def test_without_a_snapshot_nothing_is_printed():
    assert lines_at([]) == []


def test_off_a_terminal_progress_goes_to_stderr_as_lines(capsys: pytest.CaptureFixture[str]):
    with console.progress_display("demo") as display:
        display.update(snapshot())
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("accepted 131/244")) == ("", 1)


def test_on_a_terminal_progress_shows_every_class(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch)
    with console.progress_display("demo") as display:
        display.update(snapshot())
        console.note("a note in between")
    shown = terminal.getvalue()
    for text in ("demo", "basic", "burnt [x]", "11/24", "1 short", "eta 0:27", "a note in between"):
        assert text in shown


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch, "dumb")
    with console.progress_display("demo") as display:
        display.update(snapshot())
    assert terminal.getvalue()[9:].startswith("accepted 131/244")


def test_a_table_on_a_terminal_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch)
    console.table("title", ["name", "count"], [["[red]x", 3]])
    assert "[red]x" in terminal.getvalue()


def test_a_plain_table_aligns_numbers_right_and_shows_nothing_as_a_dash(capsys: pytest.CaptureFixture[str]):
    console.table("title", ["name", "count"], [["a", 3], ["longer", None], ["b", 12]])
    assert capsys.readouterr().out == (
        "title\n  name    count\n  a           3\n  longer      -\n  b          12\n"
    )


def test_a_narrow_terminal_wraps_text_between_words_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch, columns=30)
    name, text = "a-name-without-any-space-in-it", "several words that do not fit"
    console.table("title", ["name", "detail"], [[name, text]])
    shown = terminal.getvalue()
    assert name in shown
    assert "…" not in shown
    assert set(text.split()) <= set(shown.split())
    assert text not in shown


def test_on_one_line_nothing_wraps_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch, columns=30)
    rows = [["thin crust/dim/0000-1", "several words that do not fit"]] * 2
    console.table("title", ["id", "prompt"], rows, one_line=True)
    for text in rows[0]:
        assert terminal.getvalue().count(text) == 2


@pytest.mark.parametrize("one_line", [True, False])
@pytest.mark.parametrize("terminal_columns", [1, 20, 40, 80, 120])
def test_however_narrow_the_terminal_every_column_and_cell_of_a_table_is_shown(
    monkeypatch: pytest.MonkeyPatch, terminal_columns: int, one_line: bool
):
    terminal = use_terminal(monkeypatch, columns=terminal_columns)
    columns = [f"column_{number}" for number in range(9)]
    rows = [[f"{'long-' * number}cell/{line}/{number}" for number in range(8)] + [line] for line in range(3)]
    console.table("title", columns, rows, one_line=one_line)
    shown = re.sub(r"\x1b\[\d*m", "", terminal.getvalue()).split()
    for text in [*columns, *(str(cell) for line in rows for cell in line)]:
        assert text in shown


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
@pytest.mark.parametrize("wide", ["照り焼き", "क्रीम", "e\u0301clair"])
def test_columns_are_aligned_by_the_width_that_a_terminal_shows(
    monkeypatch: pytest.MonkeyPatch, kind: str, wide: str
):
    terminal = use_terminal(monkeypatch, kind)
    console.table("title", ["name", "next"], [[wide, "@"], ["plain", "@"]])
    found = {cell_len(line.partition("@")[0]) for line in terminal.getvalue().splitlines() if "@" in line}
    assert len(found) == 1


def test_a_table_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]):
    console.table("title", ["name"], [["a\x1b[31m\nb"]])
    assert capsys.readouterr().out.splitlines()[-1] == "  a\\x1b[31m\\nb"


STEERING = "\x1b[31m\x9b2J\u202e\u2066\u200b\x7f"
ESCAPED = "\\x1b[31m\\x9b2J\\u202e\\u2066\\u200b\\x7f"


def steers(text: str) -> bool:
    """Whether anything is left of it, rich's own colours aside."""
    return any(mark in text for mark in ("\x1b[31", "\x9b", "\u202e", "\u2066", "\u200b", "\x7f"))


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_titles_columns_and_cells_of_a_table_cannot_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch, kind: str
):
    terminal = use_terminal(monkeypatch, kind)
    console.table(STEERING, [f"{STEERING}1", "[red]x[/]"], [[STEERING, 1]])
    assert not steers(terminal.getvalue())
    assert terminal.getvalue().count(ESCAPED[:6]) == 3
    assert "[red]x[/]" in terminal.getvalue()


def test_a_live_display_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch)
    with console.progress_display(STEERING) as display:
        display.update(snapshot(by_class={STEERING: ClassProgress(1, 1)}))
    assert not steers(terminal.getvalue())


def test_a_live_display_of_many_classes_shows_those_that_are_least_full(monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch)
    by_class = {f"class{n:04d}": ClassProgress(100, 100 - n // 50) for n in range(5000)}
    with console.progress_display("run") as display:
        display.update(snapshot(by_class=by_class))
    shown = set(re.findall(r"class\d{4}", terminal.getvalue()))
    assert shown == {f"class{n:04d}" for n in range(4950, 4950 + console.BARS)}
    assert f"and {5000 - console.BARS} classes that are fuller" in terminal.getvalue()


def test_csv_is_escaped_on_a_terminal_and_as_it_is_elsewhere(monkeypatch: pytest.MonkeyPatch):
    data = f"name\n{STEERING}\n".encode()
    terminal = use_terminal(monkeypatch)
    console.emit(data)
    assert terminal.getvalue() == f"name\n{ESCAPED}\n"
    pipe = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", pipe)
    console.emit(data)
    assert pipe.buffer.getvalue() == data


def test_json_is_text_as_it_is_and_has_no_nan(capsys: pytest.CaptureFixture[str]):
    console.print_json({"name": "é"})
    assert capsys.readouterr().out == '{\n  "name": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.print_json({"score": float("nan")})


def test_notes_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]):
    console.note("one")
    console.warn("two")
    assert capsys.readouterr() == ("", "one\nwarning: two\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (27.4, "0:27"), (59.6, "1:00"), (725, "12:05"), (7023, "1:57:03")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_an_audit_of_many_classes_lists_those_with_the_fewest_images(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        (tmp_path / "data" / f"class{number:02d}").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "class00" / "1.png")
    lines = invoke("audit", "data").stdout.splitlines()
    assert lines[0] == "data: 1 image of 60 classes"
    assert lines[2].split() == ["class01", "0", "0"]
    assert "  and 10 more classes, which have no fewer (--all lists them)" in lines
    assert "class00" not in " ".join(lines)
    every = invoke("audit", "data", "--all").stdout
    assert every.count("class") >= 60
    assert "--all" not in every
