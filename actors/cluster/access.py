"""Who may reach Ray. Anyone who can reach it can run code as this user.

A Ray that is started here belongs to this user alone: it listens on the loopback interface only, asks for a
token, and keeps its files in a folder that others cannot enter. A cluster elsewhere has to ask for a token.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from ray import _raylet
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from balancer.errors import ClusterError, UsageError, first_line
from balancer.storage.regular_files import NotRegularError, TooLargeError, open_regular, read_regular
from balancer.storage.user_paths import expanded

FOLDER = "/tmp"
"""Ray's files are below it unless RAY_TMPDIR is set. It is short because socket paths are limited."""

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
_SOCKET = "/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"

PROBE_TIMEOUT_S = 5.0
_LONGEST_ADDRESS = 300
_LONGEST_TOKEN = 10_000
_MODES = ("token", "disabled")

# Any call that reads the state of the cluster would do. An empty message is a valid request.
_PROBE = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


@contextlib.contextmanager
def to_oneself() -> Iterator[str]:
    """For the time in which Ray is started on this machine: the folder for its files. ClusterError if that
    is not this user's own."""
    folder = private_folder()
    ask_for_token()
    before = ray_constants.ENABLE_RAY_CLUSTER
    # What Ray does by itself on systems where it starts no clusters: it takes the address 127.0.0.1, and
    # then all of its processes listen there and nowhere else.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield folder
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_folder() -> str:
    """A folder of this user's that nobody else can enter, below `RAY_TMPDIR` if that is set."""
    files = refuse_bad_folder()
    folder = os.path.dirname(files)
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
    except OSError as error:
        raise _bad_folder(f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ClusterError(
            f"{folder} is no folder of this user's alone, and Ray's files are put there",
            hint="remove it, or set RAY_TMPDIR to another folder",
        )
    return files


def refuse_bad_folder() -> str:
    """Where `private_folder` puts Ray's files; nothing is created. ClusterError if they could not be there,
    or if others could exchange the folder for theirs."""
    parent = os.environ.get("RAY_TMPDIR") or FOLDER
    # One more below the private folder, because Ray opens its own to everyone; short, for the sockets.
    below = "balancer-ray-{}/ray" if parent == FOLDER else "ray-{}/r"
    files = f"{parent.rstrip('/')}/{below.format(os.getuid())}"
    try:
        longest = len((files + _SOCKET.format(pid=os.getpid())).encode())
    except UnicodeEncodeError as error:
        raise _bad_folder("it is not UTF-8") from error
    if not os.path.isabs(parent):
        raise _bad_folder("it is not an absolute path")
    if longest > _LONGEST_SOCKET:
        raise _bad_folder(f"it is {longest - _LONGEST_SOCKET} bytes too long for the sockets in it")
    try:
        status = os.stat(parent)
    except FileNotFoundError:
        return files
    except OSError as error:
        raise _bad_folder(str(error.strerror)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _bad_folder("it is not a folder")
    exchanged = status.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
    if exchanged or status.st_uid not in (0, os.getuid()):
        raise _bad_folder("others can exchange what is in this folder")
    return files


def _bad_folder(problem: str) -> ClusterError:
    chosen = os.environ.get("RAY_TMPDIR")
    place = f"RAY_TMPDIR is {chosen[:200]!r}" if chosen else FOLDER
    return ClusterError(
        f"{place}: {problem}", hint="set RAY_TMPDIR to a folder of your own with a short absolute path"
    )


def ask_for_token() -> None:
    """Have Ray ask for a token, unless the user has said otherwise, and make one if there is none.
    ClusterError for settings with which Ray would ask nobody, or break."""
    given = os.environ.get("RAY_AUTH_MODE", "")
    mode = token_mode()
    if mode != given:
        os.environ["RAY_AUTH_MODE"] = mode
        vars(_raylet)["Config"].initialize("")  # it has been read from the environment before
    refuse_bad_token()
    if os.environ.get("RAY_AUTH_TOKEN") or mode != "token":
        return
    try:
        _own_token_file(_token_path())
    except NotRegularError as error:
        raise _no_token(f"{error.filename} is {error.strerror}") from error
    except OSError:  # no home to write to: a token that ends with this process
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    vars(_raylet)["AuthenticationTokenLoader"].instance().reset_cache()


def send_token(*, required: bool) -> None:
    """Have Ray's clients send this user's token to a cluster elsewhere. None is made: another one than the
    cluster's would not be taken. ClusterError if it is `required` and there is none."""
    mode = token_mode()
    refuse_bad_token()
    loader = vars(_raylet)["AuthenticationTokenLoader"].instance()
    loader.reset_cache()
    try:
        there = mode == "token" and loader.has_token(ignore_auth_mode=True)
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names no file
        there = False
    if required and not there:
        raise _no_token("there is no token for this cluster: RAY_AUTH_TOKEN is the one it was started with")
    os.environ["RAY_AUTH_MODE"] = "token" if there else "disabled"
    vars(_raylet)["Config"].initialize("")


def token_mode() -> str:
    """`token` or `disabled`. ClusterError for another `RAY_AUTH_MODE`."""
    given = os.environ.get("RAY_AUTH_MODE", "")
    mode = given.lower() or "token"
    if mode not in _MODES:
        raise ClusterError(
            f"RAY_AUTH_MODE is {given[:80]!r}, with which Ray would ask nobody for a token",
            hint="set it to token or disabled, or remove it",
        )
    return mode


def refuse_bad_token() -> None:
    """ClusterError for a token that no request can carry, of the environment or its file. Ray would wait for
    a pipe for ever, and end the process over a line end."""
    token, where = os.environ.get("RAY_AUTH_TOKEN", ""), "RAY_AUTH_TOKEN"
    if not token:
        try:
            path = _token_path()
            where = str(path)
            token = read_regular(path, max_bytes=_LONGEST_TOKEN, follow_links=True).decode("latin-1")
            token = token.strip() or "\n"  # an empty file is no token, and Ray would wait for one
        except (NotRegularError, TooLargeError) as error:
            raise _no_token(f"{error.filename} is {error.strerror}") from error
        except OSError:  # there is none, or none for this user
            return
    if not (token.isascii() and token.isprintable() and token.strip()):
        raise _no_token(
            f"{where} holds no token: it is blank, or has line ends, controls or letters beyond ASCII"
        )


def _no_token(problem: str) -> ClusterError:
    return ClusterError(
        problem, hint="`ray get-auth-token --generate` makes a token; see RAY_AUTH_TOKEN_PATH"
    )


def _token_path() -> Path:
    if chosen := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if chosen.startswith("~"):
            raise _no_token(f"RAY_AUTH_TOKEN_PATH is {chosen[:200]}, and Ray does not know what ~ stands for")
        return Path(chosen)
    try:
        return expanded("~/.ray/auth_token")
    except UsageError as error:
        raise FileNotFoundError(errno.ENOENT, error.message) from error


def _own_token_file(path: Path) -> None:
    """Ray would make it readable for everyone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        with open_regular(path, follow_links=True) as there:
            status = os.fstat(there.fileno())
            if status.st_uid == os.getuid() and status.st_mode & 0o077:
                os.fchmod(there.fileno(), 0o600)
        return
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32))


def started_on_this_machine() -> str:
    """Where the Ray is that `ray start` has started here: what `--address auto` stands for. ClusterError if
    there is none, or somebody else says so: our token would go there."""
    path = Path(get_ray_address_file(None))
    try:
        with open_regular(path, follow_links=False) as file:
            owner, address = os.fstat(file.fileno()).st_uid, file.read(_LONGEST_ADDRESS).decode().strip()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray is known on this machine: {path}: {first_line(error)}",
            hint="start one with `ray start --head`, or give its address as host:port",
        ) from error
    if owner not in (0, os.geteuid()):
        raise ClusterError(
            f"{path} is another user's, so that user says where Ray is",
            hint="give the address of your Ray as host:port",
        )
    return address


def refuse_open_cluster(address: str, allowed: bool) -> None:
    """ClusterError if the cluster at host:port answers whoever asks, unless that is `allowed`."""
    refuse_bad_token()
    if not allowed and "RAY_USE_TLS" not in os.environ and _is_open(address):
        raise ClusterError(
            f"Ray at {address} asks nobody for a token: whoever reaches it can run code there, and here",
            hint="start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes a token); "
            "or, on a network that you trust, set actors.allow_open_cluster",
        )


def _is_open(address: str) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False  # it asks for a token, or something else is wrong, which Ray will report
    return True
