"""A run folder in a bucket: how it is named, opened and probed, and what each fault of a store comes to.

The server is moto, behind a proxy that makes the faults: it stands in for S3 and proves nothing of S3 itself.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import socket
import subprocess
import sys
import traceback
import urllib.request
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from balancer.errors import StorageError, UsageError
from balancer.storage import (
    LocalStorage,
    MissingFileError,
    System,
    open_storage,
    refuse_without_create_only,
)
from balancer.storage.objects import ObjectStorage, Patience
from balancer.text.safetext import redacted
from tests.fault_proxy import (
    ACCESS_KEY,
    CONFLICT,
    FORBIDDEN,
    LATE,
    LOST,
    MOVED,
    NOT_IMPLEMENTED,
    RESET,
    SECRET_KEY,
    SLOW,
    STALL,
    UNAVAILABLE,
)
from tests.storage.test_storage import Spy, failing

NOTHING_DONE = [UNAVAILABLE, RESET, STALL]
DONE_UNSEEN = [LOST, LATE]


@pytest.fixture
def storage(run_uri):
    return open_storage(run_uri, create=True)


class Clock:
    """Time that passes only by sleeping; every pause is as long as it may be."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s
        self.pauses.append(pause_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def unhurried(run_uri, clock) -> ObjectStorage:
    """A storage that takes its pauses in no time."""
    store = S3Store("bucket", prefix=run_uri.removeprefix("s3://bucket/"), retry_config={"max_retries": 0})
    return ObjectStorage(run_uri, store, clock=clock, sleep=clock.sleep, chance=lambda: 1.0)


# ---- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs/one"),
        ("s3://bucket/runs/one/", "s3://bucket/runs/one"),
        ("S3://bucket", "s3://bucket"),
        ("s3://bucket/with space/ü", "s3://bucket/with space/ü"),
    ],
)
def test_a_run_in_a_bucket_is_named_by_bucket_and_prefix(proxy, address, uri):
    assert open_storage(address, create=False).uri == uri


def test_a_prefix_is_the_key_as_it_is_written(proxy, run_uri):
    open_storage(f"{run_uri}/with space/ü+(1)", create=True).publish("a/b", b"1")
    assert open_storage(run_uri, create=False).list("") == ["with space/ü+(1)/a/b"]


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/run",
        f"s3://{ACCESS_KEY}@bucket/run",
        f"s3://bucket/run?X-Amz-Signature={SECRET_KEY}",
        f"s3://bucket/run#{SECRET_KEY}",
        f"gs://user:{SECRET_KEY}@bucket/run",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(address):
    for create in (True, False):
        with pytest.raises(UsageError) as caught:
            open_storage(address, create=create)
        assert SECRET_KEY not in told(caught.value)
        assert ACCESS_KEY not in told(caught.value)
        assert "environment" in caught.value.hint


@pytest.mark.parametrize(
    "address",
    ["s3://", "s3:///run", "s3://b", "s3://bucket//run", "s3://bucket/a/../b", "s3://bucket/a\nb"],
)
def test_an_address_that_makes_no_sense_is_a_usage_error(address):
    with pytest.raises(UsageError):
        open_storage(address, create=True)


@pytest.mark.parametrize("address", ["https://host/run", "ftp://host/run", "hdfs://host/run"])
def test_a_place_that_holds_no_runs_is_a_usage_error_that_names_those_that_do(address):
    with pytest.raises(UsageError, match="no run can be kept there") as caught:
        open_storage(address, create=True)
    assert "s3://, gs://, az://" in caught.value.hint


def test_an_address_that_a_path_object_has_flattened_is_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="one slash is missing") as caught:
        open_storage(Path("s3://bucket/run"), create=True)
    assert "s3://bucket/run" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# ---- opening ---------------------------------------------------------------------------------


def test_the_address_decides_and_no_variable_names_another_bucket(proxy, run_uri, monkeypatch):
    monkeypatch.setenv("AWS_BUCKET", "another")
    open_storage(run_uri, create=True).publish("a", b"")
    monkeypatch.delenv("AWS_BUCKET")
    assert open_storage(run_uri, create=False).list("") == ["a"]


def test_opening_asks_nothing_of_the_store(proxy, run_uri):
    for create in (True, False):
        open_storage(run_uri, create=create)
    assert proxy.seen == []


@pytest.mark.parametrize(("package", "scheme"), [("obstore", "s3"), ("obstore", "gs"), ("boto3", "s3")])
def test_a_missing_package_is_named_with_its_install_line(monkeypatch, package, scheme):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "balancer.storage.objects", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=f"the package {package}, which is not installed") as caught:
        open_storage(f"{scheme}://bucket/run", create=True)
    assert f"pip install 'balancer[{scheme}]'" in caught.value.hint


def test_a_local_run_loads_none_of_these_packages(tmp_path, project):
    code = "import sys; from balancer.storage import open_storage; open_storage(sys.argv[1], create=True)\n"
    code += "print({'obstore', 'boto3', 'botocore'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_without_credentials_the_error_says_which_to_set(proxy, run_uri, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="this machine has no AWS credentials") as caught:
        open_storage(run_uri, create=True)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_credentials_and_region_of_a_profile_are_found(proxy, run_uri, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[gpu]\naws_access_key_id = PROFILE\naws_secret_access_key = x\n")
    (tmp_path / "config").write_text("[profile gpu]\nregion = ap-south-2\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "gpu")
    open_storage(run_uri, create=True).publish("a", b"")
    [put] = proxy.requests("PUT")
    signed = put.headers["authorization"]
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=PROFILE/")
    assert "/ap-south-2/s3/" in signed


def test_a_profile_that_is_not_there_is_a_storage_error(proxy, run_uri, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="nobody"):
        open_storage(run_uri, create=True)


def test_plain_http_is_refused_unless_the_environment_asks_for_it(proxy, run_uri, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL is plain http") as caught:
        open_storage(run_uri, create=True)
    assert "AWS_ALLOW_HTTP=true" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["minio", "not a url", "ftp://host", "http://", "http://a b"])
def test_an_endpoint_that_is_none_is_named_by_its_variable(proxy, run_uri, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL_S3 is no address"):
        open_storage(run_uri, create=True)


def test_an_endpoint_with_a_password_is_refused_and_not_repeated(proxy, run_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:hunter2@host")
    with pytest.raises(StorageError, match="holds a user or a password") as caught:
        open_storage(run_uri, create=True)
    assert "hunter2" not in told(caught.value)


def test_a_setting_of_the_library_that_makes_no_sense_is_a_storage_error(proxy, run_uri, monkeypatch):
    monkeypatch.setenv("AWS_TIMEOUT", "soon")
    with pytest.raises(StorageError, match="soon"):
        open_storage(run_uri, create=True).publish("a", b"")


# ---- what is sent ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["publish", "replace", "create"])
def test_a_file_of_any_size_is_one_put_with_its_checksum(proxy, storage, method):
    data = b"\0" * 6_000_000
    getattr(storage, method)("images/a.png", data)
    [put] = proxy.seen
    assert (put.method, put.headers["content-length"]) == ("PUT", "6000000")
    assert put.headers["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert put.headers["content-type"] == "image/png"


def test_a_replace_alone_is_unconditional(proxy, storage):
    storage.create("a", b"")
    storage.publish("b", b"")
    storage.replace("c", b"")
    assert [put.headers.get("if-none-match") for put in proxy.requests("PUT")] == ["*", "*", None]


def test_a_part_of_a_file_is_one_request(proxy, storage):
    storage.publish("a", b"0123456789")
    assert storage.read_range("a", 2, 3) == b"234"
    [get] = proxy.requests("GET")
    assert get.headers["range"] == "bytes=2-4"
    assert not proxy.requests("HEAD")


@pytest.mark.parametrize(
    ("start", "length", "part"), [(8, 9, b"89"), (10, 1, b""), (20, 1, b""), (4, 0, b"")]
)
def test_a_part_of_a_file_is_as_long_as_the_file_has_it(storage, clock, unhurried, start, length, part):
    storage.publish("a", b"0123456789")
    assert unhurried.read_range("a", start, length) == part
    assert not clock.pauses


def test_azure_is_asked_for_the_same_condition(proxy, run_uri, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("AZURE_ENDPOINT", proxy.url)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    storage = open_storage(run_uri.replace("s3:", "az:"), create=True)
    assert [storage.create("a", b"1"), storage.create("a", b"2")] == [True, False]
    assert storage.read("a") == b"1"
    assert [put.headers["if-none-match"] for put in proxy.requests("PUT")] == ["*", "*"]


# ---- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", NOTHING_DONE)
def test_a_request_that_fails_in_passing_is_made_again(proxy, storage, fault):
    calls = [
        ("PUT", lambda: storage.publish("a", b"1"), None),
        ("PUT", lambda: storage.create("b", b"2"), True),
        ("GET", lambda: storage.read("a"), b"1"),
        ("GET", lambda: storage.list(""), ["a", "b"]),
        ("HEAD", lambda: storage.exists("b"), True),
        ("DELETE", lambda: storage.delete("b"), None),
    ]
    for method, call, answer in calls:
        proxy.seen.clear()
        proxy.fail(fault)
        assert call() == answer
        assert [(request.method, request.fault) for request in proxy.seen] == [
            (method, fault),
            (method, None),
        ]
    assert storage.list("") == ["a"]


@pytest.mark.parametrize("fault", DONE_UNSEEN)
def test_a_create_whose_answer_got_lost_says_that_another_was_first_and_the_file_is_there(
    proxy, storage, fault
):
    proxy.fail(fault)
    assert storage.create("a", b"mine") is False
    assert storage.read("a") == b"mine"


@pytest.mark.parametrize("fault", DONE_UNSEEN)
def test_a_publish_whose_answer_got_lost_is_made_once_more_and_does_no_harm(proxy, storage, fault):
    proxy.fail(fault)
    storage.publish("a", b"mine")
    assert (storage.read("a"), len(proxy.requests("PUT"))) == (b"mine", 2)


@pytest.mark.parametrize("fault", DONE_UNSEEN)
def test_a_replace_whose_answer_got_lost_is_made_once_more(proxy, storage, fault):
    storage.create("a", b"before")
    proxy.seen.clear()
    proxy.fail(fault)
    storage.replace("a", b"after")
    assert (storage.read("a"), len(proxy.requests("PUT"))) == (b"after", 2)


def test_a_conflict_is_no_lost_race_while_nobody_has_the_name(proxy, storage):
    proxy.fail(CONFLICT, "PUT", times=3)
    assert storage.create("a", b"mine") is True
    assert storage.read("a") == b"mine"


def test_a_conflict_with_one_who_then_has_the_name_is_a_lost_race(proxy, storage):
    storage.create("a", b"theirs")
    proxy.fail(CONFLICT, "PUT")
    assert storage.create("a", b"mine") is False
    assert storage.read("a") == b"theirs"


def test_a_slow_answer_is_waited_for(proxy, storage):
    proxy.fail(SLOW)
    assert storage.create("a", b"1") is True
    assert len(proxy.seen) == 1


def test_a_broken_listing_goes_on_behind_what_it_had(proxy, storage):
    paths = [f"log/{number:03d}" for number in range(150)]  # a page has 60, of which 50 come first
    for path in paths:
        storage.publish(path, b"")
    proxy.seen.clear()
    for fault in (UNAVAILABLE, RESET):
        proxy.fail(fault, "GET", key="continuation-token")
    assert storage.list("") == paths
    assert proxy.faults() == {UNAVAILABLE: 1, RESET: 1}
    assert {request.key[-3:] for request in proxy.requests("GET", "start-after")} == {"049", "099"}


def test_an_empty_object_that_a_console_put_in_the_place_of_the_folder_is_not_listed(proxy, storage, run_uri):
    folder = f"{proxy.url}/bucket/{run_uri.removeprefix('s3://bucket/')}/"
    urllib.request.urlopen(urllib.request.Request(folder, b"", method="PUT")).close()
    assert [request.key[-1] for request in proxy.requests("PUT")] == ["/"]
    assert storage.list("") == []


# ---- giving up -------------------------------------------------------------------------------


@given(failures=st.integers(1, 2000), chance=st.floats(0, 1))
def test_pauses_are_random_from_nothing_to_a_bound_that_doubles_up_to_a_limit(failures, chance):
    patience = Patience()
    bound = patience.pause_s(failures, 1.0)
    assert bound == min(10.0, 0.2 * 2.0 ** (failures - 1)) if failures < 20 else bound == 10.0
    assert patience.pause_s(failures, chance) == chance * bound


def test_a_store_that_stays_away_is_given_up_with_bucket_key_cause_and_how_often_it_was_tried(
    proxy, unhurried, run_uri, clock
):
    proxy.fail(UNAVAILABLE, times=100)
    with pytest.raises(StorageError) as caught:
        unhurried.create("manifest/log/1.arrow", b"")
    assert clock.pauses[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert 100 < clock.now_s <= Patience().total_s
    tries = len(clock.pauses) + 1
    assert caught.value.message == (
        f"cannot create {run_uri}/manifest/log/1.arrow: 503 Service Unavailable "
        f"(SlowDown: Please reduce your request rate.); tried {tries} times in {clock.now_s:.0f} s"
    )
    assert caught.value.exit_code == 4
    assert len(proxy.seen) == tries


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(STALL, "no answer in time"), (RESET, "the connection broke"), (CONFLICT, "409 Conflict")],
)
def test_the_cause_of_giving_up_is_said_in_words(proxy, run_uri, clock, fault, cause):
    store = S3Store("bucket", prefix="away", retry_config={"max_retries": 0})
    patience = Patience(total_s=1.0, first_pause_s=0.5)
    storage = ObjectStorage(run_uri, store, patience, clock=clock, sleep=clock.sleep, chance=lambda: 1.0)
    proxy.fail(fault, "PUT", times=9)
    with pytest.raises(StorageError, match=rf"{cause}.*; tried 2 times in 0 s"):
        storage.create("a", b"")


def test_a_store_that_was_given_up_is_asked_once_by_each_later_call_until_it_answers(proxy, unhurried, clock):
    proxy.fail(UNAVAILABLE, times=100)
    with pytest.raises(StorageError):
        unhurried.publish("a", b"")
    proxy.seen.clear()
    for _ in range(3):
        with pytest.raises(StorageError):
            unhurried.publish("a", b"")
    assert len(proxy.seen) == 3
    proxy.stop_failing()
    unhurried.publish("a", b"")
    proxy.fail(UNAVAILABLE)
    unhurried.publish("b", b"")
    assert unhurried.list("") == ["a", "b"]


def test_an_address_where_nobody_ever_answered_is_given_up_sooner(run_uri, clock, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        store = S3Store("bucket", retry_config={"max_retries": 0})
        storage = ObjectStorage(run_uri, store, clock=clock, sleep=clock.sleep, chance=lambda: 1.0)
        with pytest.raises(StorageError, match="no connection: connection refused; tried"):
            storage.read("a")
    assert 5 < clock.now_s <= Patience().unreached_s


@pytest.mark.parametrize(
    ("fault", "cause", "hint"),
    [
        (FORBIDDEN, r"403 Forbidden \(SignatureDoesNotMatch: Check your key.\)", "credentials"),
        (NOT_IMPLEMENTED, "501 Not Implemented", ""),
        (MOVED, "it is in another region", "AWS_REGION"),
    ],
)
@pytest.mark.parametrize("method", ["publish", "create", "read", "list"])
def test_what_another_try_would_not_mend_is_said_at_once(proxy, storage, fault, cause, hint, method):
    proxy.fail(fault)
    arguments = {"publish": ("a", b""), "create": ("a", b""), "read": ("a",), "list": ("",)}[method]
    with pytest.raises(StorageError, match=cause) as caught:
        getattr(storage, method)(*arguments)
    assert hint in caught.value.hint
    assert not isinstance(caught.value, MissingFileError)
    assert len(proxy.seen) == 1


@pytest.mark.parametrize("method", ["publish", "create", "read", "list"])
def test_a_bucket_that_is_not_there_is_told_from_a_file_that_is_not(proxy, method):
    storage = open_storage("s3://no-such-bucket/run", create=True)
    arguments = {"publish": ("a", b""), "create": ("a", b""), "read": ("a",), "list": ("",)}[method]
    with pytest.raises(StorageError, match=r"NoSuchBucket") as caught:
        getattr(storage, method)(*arguments)
    assert not isinstance(caught.value, MissingFileError)
    assert "make the bucket first" in caught.value.hint


# ---- secrets ---------------------------------------------------------------------------------


def told(error: BaseException) -> str:
    """All that a log or a terminal could show of an error, what led to it included."""
    return "".join(traceback.format_exception(error)) + str(getattr(error, "hint", ""))


@pytest.mark.parametrize("fault", [FORBIDDEN, MOVED, NOT_IMPLEMENTED])
def test_no_error_shows_a_key_or_the_url_of_a_request(proxy, storage, fault):
    proxy.fail(fault, times=3)
    for call in (storage.list, storage.read, lambda path: storage.create(path, b"")):
        with pytest.raises(StorageError) as caught:
            call("a")
        for secret in (ACCESS_KEY, SECRET_KEY, proxy.url, "AWS4"):
            assert secret not in told(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://user:pw@host/a/b", "see https://***@host/a/b"),
        ("https://host/a?X-Amz-Signature=abc&X-Amz-Credential=AKIA", "https://host/a?***"),
        ("x-amz-security-token: abc== and more", "x-amz-security-token: *** and more"),
        ("sv=2020&sig=abc%3D", "sv=2020&sig=***"),
        ("plain words, 12:30, a=b", "plain words, 12:30, a=b"),
    ],
)
def test_users_and_signatures_are_cut_out_of_texts(text, shown):
    assert redacted(text) == shown


# ---- the probe -------------------------------------------------------------------------------


def test_a_store_without_create_only_put_is_refused_in_one_line(proxy, storage, run_uri):
    proxy.strips_conditions = True
    with pytest.raises(StorageError, match=f"{run_uri} cannot hold a run.*let a second file") as caught:
        refuse_without_create_only(storage)
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message
    assert "create-only PUT" in caught.value.hint
    assert storage.list("") == []


def test_a_store_that_does_not_know_the_condition_is_refused_alike(proxy, storage):
    proxy.fail(NOT_IMPLEMENTED, "PUT")
    with pytest.raises(StorageError, match=r"cannot hold a run.*501 Not Implemented"):
        refuse_without_create_only(storage)
    assert storage.list("") == []


def test_a_library_told_not_to_use_the_condition_is_refused_alike(run_uri, monkeypatch):
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.raises(StorageError, match=r"cannot hold a run.*conditional put is disabled"):
        refuse_without_create_only(open_storage(run_uri, create=True))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused_alike(tmp_path, number):
    storage = LocalStorage(tmp_path, cast(System, Spy(failing("link", number))))
    with pytest.raises(StorageError, match=f"{tmp_path} cannot hold a run") as caught:
        refuse_without_create_only(storage)
    assert caught.value.exit_code == 4
    assert "hard links" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_cannot_be_made_tells_why_and_blames_nobody_for_more(proxy, storage):
    proxy.fail(FORBIDDEN, times=2)
    with pytest.raises(StorageError, match="403 Forbidden") as caught:
        refuse_without_create_only(storage)
    assert "cannot hold a run" not in caught.value.message
