"""Who may reach the Ray that a run starts, and which clusters a run joins."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from actors.cluster import access as ray_access
from actors.cluster.access import ask_for_token, private_folder, started_on_this_machine
from actors.cluster.connect import connected, refuse_silent
from balancer.errors import ClusterError
from chaos import Session

SCRIPT = """
import json, sys
import ray
from actors.cluster.connect import start_here
from actors.cluster.access import _is_open

start_here({"num_cpus": 1, "log_to_driver": False})


@ray.remote
class Actor:
    def here(self):
        return 1


actor = Actor.remote()
ray.get(actor.here.remote())
address = ray.get_runtime_context().gcs_address
print(json.dumps({"address": address, "is_open": _is_open(address)}), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def started(project, **environment):
    """A Ray of this machine, as a run starts it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    session = Session(process)
    try:
        yield session, json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        session.end()
        process.stdout.close()


def listening(pids):
    """Addresses on which these processes take TCP connections, as /proc has them: hex, v4 or v6."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def programs(pids):
    """The file names on the command lines of these processes."""
    names = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names |= {os.path.basename(word.decode(errors="replace")) for word in words}
    return names


LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",  # 127.0.0.1 by way of IPv6
    "00000000000000000000000001000000",
}


def test_a_local_ray_is_open_to_nobody_else_and_has_no_processes_of_a_cluster(project, tmp_path):
    """Neither its folder nor a port is: it listens on loopback alone, and asks for a token."""
    home = {"HOME": str(tmp_path)}
    with started(project, **home) as (session, told):
        assert stat.S_IMODE(os.stat(os.path.dirname(private_folder())).st_mode) == 0o700
        assert told["address"].startswith("127.0.0.1:")
        addresses = listening(session.members())
        assert addresses
        assert addresses <= LOOPBACK
        assert told["is_open"] is False
        token = tmp_path / ".ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
        assert programs(session.members()) >= {"raylet", "gcs_server"}
        assert not programs(session.members()) & {"dashboard.py", "monitor.py", "log_monitor.py"}


def test_a_cluster_that_asks_for_no_token_is_refused_unless_the_config_allows_it(project, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    joined = []
    monkeypatch.setattr("ray.init", lambda **options: joined.append(options["address"]))
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the Ray of other tests
    monkeypatch.setattr("actors.cluster.connect._resources", lambda: None)
    with started(project, RAY_AUTH_MODE="disabled") as (_, told):
        assert told["is_open"] is True
        with (
            pytest.raises(ClusterError, match="asks nobody for a token") as caught,
            connected(told["address"]),
        ):
            pass
        assert "actors.allow_open_cluster" in caught.value.hint
        assert joined == []
        with connected(told["address"], allow_open=True):
            assert joined == [told["address"]]


def test_auto_goes_where_this_user_has_started_ray(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ClusterError, match="no Ray is known on this machine"):
        started_on_this_machine()
    path = tmp_path / "ray/ray_current_cluster"
    path.parent.mkdir()
    path.write_text("10.0.0.9:6379\n")
    assert started_on_this_machine() == "10.0.0.9:6379"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("of another user", marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root")),
        "a link",
        "a pipe",
    ],
)
def test_auto_does_not_go_where_somebody_else_says(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    path = tmp_path / "ray/ray_current_cluster"
    path.parent.mkdir()
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text("10.0.0.9:6379")
    if kind == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    if kind == "of another user":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
        os.chown(path, os.getuid() + 2, -1)
    with pytest.raises(ClusterError, match="ray_current_cluster"), connected("auto"):
        pass


# ---- the folder --------------------------------------------------------------------------------------


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray_access, "FOLDER", str(tmp_path))
    monkeypatch.setattr(ray_access, "_LONGEST_SOCKET", 300)
    return tmp_path / f"balancer-ray-{os.getuid()}"


def test_rays_files_are_in_a_folder_that_nobody_else_enters(prefix):
    assert private_folder() == private_folder() == str(prefix / "ray")
    assert stat.S_IMODE(prefix.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_below_a_folder_that_the_user_names_is_one_that_nobody_else_enters(
    prefix, tmp_path, monkeypatch, mode
):
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    chosen.chmod(mode)
    monkeypatch.setenv("RAY_TMPDIR", f"{chosen}/")
    private = chosen / f"ray-{os.getuid()}"
    assert private_folder() == str(private / "r")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE(chosen.stat().st_mode) == mode
    assert not prefix.exists()


def test_a_folder_that_the_user_names_need_not_be_there(prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "a/b"))
    private = tmp_path / "a/b" / f"ray-{os.getuid()}"
    assert ray_access.refuse_bad_folder() == str(private / "r")
    assert not (tmp_path / "a").exists()
    private_folder()
    assert private.is_dir()


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("file", "it is not a folder"),
        ("pipe", "it is not a folder"),
        ("loop", "Too many levels"),
        ("below a file", "Not a directory"),
        ("open", "others can exchange"),
        pytest.param(
            "another user's",
            "others can exchange",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
        ),
        ("relative", "not an absolute path"),
        ("not UTF-8", "it is not UTF-8"),
        ("long", "bytes too long"),
    ],
)
def test_a_folder_that_cannot_hold_rays_files_is_one_line(prefix, tmp_path, monkeypatch, kind, problem):
    chosen = tmp_path / "chosen"
    names = {
        "relative": "chosen",
        "not UTF-8": f"{tmp_path}/\udcff",
        "long": f"{tmp_path}/{'a' * 300}",
        "below a file": f"{chosen}/x",
    }
    prepare = {
        "file": chosen.touch,
        "below a file": chosen.touch,
        "pipe": lambda: os.mkfifo(chosen),
        "loop": lambda: chosen.symlink_to(chosen),
        "open": lambda: (chosen.mkdir(), chosen.chmod(0o777)),
        "another user's": lambda: (chosen.mkdir(), os.chown(chosen, 65534, 65534)),
    }
    prepare.get(kind, lambda: None)()
    monkeypatch.setenv("RAY_TMPDIR", names.get(kind, str(chosen)))
    for refuse in (private_folder, lambda: refuse_silent(None)):
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        with pytest.raises(ClusterError, match=f"RAY_TMPDIR is .*{problem}") as caught:
            refuse()
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_somebody_else_prepared_is_refused(prefix, tmp_path, kind):
    (tmp_path / "theirs").mkdir(mode=0o700)
    {
        "open": lambda: prefix.mkdir(mode=0o755),
        "link": lambda: prefix.symlink_to(tmp_path / "theirs"),
        "file": prefix.touch,
    }[kind]()
    with pytest.raises(ClusterError, match="no folder of this user's alone"):
        private_folder()


# ---- the token ---------------------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
    return tmp_path / "ray" / "token"


def test_a_token_is_made_that_nobody_else_reads(token):
    ask_for_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(bytes.fromhex(token.read_text())) == 32


def test_a_token_that_is_there_stays_and_is_closed_to_others(token):
    token.parent.mkdir()
    token.write_text("known")
    token.chmod(0o644)
    ask_for_token()
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("known", 0o600)


def test_without_a_place_for_it_a_token_lasts_as_long_as_the_process(token, monkeypatch):
    token.parent.touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    ask_for_token()
    assert len(bytes.fromhex(os.environ["RAY_AUTH_TOKEN"])) == 32


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_MODE", "disabled")])
def test_what_the_user_says_about_tokens_holds(token, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    ask_for_token()
    assert os.environ[name] == value
    assert not token.exists()


@pytest.mark.parametrize("mode", ["nonsense", "TOKEN ", "tokens", "off"])
def test_a_mode_in_which_ray_asks_nobody_is_refused(token, monkeypatch, mode):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is"):
        ask_for_token()
    assert not token.exists()


@pytest.mark.parametrize("mode", ["", "TOKEN", "token"])
def test_a_mode_is_token_in_any_case_or_where_none_is_given(token, monkeypatch, mode):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    ask_for_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert token.exists()


def test_a_token_path_that_begins_with_a_tilde_is_refused(token, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~nosuch/x")
    with pytest.raises(ClusterError, match="Ray does not know what ~ stands for"):
        ask_for_token()
    assert not (tmp_path / "~nosuch").exists()


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "\u00e9", "a\x7f", "   "])
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_token_that_no_request_can_carry_is_refused(token, monkeypatch, text, place):
    if place == "environment":
        monkeypatch.setenv("RAY_AUTH_TOKEN", text)
    else:
        token.parent.mkdir()
        token.write_text(text)
    for refuse in (ask_for_token, lambda: ray_access.refuse_open_cluster("127.0.0.1:1", allowed=True)):
        with pytest.raises(ClusterError, match="holds no token") as caught:
            refuse()
        assert text not in caught.value.message


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a folder", "too large"])
def test_a_token_is_in_a_regular_file_and_nothing_else_is_touched(token, kind):
    token.parent.mkdir()
    folder = token.with_name("folder")
    folder.mkdir()
    folder.chmod(0o755)
    {
        "pipe": lambda: os.mkfifo(token),
        "folder": lambda: token.mkdir(),
        "link to a folder": lambda: token.symlink_to(folder),
        "too large": lambda: token.write_bytes(b"a" * 100_000),
    }[kind]()
    before = token.stat().st_mode
    with pytest.raises(ClusterError, match=str(token)):
        ask_for_token()
    assert token.stat().st_mode == before


def test_without_a_home_a_token_lasts_as_long_as_the_process(token, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: path
    )  # as for a user whom the system does not know
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    ask_for_token()
    assert len(bytes.fromhex(os.environ["RAY_AUTH_TOKEN"])) == 32
