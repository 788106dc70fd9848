"""A password in an address, or in what is almost one, is in no output and in no file, wherever given."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import balancer
from balancer.cli import COMMANDS, main
from balancer.config.schema import Config
from balancer.errors import ClusterError, ConfigError, UsageError
from balancer.storage import open_storage
from tests.manifest_samples import row, start

SECRET = "Pa55w0rd"
ADDRESSES = [
    f"file://u:{SECRET}@h/x",
    f"s3:/k:{SECRET}@b/x",
    f"s3://k:{SECRET}@b/x",
    f"//u:{SECRET}@h/x",
    f"https://h/x?X-Amz-Signature={SECRET}",
    f"file://u:a {SECRET}@h/x",
]
MAYBE_NAMES = [f"u:{SECRET}@host:6379", f"s3:k:{SECRET}@b/x"]
"""They may be files, so that they are looked for; a message does not repeat them."""


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/a").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data/a/0.png")
    (tmp_path / "job.json").write_text(json.dumps(DOCUMENT))
    start(open_storage("run", create=True)).commit([row("basic/dim/0000")])
    return tmp_path


DOCUMENT = {
    "dataset": {"path": "data"},
    "classes": {"a": {"prompts": ["an a"], "labels": ["a"]}},
    "target": {"per_class": 2},
    "generation": {"width": 64, "height": 64},
    "actors": {"kind": "simulated"},
}

# Every place of the command line that takes text, as X.
CALLS = {
    "sample": ["X"],
    "audit": ["X"],
    "init": ["X", "data --out X"],
    "convert": ["X", "job.json --out X", "job.json --set X"],
    "calibrate": ["X", "job.json --out X", "job.json --set dataset.path=X"],
    "plan": ["X", "job.json --set X", "job.json --set dataset.path=X", "job.json --measured X"],
    "adapt": ["X", "job.json --out X", "job.json --set dataset.path=X"],
    "run": ["X", "job.json --out X", "job.json --address X", "job.json --set dataset.holdout=X"],
    "status": ["X", "X --follow"],
    "watch": ["X"],
    "review": ["X", "run --queue X", "run --import X"],
    "submit": [
        "X --out s3://bucket/r",
        "job.json --out X",
        "job.json --out s3://bucket/r --shared X",
        "job.json --out s3://bucket/r --set dataset.path=X",
        "job.json --out s3://bucket/r --shared /mnt --set dataset.path=/mnt/d --address X",
        "job.json --out s3://bucket/r --kubernetes --image X",
    ],
    "rejudge": ["X", "run --set X"],
    "query": ["X", "run X", "run --columns X", "run --count-by X", "run --format csv --output X"],
    "report": ["X"],
    "evaluate": ["X", "run --config X", "run --holdout X", "run --set evaluation.encoder.model=X"],
    "compact": ["X"],
    "export": ["X hf out", "run X out", "run hf X", "run hf out X"],
    "reproduce": ["X --all", "run X"],
    "fsck": ["X"],
    "repair": ["X"],
    "gc": ["X"],
    "doctor": ["X"],
}


def test_every_command_is_called_here():
    assert CALLS.keys() == COMMANDS.keys()


def assert_nowhere(places, *texts):
    assert not [text for text in texts if SECRET in text]
    assert not [path for path in places.rglob("*") if SECRET in str(path)]
    assert not [path for path in places.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(("command", "call"), [(name, call) for name in CALLS for call in CALLS[name]])
def test_no_command_repeats_or_writes_a_password(places, command, call):
    for address in [*ADDRESSES, *MAYBE_NAMES[: 0 if "out" in call or command == "sample" else None]]:
        result = CliRunner().invoke(main, [command, *(word.replace("X", address) for word in call.split())])
        assert result.exit_code in (1, 2, 4), result.output
        assert isinstance(result.exception, SystemExit)
        assert_nowhere(places, result.stdout, result.stderr)


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "BALANCER_CACHE"])
def test_no_variable_of_the_environment_is_repeated_with_its_password(places, monkeypatch, name):
    for address in ADDRESSES:
        monkeypatch.setenv(name, address)
        call = ["doctor"] if name == "RAY_ADDRESS" else ["audit", "sample"]
        result = CliRunner().invoke(main, call)
        assert_nowhere(places, result.stdout, result.stderr)


def strings(value, path=()):
    """The paths of all texts in a document, and of its keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), True
            yield from strings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*path, index))
    elif isinstance(value, str):
        yield path, False


def planted(path, is_key, address):
    document = json.loads(json.dumps(FULL))
    *way, last = path
    section = document
    for step in way:
        section = section[step]
    if is_key:
        section[address] = section.pop(last)
    else:
        section[last] = address
    return document


FULL = Config.model_validate(DOCUMENT).model_dump(mode="json") | {"extends": "base.json", "name": "a name"}


@given(st.sampled_from(list(strings(FULL))), st.sampled_from(ADDRESSES))
def test_a_config_that_holds_a_password_anywhere_is_refused_without_it(tmp_path_factory, place, address):
    folder = tmp_path_factory.mktemp("planted")
    (folder / "job.json").write_text(json.dumps(planted(*place, address)))
    result = CliRunner().invoke(main, ["run", str(folder / "job.json"), "--out", str(folder / "run")])
    assert result.exit_code == 2
    assert SECRET not in result.stdout + result.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_library_refuses_it_before_anything_is_touched(places, address):
    config = Config.model_validate(DOCUMENT)
    holds = config.model_copy(update={"name": address})
    calls = [
        lambda: balancer.audit(address),
        lambda: balancer.plan(address),
        lambda: balancer.open_manifest(address),
        lambda: balancer.embed("run", [address]),
        lambda: balancer.run(config, address),
        lambda: balancer.run(holds, "out"),
        lambda: open_storage(address, create=True),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value))
        assert_nowhere(places, "".join(line for line in shown.splitlines() if "ADDRESSES" not in line))
    assert not (places / "out").exists()


def test_a_config_object_is_refused_before_it_is_recorded(places):
    holds = Config.model_validate(DOCUMENT | {"name": ADDRESSES[0]})
    with pytest.raises(ConfigError, match="name: holds a user or a password"):
        balancer.run(holds, "out")


@pytest.mark.parametrize("address", [*ADDRESSES, *MAYBE_NAMES, "user@host:6379"])
def test_the_address_of_a_cluster_has_no_user(places, monkeypatch, address):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises((ClusterError, UsageError), match="holds a user or a password") as caught:
        balancer.run(Config.model_validate(DOCUMENT), "out", address=address)
    assert SECRET not in str(caught.value)


def test_a_folder_with_such_a_name_is_found(places):
    Path("10:30@site").mkdir()
    Path("data/a").rename("10:30@site/a")
    result = CliRunner().invoke(main, ["audit", "10:30@site", "--json"])
    assert json.loads(result.stdout)["images"] == 1


def test_warnings_of_libraries_go_the_same_way(places, capsys):
    import logging

    from balancer.cli.streams import _AsNotes

    record = logging.LogRecord("x", logging.WARNING, "", 0, "see %s \x1b[31m", (ADDRESSES[0],), None)
    _AsNotes().emit(record)
    assert capsys.readouterr().err == "see file://***@h/x \\x1b[31m\n"
