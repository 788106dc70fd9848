"""Find a dataset: the user's folder, or the sample dataset, which is rendered into the cache on first use."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import DatasetError, StorageError
from balancer.storage.address import refuse_credentials
from balancer.storage.cache import cache_folder
from balancer.storage.user_paths import expanded

SAMPLE_HINT = "`balancer sample DIR` renders a sample dataset"
HOLDOUT_HINT = "give a folder laid out like dataset.path, or remove dataset.holdout"

APART_HINT = "give a folder with images that the dataset does not have, or remove dataset.holdout"

HOLDOUT = "holdout"
"""The hold-out part of the sample dataset."""

if TYPE_CHECKING:
    from balancer.config.schema import Config


def dataset_folder(config: Config) -> Path:
    """The dataset folder of a config; see `find_dataset`."""
    return _find_configured(config, "dataset.path", config.dataset.path, "train")


def holdout_folder(config: Config) -> Path | None:
    """The hold-out folder of a config; None if it has none."""
    path = config.dataset.holdout
    return None if path is None else _find_configured(config, "dataset.holdout", path, HOLDOUT)


def refuse_shared_holdout(config: Config) -> None:
    """DatasetError if the folders of the hold-out and the dataset contain each other: the same images would
    be trained on and tested on."""
    holdout = holdout_folder(config)
    if holdout is None:
        return
    try:
        dataset = dataset_folder(config)
    except DatasetError:  # whoever reads the dataset says so
        return
    inner, outer = Path(os.path.realpath(holdout)), Path(os.path.realpath(dataset))
    if inner == outer:
        relation = "is the folder of"
    elif inner.is_relative_to(outer):
        relation = "is inside the folder of"
    elif outer.is_relative_to(inner):
        relation = "contains the folder of"
    else:
        return
    raise DatasetError(f"dataset.holdout: {holdout} {relation} dataset.path, {dataset}", hint=APART_HINT)


def _find_configured(config: Config, setting: str, path: str, split: str) -> Path:
    from balancer.config.schema import SAMPLE_DATASET

    if path == SAMPLE_DATASET or "://" in path:
        return find_dataset(path, split)
    refuse_credentials(path, "the path of this dataset")
    places = config.candidate_paths(setting, path)
    if not any(map(os.path.lexists, places)):
        *beside, here = (place.absolute() for place in places)
        looked = "".join(f"{place} (beside the config), " for place in beside)
        where = "" if os.path.isabs(path) else f"; looked for {looked}{here}"
        hint = HOLDOUT_HINT if split == HOLDOUT else SAMPLE_HINT
        raise DatasetError(f"{setting}: no such dataset folder: {path}{where}", hint=hint)
    return config.resolve_path(setting, path)


def find_dataset(path: str, split: str = "train") -> Path:
    """The folder at `path`, or the `split` of the sample dataset if `path` is `sample`."""
    from balancer.config.schema import SAMPLE_DATASET

    refuse_credentials(path, "the path of this dataset")
    if path == SAMPLE_DATASET:
        return _sample_folder() / split
    if "://" in path:
        hint = "copy the dataset to a local or shared folder, or a table whose rows name images in the bucket"
        raise DatasetError(f"{path}: datasets in object stores are not supported", hint=hint)
    return expanded(path)


def _sample_folder() -> Path:
    cache = cache_folder()
    # Each version of the renderer has its own folder, so a stale one is never used.
    renderer = resources.files("balancer.dataset").joinpath("sample.py").read_bytes()
    folder = cache / f"sample-{hashlib.sha256(renderer).hexdigest()[:12]}"
    if not folder.is_dir():
        try:
            _render_sample(cache, folder)
        except OSError as error:
            problem = f"{cache}: cannot write the sample dataset there: {error.strerror or error}"
            raise StorageError(problem, hint="set BALANCER_CACHE to a writable folder") from error
    return folder


def _render_sample(cache: Path, folder: Path) -> None:
    """Render into a temporary folder and rename it, so `folder` is complete once it exists."""
    from balancer.dataset.sample import write_dataset

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=cache, ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / "dataset"
        write_dataset(made, seed=0)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has rendered the same images first
                raise
