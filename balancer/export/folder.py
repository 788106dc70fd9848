"""A folder that belongs to one export, which makes it safe to write the export again.

A claim file identifies the export. A journal beside it names every file before it is written. An export that
was cut short can therefore tell its own files from others: it completes them, and removes those that no
longer have a row. A folder with any other file is refused. Files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path

from balancer.errors import UsageError
from balancer.export.destination import Destination, as_storage_errors
from balancer.export.job import Options, option_name
from balancer.storage.regular_files import TooLargeError, append_regular, open_regular, read_regular
from balancer.text.json_reading import read_json

CLAIM = ".balancer-export.json"
JOURNAL = ".balancer-export.files"
_OWN = ".balancer-export."

MAX_CLAIM_BYTES = 1_000_000
MAX_JOURNAL_BYTES = 2_000_000_000
"""About ten million files."""

MAX_ENTRY_BYTES = 8192
"""A path and a hash."""

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # of Linux, in bytes

ANOTHER = "choose another DEST"

Journal = dict[str, str | None]
"""Paths that were written, or are about to be. A file with a recipe has a second entry, `path newline
recipe`, with the sha256 of the whole file."""


@contextlib.contextmanager
def claimed(destination: Destination) -> Iterator[Folder]:
    """The destination as a folder: new, empty, or of the same export; UsageError otherwise.

    When the block succeeds, files of earlier exports that this one did not put are removed.
    """
    before = _claim(destination)
    with as_storage_errors(destination.path):
        journal = append_regular(destination.path / JOURNAL)
    with journal:
        folder = Folder(destination, before, journal)
        yield folder
    folder.remove_stale()


class Folder:
    """Created by `claimed`. Paths are relative, with slashes, and made of checked names."""

    def __init__(self, destination: Destination, before: Journal, journal: FileIO) -> None:
        self.path = destination.path
        self._counts = destination
        self._before = before
        self._now: Journal = {}
        self._journal = journal
        self._known_folders: set[Path] = set()

    def put(self, path: str, data: bytes) -> None:
        """Write a file, unless it exists with this content."""
        self._put(path, hashlib.sha256(data).hexdigest(), lambda: [data])

    def put_image(self, path: str, sha256: str, load: Callable[[], bytes]) -> None:
        """Write an image whose hash is known; it is loaded only if it is missing."""
        self._put(path, sha256, lambda: [load()])

    def put_generated(self, path: str, recipe: str, make: Callable[[], Iterable[bytes]]) -> None:
        """Write a large file piece by piece, unless the file of this recipe exists and is complete.

        The same recipe always makes the same bytes.
        """
        known = self._before.get(f"{path}\n{recipe}")
        sha256 = known and self._put(path, known, make)
        self._note(f"{path}\n{recipe}", sha256 or self._replace(path, make()))

    def make_folder(self, path: str) -> None:
        """Create a folder, which may stay empty."""
        self._located(f"{path}/{CLAIM}")

    def link(self, path: str, target: Path) -> None:
        """Make a relative link to `target`, unless it exists."""
        at = self._located(path)
        to = os.path.relpath(target, at.parent.resolve())
        with as_storage_errors(at):
            if at.is_symlink() and os.readlink(at) == to:
                self._keep(path)
                return
            self._prepare(path, at)
            at.symlink_to(to)
        self._counts.written += 1

    def remove_stale(self) -> None:
        """Remove files that earlier exports wrote and this one did not put."""
        for path in self._before.keys() - self._now.keys():
            if "\n" not in path:
                self._remove(path)
        _write_whole(self.path / JOURNAL, [_entry(path, sha256) for path, sha256 in self._now.items()])

    def _put(self, path: str, sha256: str, make: Callable[[], Iterable[bytes]]) -> str:
        at = self._located(path)
        if self._is_own(path) and not at.is_symlink() and at.is_file() and _sha256(at) == sha256:
            self._keep(path)
            return sha256
        return self._replace(path, make())

    def _keep(self, path: str) -> None:
        self._counts.kept += 1
        self._note(path)

    def _replace(self, path: str, parts: Iterable[bytes]) -> str:
        at = self._located(path)
        with as_storage_errors(at):
            self._prepare(path, at)
        sha256 = _write_whole(at, parts)
        self._counts.written += 1
        return sha256

    def _prepare(self, path: str, at: Path) -> None:
        """Note a file in the journal before it is written; refuse to replace a file of anybody else."""
        if os.path.lexists(at):
            if not self._is_own(path):
                hint = "choose another DEST, or move it away"
                raise UsageError(f"{at} exists and is not of this export", hint=hint)
            at.unlink()
        self._note(path)

    def _is_own(self, path: str) -> bool:
        return path in self._before or path in self._now

    def _note(self, path: str, sha256: str | None = None) -> None:
        if self._before.get(path, "") != sha256:
            with as_storage_errors(self.path / JOURNAL):
                _write_all(self._journal, _entry(path, sha256))
        self._now[path] = sha256

    def _located(self, path: str) -> Path:
        """The location of a file. Its folder is created, and must not be a link that leads out."""
        parts = path.split("/")
        assert _is_inside(path), path
        at = self.path.joinpath(*parts)
        if at.parent not in self._known_folders:
            with as_storage_errors(at.parent):
                at.parent.mkdir(parents=True, exist_ok=True)
                if not at.parent.resolve().is_relative_to(self.path.resolve()):
                    raise UsageError(f"{at.parent} is a link that leads out of {self.path}", hint="remove it")
            self._known_folders.add(at.parent)
        return at

    def _remove(self, path: str) -> None:
        at = self.path.joinpath(*path.split("/"))
        is_file = at.is_symlink() or (at.exists() and not at.is_dir())
        if not is_file or not at.parent.resolve().is_relative_to(self.path.resolve()):
            return
        with as_storage_errors(at):
            at.unlink()
        self._counts.removed += 1
        with contextlib.suppress(OSError):  # folders that are not empty stay
            for folder in at.relative_to(self.path).parents[:-1]:
                (self.path / folder).rmdir()


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _claim(destination: Destination) -> Journal:
    """Claim the folder; returns its journal."""
    path = destination.path
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, but this export is a folder", hint=ANOTHER)
    with as_storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        names = [name for name in os.listdir(path) if not name.startswith(_OWN)]
    if os.path.lexists(path / CLAIM):
        _check_claim(destination)
    elif names:
        raise UsageError(
            f"{path} holds files that are not of an export, such as {min(names)}",
            hint="choose another DEST, or empty the folder",
        )
    before = _read_journal(path / JOURNAL)
    _remove_temporary(path, before)
    claim = json.dumps(destination.identity, indent=2, ensure_ascii=False).encode() + b"\n"
    _write_whole(path / CLAIM, [claim])
    return before


def _check_claim(destination: Destination) -> None:
    path = destination.path / CLAIM
    try:
        claim = read_json(read_regular(path, max_bytes=MAX_CLAIM_BYTES, follow_links=False))
        if not isinstance(claim, dict):
            raise ValueError("it is no JSON object")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint=ANOTHER) from error
    mine = json.loads(json.dumps(destination.identity))
    for name in (*mine, *(claim.keys() - mine.keys())):
        if claim.get(name) != mine.get(name):
            difference = _difference(name, claim.get(name), mine.get(name))
            raise UsageError(
                f"{destination.path} holds another export: {difference}",
                hint="choose another DEST, or remove the folder",
            )


def _difference(name: str, theirs: object, mine: object) -> str:
    if name not in Options().as_dict():
        return f"its {name} is {theirs!r}, not {mine!r}"
    if isinstance(mine, bool):
        return f"it was written {'without' if mine else 'with'} {option_name(name)}"
    return f"its {option_name(name)} is {theirs!r}, not {mine!r}"


def _read_journal(path: Path) -> Journal:
    journal: Journal = {}
    try:
        with open_regular(path, follow_links=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JOURNAL_BYTES:
                raise TooLargeError(path, size, MAX_JOURNAL_BYTES)
            while line := file.readline(MAX_ENTRY_BYTES):
                journal.update(_parse_entry(line))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(path, error) from error
    return journal


def _parse_entry(line: bytes) -> Journal:
    """Empty for an invalid line: a crash cut it off before its file was begun, or it is not ours."""
    try:
        name, sha256 = read_json(line)
    except (ValueError, TypeError):
        return {}
    if not isinstance(name, str) or not isinstance(sha256, str | None) or not _is_inside(name):
        return {}
    return {name: sha256}


def _is_inside(name: str) -> bool:
    path = name.partition("\n")[0]
    parts = path.split("/")
    return (
        len(os.fsencode(path)) <= _LONGEST_PATH
        and "\0" not in path
        and not any(part in ("", ".", "..") or len(os.fsencode(part)) > _LONGEST_NAME for part in parts)
    )


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read: {error.strerror}", hint=ANOTHER)


def _remove_temporary(path: Path, journal: Iterable[str]) -> None:
    """Remove temporary files that a killed export left."""
    folders = {name.partition("\n")[0].rpartition("/")[0] for name in journal}
    for folder in ("", *folders):
        if not (path / folder).resolve().is_relative_to(path.resolve()):
            continue  # through a link that is not ours
        for temporary in (path / folder).glob(f"{_OWN}*.tmp"):
            with contextlib.suppress(OSError):
                temporary.unlink()


def _write_whole(at: Path, parts: Iterable[bytes]) -> str:
    """Write a file in one step; returns its sha256."""
    temporary = at.with_name(f"{_OWN}{uuid.uuid4().hex}.tmp")
    digest = hashlib.sha256()
    try:
        with as_storage_errors(at):
            with temporary.open("xb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
            os.replace(temporary, at)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with as_storage_errors(path), open_regular(path, follow_links=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: str, sha256: str | None) -> bytes:
    return json.dumps([path, sha256]).encode() + b"\n"
