"""The files of a manifest as Arrow opens them, each checked as it is opened.

Arrow asks for a path and gets the file, or the error that says what is wrong with it, however deep inside a
scan that happens. A fragment of the log is read whole and must have the sha256 it had; a compacted file must
have its size and its footer, the rest is checked page by page as it is read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs

from balancer.errors import BalancerError
from balancer.manifest.compacted import DamagedCopyError, DataFile
from balancer.manifest.fragment import BrokenFragmentError
from balancer.storage import LocalStorage, MissingFileError, Storage, open_storage

GONE = "it is missing; if the manifest was compacted anew since, open it again"


class ManifestFiles(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]
    """Reads what it was told of, and nothing else. It can be pickled, for workers that read by themselves."""

    def __init__(
        self, storage: Storage, compacted: Mapping[str, DataFile], committed: Mapping[str, str]
    ) -> None:
        self._storage = storage
        self._compacted = compacted
        self._committed = committed
        self.problem: BalancerError | None = None
        """The last one met: a library in between may not pass it on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._storage.uri, self._compacted, self._committed)

    def open_input_file(self, path: str) -> pa.NativeFile:
        try:
            if path in self._committed:
                return self._fragment(path, self._committed[path])
            return self._data_file(self._compacted[path])
        except BalancerError as error:
            self.problem = error
            raise

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def damage(self) -> DamagedCopyError | None:
        """The first compacted file that is not what it was, found by reading all of them."""
        for told in self._compacted.values():
            if (detail := difference(self._storage, told)) is not None:
                return DamagedCopyError(told.path, *detail)
        return None

    def _fragment(self, path: str, sha256: str) -> pa.NativeFile:
        try:
            data = self._storage.read(path)
        except MissingFileError:
            raise BrokenFragmentError(path, "log without gaps", "it is missing, and was there") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BrokenFragmentError(path, "checksum", "its bytes are not those that were there")
        return pa.BufferReader(_of_arrow(data))

    def _data_file(self, told: DataFile) -> pa.NativeFile:
        try:
            file = opened(self._storage, told.path)
        except MissingFileError:
            raise DamagedCopyError(told.path, "compacted files are there", GONE) from None
        num_bytes = file.size()
        if num_bytes != told.num_bytes:
            detail = f"it has {num_bytes} bytes, the index says {told.num_bytes}"
            raise DamagedCopyError(told.path, "compacted files have their size", detail)
        footer = file.read_at(told.footer_bytes, num_bytes - told.footer_bytes)
        if hashlib.sha256(footer).hexdigest() != told.footer_sha256:
            raise DamagedCopyError(told.path, "compacted files have their sha256", "its footer was changed")
        return file

    # ---- what Arrow asks of a file system besides ------------------------------------------------

    def get_type_name(self) -> str:
        return "balancer"

    def normalize_path(self, path: str) -> str:
        return path

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = object.__hash__

    def _refuse(self, *arguments: object, **options: object) -> NoReturn:
        raise NotImplementedError("the files of a manifest are read, and nothing else")

    get_file_info: Callable[..., Any] = _refuse
    get_file_info_selector: Callable[..., Any] = _refuse
    create_dir: Callable[..., Any] = _refuse
    delete_dir: Callable[..., Any] = _refuse
    delete_dir_contents: Callable[..., Any] = _refuse
    delete_root_dir_contents: Callable[..., Any] = _refuse
    delete_file: Callable[..., Any] = _refuse
    move: Callable[..., Any] = _refuse
    copy_file: Callable[..., Any] = _refuse
    open_output_stream: Callable[..., Any] = _refuse
    open_append_stream: Callable[..., Any] = _refuse


def difference(storage: Storage, told: DataFile) -> tuple[str, str] | None:
    """The rule that a compacted file breaks, and how; None if it is what was written."""
    try:
        data = storage.read(told.path)
    except MissingFileError:
        return "compacted files are there", GONE
    if len(data) != told.num_bytes:
        return "compacted files have their size", f"it has {len(data)} bytes, the index says {told.num_bytes}"
    if hashlib.sha256(data).hexdigest() != told.sha256:
        return "compacted files have their sha256", "its bytes are not those that were written"
    return None


def _of_arrow(data: bytes) -> pa.Buffer:
    """A copy that is none of Python's: Arrow's threads let go of what a scan has read when they come to it,
    and one that does so while the interpreter ends takes the process down."""
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return buffer


def _reopened(uri: str, compacted: Mapping[str, DataFile], committed: Mapping[str, str]) -> ManifestFiles:
    return ManifestFiles(open_storage(uri, create=False), compacted, committed)


def opened(storage: Storage, path: str) -> pa.NativeFile:
    """A file for reading at any place; MissingFileError if there is none."""
    if isinstance(storage, LocalStorage) and (target := storage.path_on_disk(path)) is not None:
        try:
            return pa.OSFile(target)
        except FileNotFoundError as error:
            raise MissingFileError(f"{target} is missing") from error
    return pa.PythonFile(_Ranges(storage, path, storage.info(path).num_bytes), mode="r")


class _Ranges(io.RawIOBase):
    """A file of which each read is a request of its own."""

    def __init__(self, storage: Storage, path: str, num_bytes: int) -> None:
        self._storage = storage
        self._path = path
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = self._num_bytes - self._position
        data = self._storage.read_range(
            self._path, self._position, rest if size is None or size < 0 else min(size, rest)
        )
        self._position += len(data)
        return data
