"""Real images come into a run byte for byte, each under a name of its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balancer.config.schema import Config
from balancer.dataset.audit import Audit, RealImage
from balancer.errors import StorageError
from balancer.manifest import ManifestLog, check_run, read_log
from balancer.manifest.maintenance import gc
from balancer.manifest.rows import RunFacts
from balancer.runs.import_real import commit_real_images
from balancer.storage import open_storage, slug_of_before
from tests.manifest_samples import CONFIG, at, lose_the_answer, real, start
from tests.storage.test_storage import COLLIDED

CONFIG_OF_RUN = Config.model_validate(CONFIG | {"dataset": {"path": "none"}})


def dataset(root: Path, *names: str) -> Audit:
    """Images of class basic; each holds its own name."""
    images = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(name.encode())
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        images.append(RealImage(name, "basic", {}, 1, 1, len(data), sha256, "0" * 16, pixel_sha256=sha256))
    return Audit(root, tuple(images), (), (), {"basic": len(images)}, (), (), (), (), (), 0)


def bring_in(found: Audit, run: Path, log: ManifestLog | None = None) -> dict[str, bytes]:
    """Commits the images; the bytes in the run of each, by id."""
    storage = open_storage(run, create=True)
    facts = RunFacts("run-1", ("lighting", "burn_level"), CONFIG_OF_RUN, None, None, {})
    commit_real_images(found, ["basic"], log or start(storage), storage, facts)
    rows = read_log(storage).table.to_pylist()
    return {row["id"]: storage.read(row["file_name"]) for row in rows}


def test_rows_hold_only_facet_values_that_the_config_has_for_the_class(tmp_path):
    found = dataset(tmp_path / "data", "basic/a.png", "basic/b.png")
    stated = ({"lighting": "Dim", "burn_level": "severe"}, {"lighting": "dim"})
    images = tuple(replace(image, facets=facets) for image, facets in zip(found.images, stated, strict=True))
    bring_in(replace(found, images=images), tmp_path / "run")
    table = read_log(open_storage(tmp_path / "run", create=False)).table
    rows = table.select(["lighting", "burn_level"]).to_pylist()
    assert rows == [{"lighting": None, "burn_level": None}, {"lighting": "dim", "burn_level": None}]


@pytest.mark.parametrize("names", COLLIDED)
def test_images_whose_names_are_alike_do_not_replace_each_other(tmp_path, names):
    brought = bring_in(dataset(tmp_path / "data", *names), tmp_path / "run")
    assert brought == {f"real/{name}": name.encode() for name in names}
    assert check_run(open_storage(tmp_path / "run", create=False)).problems == ()


def test_every_image_of_a_large_folder_has_a_file_of_its_own(tmp_path):
    folder = COLLIDED[0][0].rpartition("/")[0]
    names = [f"{folder}/IMG_{number:05d}.png" for number in (*range(200), 1379, 8674)]
    brought = bring_in(dataset(tmp_path / "data", *names), tmp_path / "run")
    assert set(brought.values()) == {name.encode() for name in names}


def test_images_of_an_earlier_version_stay_where_they_are_and_new_ones_join_them(tmp_path):
    old, new = COLLIDED[0]
    storage = open_storage(tmp_path / "run", create=True)
    before: dict[str, Any] = {
        "file_name": f"images/basic/real/{slug_of_before(old)}.png",
        "sha256": hashlib.sha256(old.encode()).hexdigest(),
        "num_bytes": len(old),
    }
    storage.publish(before["file_name"], old.encode())
    start(storage).commit([real(old, **before)])
    brought = bring_in(dataset(tmp_path / "data", old, new), tmp_path / "run")
    assert brought == {f"real/{name}": name.encode() for name in (old, new)}
    assert read_log(storage).table["file_name"][0].as_py() == before["file_name"]
    assert (check_run(storage).problems, check_run(storage).notes) == ((), ())


def test_an_image_that_changed_after_a_start_that_was_cut_short_is_brought_in_anew(tmp_path, monkeypatch):
    """The first start wrote the file and died before it committed the row."""
    found = dataset(tmp_path / "data", "basic/a.png")
    storage = open_storage(tmp_path / "run", create=True)
    log = start(storage)
    monkeypatch.setattr(log, "commit", lambda rows: lose_the_answer())
    with pytest.raises(StorageError):
        bring_in(found, tmp_path / "run", log)
    (tmp_path / "data" / "basic" / "a.png").write_bytes(b"edited since")
    brought = bring_in(dataset(tmp_path / "data", "basic/a.png"), tmp_path / "run")
    assert brought == {"real/basic/a.png": b"edited since"}
    left = gc.find_leftovers(storage, older_than=at(0) - at(0), now=lambda: at(60 * 24 * 365 * 100))
    assert len(left) == 1
