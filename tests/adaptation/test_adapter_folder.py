"""The folder of trained adapters."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from balancer.adaptation.page import _cut, draw_curve
from balancer.adaptation.record import INDEX, TrainedAdapter
from balancer.adaptation.store import AdapterFolder
from balancer.errors import StorageError, UsageError

ONE, OTHER = "1" * 64, "2" * 64
DATA = b"weights"


def adapter(identity: str = ONE, name: str = "dataset") -> TrainedAdapter:
    return TrainedAdapter(
        name=name,
        file=f"{name}.safetensors",
        sha256=hashlib.sha256(DATA).hexdigest(),
        identity=identity,
        classes=["cat"],
        images={"cat": 4},
        steps=2,
        losses=[0.5, 0.4],
    )


def test_an_adapter_is_there_once_its_bytes_are_those_that_were_written(tmp_path):
    folder = AdapterFolder.open(tmp_path, {"dataset": ONE}, False)
    assert not folder.has("dataset")
    folder.write_checkpoint("dataset", b"state")
    assert folder.read_checkpoint("dataset", 9) == b"state"
    folder.add(adapter(), DATA)
    again = AdapterFolder.open(tmp_path, {"dataset": ONE}, False)
    assert again.has("dataset")
    assert again.read_checkpoint("dataset", 9) is None
    assert again.adapters() == (adapter(),)
    (tmp_path / "dataset.safetensors").write_bytes(b"others")
    assert not again.has("dataset")


def test_no_more_of_a_checkpoint_is_read_than_a_training_writes(tmp_path):
    folder = AdapterFolder.open(tmp_path, {"dataset": ONE}, False)
    folder.write_checkpoint("dataset", b"state")
    with pytest.raises(StorageError, match="over the limit"):
        folder.read_checkpoint("dataset", 4)


def test_adapters_of_other_images_are_replaced_only_if_asked(tmp_path):
    AdapterFolder.open(tmp_path, {"dataset": ONE}, False).add(adapter(), DATA)
    with pytest.raises(UsageError, match="1 adapter of other images, settings or versions, such as dataset"):
        AdapterFolder.open(tmp_path, {"dataset": OTHER}, False)
    assert not AdapterFolder.open(tmp_path, {"dataset": OTHER}, True).has("dataset")


def test_adapters_of_another_scope_stay_beside_those_of_this_one(tmp_path):
    AdapterFolder.open(tmp_path, {"dataset": ONE}, False).add(adapter(), DATA)
    classes = {"class-cat": ONE, "class-dog": ONE}
    AdapterFolder.open(tmp_path, classes, False).add(adapter(name="class-cat"), DATA)
    resumed = AdapterFolder.open(tmp_path, classes, False)
    assert [one.name for one in resumed.adapters()] == ["class-cat"]
    assert AdapterFolder.open(tmp_path, {"dataset": ONE}, False).has("dataset")


def test_two_commands_at_once_lose_no_adapter_of_each_other(tmp_path):
    one, other = (AdapterFolder.open(tmp_path, {name: ONE}, False) for name in ("dataset", "class-cat"))
    one.add(adapter(), DATA)
    other.add(adapter(name="class-cat"), DATA)
    both = AdapterFolder.open(tmp_path, {"dataset": ONE, "class-cat": ONE}, False)
    assert both.has("dataset")
    assert both.has("class-cat")


def test_a_checkpoint_of_other_images_or_settings_is_not_used(tmp_path):
    AdapterFolder.open(tmp_path, {"dataset": ONE}, False).write_checkpoint("dataset", b"state")
    assert AdapterFolder.open(tmp_path, {"dataset": OTHER}, False).read_checkpoint("dataset", 9) is None


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds files but no adapters, such as thesis\.txt"):
        AdapterFolder.open(tmp_path, {"dataset": ONE}, True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


WITHOUT_LOSSES = json.dumps({"format": 1, "adapters": [adapter().model_dump() | {"losses": []}]})


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        '{"format": 2, "adapters": []}',
        '{"format": 1, "adapters": [{"file": "../../x"}]}',
        WITHOUT_LOSSES,
    ],
)
def test_an_index_that_this_version_cannot_read_is_one_clear_error(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UsageError, match=r"adapters\.json is not what `balancer adapt` writes"):
        AdapterFolder.open(tmp_path, {"dataset": ONE}, False)


def test_samples_are_kept_side_by_side(tmp_path):
    folder = AdapterFolder.open(tmp_path, {"dataset": ONE}, False)
    folder.write_samples("dataset", "before", np.zeros((3, 256, 256, 3), np.uint8))
    assert folder.read_samples("dataset", "before") is not None
    assert folder.read_samples("dataset", "after") is None


@pytest.mark.parametrize("count", [1, 2, 199, 200, 1001])
def test_a_curve_goes_from_the_first_step_to_the_last(count):
    curve = draw_curve([1.0 - number / count for number in range(count)])
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert points[0][0] == 0.0
    assert len(points) == min(count, 200)
    assert curve.least <= curve.most


def test_a_sheet_with_fewer_pixels_than_samples_shows_none(tmp_path):
    folder = AdapterFolder.open(tmp_path, {"dataset": ONE}, False)
    folder.write_samples("dataset", "before", np.zeros((1, 8, 3, 3), np.uint8))
    assert _cut(folder.read_samples("dataset", "before"), 4) == [None] * 4
