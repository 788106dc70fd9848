"""Every command that takes a run takes the address of one in a bucket."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

import actors.run as job
import balancer
from actors.cluster.fleet import make_pools
from actors.cluster.pool import Pool
from actors.cluster.sizing import Fleet, Resources
from actors.models.writer import Writer
from actors.specs import WriterSpec
from balancer.cli import main
from balancer.config.schema import Config
from balancer.errors import StorageError, UsageError
from balancer.manifest.layout import fragment_path
from balancer.runs.resume import find_run
from balancer.storage import open_storage
from tests.fault_proxy import FORBIDDEN, SECRET_KEY
from tests.manifest_samples import CONFIG, image_bytes, rejected, row, start

COMMANDS = ["status", "query", "fsck", "report", "rejudge", "compact", "repair", "gc"]
ONE, TWO = "basic/dim/0000", "basic/dim/0001"


def invoke(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def run(run_uri) -> str:
    """The address of a run with two accepted images and a rejected one."""
    storage = open_storage(run_uri, create=True)
    log = start(storage)
    for slot in (ONE, TWO):
        storage.publish(row(slot)["file_name"], image_bytes(f"{slot}-1"))
    log.commit([row(ONE), row(TWO), rejected("burnt/dim/severe/0000")])
    log.close("interrupted")
    return run_uri


def test_status_is_told(run):
    result = invoke("status", run, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["state"], told["wanted"], told["accepted"]) == ("interrupted", 5, 2)


def test_rows_are_selected(run):
    result = invoke("query", run, "class = 'basic'", "--count-by", "class", "--format", "csv")
    assert (result.exit_code, result.stdout.split()) == (0, ["class,count", "basic,2"])
    assert balancer.open_manifest(run).to_table(columns=["id"]).num_rows == 2


def test_fsck_finds_nothing_and_then_what_is_missing(run):
    assert invoke("fsck", run).stdout.endswith("3 rows and 2 images checked: no problems\n")
    open_storage(run, create=False).delete(row(ONE)["file_name"])
    result = invoke("fsck", run)
    assert result.exit_code == 1
    assert "images are there" in result.stdout


def test_verdicts_are_changed(run):
    result = invoke("rejudge", run, "--set", "verification.threshold=0.8", "--apply", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["revoked"] == 2
    assert balancer.open_manifest(run).to_table().num_rows == 0


def test_a_compacted_copy_answers_as_the_log_does(run):
    before = balancer.open_manifest(run).to_table(status="all")
    result = invoke("compact", run)
    assert (result.exit_code, result.stdout.startswith("3 rows of 3 fragments in ")) == (0, True), (
        result.output
    )
    after = balancer.open_manifest(run).to_table(status="all")
    assert sorted(after.to_pylist(), key=repr) == sorted(before.to_pylist(), key=repr)
    fsck = invoke("fsck", run).stdout
    assert ", 3 compacted rows and " in fsck
    assert fsck.endswith(" checked: no problems\n")


def test_what_nothing_needs_is_deleted_and_nothing_else(run):
    storage = open_storage(run, create=False)
    storage.publish("images/basic/dim/0009-1-abc.png", b"of a writer that was killed")
    kept = storage.list("")
    kept.remove("images/basic/dim/0009-1-abc.png")
    assert "images/basic/dim/0009-1-abc.png" in invoke("gc", run, "--older-than", "0").stdout
    assert invoke("gc", run, "--older-than", "0", "--delete").exit_code == 0
    assert set(kept) <= set(storage.list(""))
    assert not storage.exists("images/basic/dim/0009-1-abc.png")
    assert invoke("fsck", run).exit_code == 0


def test_a_damaged_fragment_is_repaired(run):
    storage = open_storage(run, create=False)
    data = storage.read(fragment_path(2))
    storage.replace(fragment_path(2), data[: len(data) - 20])
    assert invoke("fsck", run).exit_code == 1
    result = invoke("repair", run, "--apply")
    assert result.exit_code == 0, result.output
    assert storage.read(fragment_path(2)) == data
    assert invoke("fsck", run).exit_code == 0


def test_the_report_is_written_beside_the_run_as_a_page_and_its_address_printed(run, proxy):
    result = invoke("report", f"{run}/")
    assert (result.exit_code, result.stdout) == (0, f"{run}/report.html\n"), result.stderr
    page = open_storage(run, create=False).read("report.html")
    assert page.startswith(b"<!")
    [put] = proxy.requests("PUT", "report.html")
    assert put.headers["content-type"] == "text/html"


def test_a_plan_is_estimated_from_what_it_measured(run, project):
    result = invoke("plan", project / "configs/demo.yaml", "--measured", run, "--no-preflight", "--json")
    assert result.exit_code == 0, result.stderr
    assert run in result.stdout


@pytest.mark.parametrize(
    "command", ["status", "query", "fsck", "report", "rejudge", "compact", "repair", "gc"]
)
def test_an_address_without_a_run_is_a_usage_error(command, run_uri):
    result = invoke(command, run_uri)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {run_uri} is not a run folder: it has no run.json" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_with_a_password_is_a_usage_error_that_does_not_repeat_it(command):
    result = invoke(command, f"s3://user:{SECRET_KEY}@bucket/run")
    assert result.exit_code == 2
    assert "contains a user name or password" in result.stderr
    assert SECRET_KEY not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_that_does_not_let_one_in_ends_with_exit_code_4(command, run, proxy):
    proxy.fail(FORBIDDEN, times=20)
    result = invoke(command, run)
    assert result.exit_code == 4
    assert "403 Forbidden" in result.stderr
    assert "hint: check the credentials" in result.stderr


# ---- starting --------------------------------------------------------------------------------


@pytest.fixture
def without_ray(monkeypatch):
    def refuse(address):
        raise AssertionError("the run went on to start Ray")

    monkeypatch.setattr(job, "connected", refuse)


def start_run(project, out):
    return invoke("run", project / "configs/demo.yaml", "--out", out)


def test_a_run_does_not_start_in_a_store_without_create_only_put(run_uri, project, proxy, without_ray):
    proxy.strips_conditions = True
    result = start_run(project, run_uri)
    assert result.exit_code == 4
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert f"error: {run_uri} cannot hold a run" in line
    assert open_storage(run_uri, create=False).list("") == []


def test_a_run_does_not_start_in_a_bucket_that_is_not_there(project, proxy, without_ray):
    result = start_run(project, "s3://no-such-bucket/run")
    assert result.exit_code == 4
    assert "NoSuchBucket" in result.stderr


def test_a_run_does_not_start_among_other_files(run_uri, project, proxy, without_ray):
    open_storage(run_uri, create=True).publish("theirs.txt", b"")
    result = start_run(project, run_uri)
    assert result.exit_code == 2
    assert f"{run_uri} holds files but no run, such as theirs.txt" in result.stderr


@pytest.mark.parametrize(
    "address", ["s3://user:password@bucket/run", "s3://bucket/run?versionId=1", "http://host/run"]
)
def test_a_run_does_not_start_at_an_address_that_makes_no_sense(address, project, without_ray):
    assert start_run(project, address).exit_code == 2


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_what_a_killed_start_left_behind_is_no_reason_against_the_next_one(place, run_uri, tmp_path):
    out = run_uri if place == "bucket" else str(tmp_path)
    storage = open_storage(out, create=True)
    storage.publish(".probe.1a.tmp", b"")
    assert find_run(out) is None
    storage.publish("other.tmp", b"")
    with pytest.raises(UsageError, match=r"such as other\.tmp"):
        find_run(out)


# ---- writers ---------------------------------------------------------------------------------


def writers_for(out: str) -> Pool:
    config = Config.model_validate(CONFIG | {"actors": {"kind": "simulated"}})
    fleet, resources = Fleet(1, 1, 1, 0, 0, 1, ()), Resources(2, (), "the driver's")
    return make_pools(config, fleet, resources, open_storage(out, create=True)).writers


def test_writers_stay_with_a_local_folder_and_go_anywhere_with_a_bucket(run_uri, tmp_path):
    assert [writers_for(out).reserved.node for out in (str(tmp_path), run_uri)] == ["the driver's", None]


def test_a_writer_is_told_the_address_and_no_credentials(run_uri):
    assert writers_for(run_uri).spec == WriterSpec(storage_uri=run_uri, image_format="png")


def test_a_writer_on_a_machine_without_credentials_says_so(run_uri, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"no AWS credentials \(on the machine of a writer\)") as caught:
        Writer(run_uri)
    assert "every machine" in caught.value.hint


def test_nothing_of_the_credentials_is_in_the_run(run, proxy):
    storage = open_storage(run, create=False)
    invoke("report", run)
    for path in storage.list(""):
        data = storage.read(path)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            assert os.environ[name].encode() not in data
