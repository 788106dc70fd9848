"""Show a loader a private folder with exactly the files that were checked and hashed.

Model libraries look for many files, prefer some over others, and follow configs. The private folder holds
nothing else to find.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.weights.config_rules import checked_config
from actors.weights.file_rules import INCOMPLETE_HINT, IncompleteError, is_config, is_index, is_weights
from actors.weights.headers import HeaderError, WeightsSize, read_header, sum_sizes
from actors.weights.tokenizer_trial import check_tokenizer
from balancer.errors import BalancerError, WeightsError, first_line
from balancer.storage.regular_files import NotRegularError, open_regular, read_regular
from balancer.text.json_reading import count_values, read_json
from balancer.text.safetext import printable

MAX_CONFIG_BYTES = 20_000_000
"""A chat template takes 100 kB, the index of a thousand shards 10 MB."""

MAX_VOCABULARY_BYTES = 200_000_000
"""The largest published vocabularies take 70 MB."""

MAX_BINARY_VOCABULARY_BYTES = 50_000_000
"""The largest published ones of SentencePiece and tiktoken take 18 MB. Libraries unpack them in Python."""

MAX_ENTRIES = 2_000_000
"""Lines or values of a vocabulary. Published ones have up to 900,000; each takes 200 bytes in memory."""

_LONGEST_REASON = 300


def list_files(folder: Path) -> list[str]:
    """Relative names of the entries of a folder and its subfolders, which need not be files."""
    try:
        inside, names = _scan_folder(folder)
        for name in inside:
            names += [f"{name}/{inner}" for inner in _scan_folder(folder / name)[1]]
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return names


def _scan_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Names of folders, and of all other entries."""
    by_kind: tuple[list[str], list[str]] = ([], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            by_kind[not os.path.isdir(entry)].append(entry.name)
    return by_kind


def read_config(folder: Path, name: str, model: str) -> dict[str, Any]:
    """Read a JSON object. Raises WeightsError if it is not one, or lies outside the model's folder."""
    return _parsed(read_file(folder, name, model), name, model)


def read_checked_config(folder: Path, name: str, model: str) -> dict[str, Any]:
    """Read a config without the keys hidden from loaders. Raises WeightsError if it is refused."""
    config = read_config(folder, name, model)
    try:
        return checked_config(config, name, model)
    except RecursionError as error:
        raise _damaged(name, "nested too deeply", model) from error
    except OverflowError as error:
        raise _damaged(name, "it has a number of hundreds of digits", model) from error


def _parsed(data: bytes, name: str, model: str) -> dict[str, Any]:
    try:
        content = read_json(data)
    except ValueError as error:
        raise _damaged(name, first_line(error), model) from error
    if not isinstance(content, dict):
        raise _damaged(name, "not a JSON object", model)
    return content


def _damaged(name: str, why: str, model: str) -> WeightsError:
    return WeightsError(f"{model}: {name}: {why}", hint=INCOMPLETE_HINT)


def read_file(folder: Path, name: str, model: str) -> bytes:
    """Read a small file of a model."""
    limit = MAX_CONFIG_BYTES if is_config(name) or is_index(name) else MAX_VOCABULARY_BYTES
    if name.endswith((".model", ".spm")):
        limit = MAX_BINARY_VOCABULARY_BYTES
    with _wrap_file_errors(name, model):
        return read_regular(own_path(folder, name, model), max_bytes=limit, follow_links=False)


def own_path(folder: Path, name: str, model: str) -> Path:
    """The real path of a model's file. It must be in the model's folder, or in the hub's cache beside it."""
    path, here = Path(os.path.realpath(folder / name)), Path(os.path.realpath(folder))
    if not path.is_relative_to(here) and not path.is_relative_to(_blobs(here)):
        raise WeightsError(
            f"{model}: {name} is a link that leads out of the model's folder",
            hint="copy the file into the folder, or set the model to the folder where it is",
        )
    return path


def _blobs(snapshot: Path) -> Path:
    """The folder of contents: the hub's cache keeps them in blobs/ and links to them in snapshots/COMMIT/."""
    return snapshot.parent.with_name("blobs") if snapshot.parent.name == "snapshots" else snapshot


@contextlib.contextmanager
def _wrap_file_errors(name: str, model: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise IncompleteError(f"{model}: {name} is missing", hint=INCOMPLETE_HINT) from error
    except OSError as error:
        hint = "a model consists of regular files" if isinstance(error, NotRegularError) else ""
        raise WeightsError(f"{model}: {name}: {error.strerror}", hint=hint) from error


def check_files(folder: Path, needed: Sequence[str], model: str) -> None:
    """Raise WeightsError if a file of a model is missing, is not regular, leads elsewhere, or is refused."""
    for name in needed:
        with _wrap_file_errors(name, model):
            open_regular(own_path(folder, name, model), follow_links=False).close()
        if is_weights(name):
            _weights(folder, [name], model)
        elif is_config(name):
            read_checked_config(folder, name, model)
        elif is_index(name):
            _check_index(read_config(folder, name, model), name, needed, model)
        elif name.rpartition("/")[2] == "tokenizer.json":
            read_file(folder, name, model)  # checks its size
            check_tokenizer(own_path(folder, name, model), name, model, INCOMPLETE_HINT)
        else:
            _check_vocabulary(folder, name, model)


def _check_vocabulary(folder: Path, name: str, model: str) -> None:
    """Vocabularies beside a `tokenizer.json` or in its place; loaders read them line by line, in Python."""
    data = read_file(folder, name, model)
    if max(count_values(data), data.count(b"\n")) > MAX_ENTRIES and not name.endswith((".model", ".spm")):
        raise _damaged(name, f"it has more than {MAX_ENTRIES:,} entries", model)


def _weights(folder: Path, names: Iterable[str], model: str) -> WeightsSize:
    sizes = []
    for name in names:
        with _wrap_file_errors(name, model):
            try:
                sizes.append(read_header(own_path(folder, name, model)))
            except HeaderError as error:
                raise _damaged(name, str(error), model) from error
    return sum_sizes(sizes)


def _check_index(index: Mapping[str, Any], name: str, needed: Sequence[str], model: str) -> None:
    beside = name.rpartition("/")[0]
    own = {known for known in needed if is_weights(known) and known.rpartition("/")[0] == beside}
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise _damaged(name, "no weight_map", model)
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or (f"{beside}/{shard}" if beside else shard) not in own:
            raise WeightsError(
                f"{model}: {name} puts {tensor[:80]!r} into {str(shard)[:80]!r}, which is not one of its"
                " weight files",
                hint=INCOMPLETE_HINT,
            )


@contextlib.contextmanager
def shown_to_loader(folder: Path, needed: Sequence[str], model: str, hint: str) -> Iterator[Path]:
    """A private folder with the model's files, to load it from. Errors of the loader become WeightsErrors,
    and so does a model that is built larger than its weights.

    Weights are links to the files; all other files are copies of the checked content.
    """
    check_files(folder, needed, model)
    temporary = tempfile.TemporaryDirectory(prefix="balancer-model-", ignore_cleanup_errors=True)
    with temporary as view, wrap_model_errors(folder, model, hint, shown_as=view):
        for name in needed:
            _link_or_copy(folder, name, Path(view), model)
        from actors.weights.build_limit import (
            limit_build_size,  # imports torch, which file checks do not need
        )

        with (
            _without_hub(),
            limit_build_size(_weights(folder, filter(is_weights, needed), model), model, hint),
        ):
            yield Path(view)


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
    """Refuse every request to the hub: transformers asks it for names that stand in configs."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def wrap_model_errors(
    folder: Path, model: str, hint: str, shown_as: str = "", problem: str = "does not load"
) -> Iterator[None]:
    """Turn every error of a model or its loader into a WeightsError that names the model."""
    try:
        yield
    except BalancerError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in a parser or kernel is not an Exception
        reason = printable(first_line(error)[:_LONGEST_REASON])
        if shown_as:
            reason = reason.replace(shown_as, str(folder))
        raise WeightsError(f"{model}: the model in {folder} {problem}: {reason}", hint=hint) from error


def _link_or_copy(folder: Path, name: str, view: Path, model: str) -> None:
    shown = view / name
    shown.parent.mkdir(parents=True, exist_ok=True)
    if is_weights(name):
        shown.symlink_to(own_path(folder, name, model))
    elif is_config(name):
        shown.write_text(json.dumps(read_checked_config(folder, name, model)))
    else:
        shown.write_bytes(read_file(folder, name, model))
