"""Nothing that reads by splits lets a classifier see in training what it is tested on, try as one may."""

from __future__ import annotations

import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer import open_manifest, run_status
from balancer.cli import main
from balancer.errors import UsageError
from balancer.export import FORMATS, Options, export
from balancer.manifest import check_run
from balancer.report.facts import gather_facts
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import image_bytes, real, row, start

EVALUATION = ("validation", "test")
ORDER = ("train", "validation", "test", "holdout")
HELD_OUT_PICTURE = 3
"""The picture that a hold-out image shows, too."""

BASES = (0, 0xFFFF, 0xFFFF0000, 0xFFFF00000000)
"""Hashes of the four pictures: 16 bits and more apart."""


def looks(picture: int, variant: int = 0) -> dict[str, Any]:
    """What a picture is recognised by. Variants are up to two bits off: those of one picture are copies."""
    embedding = np.eye(4, dtype="<f2")[picture].tobytes()
    phash = f"{BASES[picture] ^ (variant << 40):016x}"
    return {"phash": phash, "embedding": embedding, "pixel_sha256": f"pixels {picture} {variant}"}


def commit(folder: Path, *rows: dict[str, Any]) -> Manifest:
    storage = open_storage(folder, create=True)
    for one in rows:
        if one["file_name"] is not None:
            data = image_bytes(one["file_name"][len("images/") : -len(".png")])
            storage.publish(one["file_name"], data)
    start(storage).commit(rows)
    return open_manifest(folder)


# ---- trying to leak --------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A row as somebody may have committed it."""

    id: str
    source: str
    split: str
    parent: str | None
    picture: int
    variant: int

    def as_row(self, number: int) -> dict[str, Any]:
        held_out = self.picture == HELD_OUT_PICTURE and self.source == "real"
        told = {
            "id": self.id,
            "split": self.split,
            "parent_id": self.parent,
            "nearest_id": "holdout/basic/1.png" if held_out else None,
            **looks(self.picture, self.variant),
        }
        if self.source == "real":
            return real(f"{number}.png") | told
        return row(f"basic/dim/{number:04d}") | told


@st.composite
def drawn_rows(draw: st.DrawFn) -> list[Drawn]:
    ids = [f"real/{n}.png" for n in range(draw(st.integers(1, 5)))]
    ids += [f"basic/dim/{n:04d}-1" for n in range(draw(st.integers(1, 4)))]
    found = []
    for name in ids:
        source = "real" if name.startswith("real/") else "synthetic"
        # A picture of the hold-out is never accepted; that the copy check works is tested elsewhere.
        pictures = st.integers(0, 3 if source == "real" else 2)
        parents = st.none() if source == "real" else st.sampled_from([None, None, "holdout/x.png", *ids])
        drawn = Drawn(
            name,
            source,
            draw(st.sampled_from(ORDER[:3])),
            draw(parents),
            draw(pictures),
            draw(st.integers(0, 3)),
        )
        found.append(drawn)
    return found


FILTERS = [
    None,
    "source = 'synthetic'",
    "source = 'real'",
    "split = 'test'",
    "split = 'train' or parent_id is not null",
    "class = 'basic' and split <> 'train'",
    pc.field("split") == "validation",
]


@dataclass(frozen=True)
class Oracle:
    """What is right, worked out row by row."""

    rows: Mapping[str, Drawn]

    def split(self, row_id: str) -> str | None:
        for _ in range(len(self.rows) + 1):
            if row_id not in self.rows:
                return None
            if (parent := self.rows[row_id].parent) is None:
                return self.rows[row_id].split
            row_id = parent
        return None

    def shows_what_is_kept_apart(self, row_id: str) -> bool:
        """A real image of a later split, or of the hold-out, shows the same picture as it, or as an image
        that it was made from."""
        chain = [row_id]
        while (parent := self.rows[chain[-1]].parent) in self.rows and parent not in chain:
            chain.append(str(parent))
        return any(map(self.shows_itself, chain))

    def shows_itself(self, row_id: str) -> bool:
        one, split = self.rows[row_id], self.split(row_id)
        if one.picture == HELD_OUT_PICTURE:
            return True
        later = ORDER[ORDER.index(split or "train") + 1 :]
        reals = (other for other in self.rows.values() if other.source == "real")
        return any(other.picture == one.picture and other.split in later for other in reals)


def yielded(
    manifest: Manifest, way: str, split: str | None, filter: Any, tmp: Path
) -> Iterator[tuple[str, str]]:
    """(id, split) of everything that one way of reading gives; for exports, the split they say."""
    if way == "images":
        for image in manifest.images(filter, split=split):
            yield image.id, image.row["split"]
    elif way == "torch":
        dataset = manifest.to_torch(split, filter=filter)
        assert len(manifest.sampler(split=split, filter=filter)) == len(dataset)
        told = {image.id: image.row["split"] for image in manifest.images(filter, split=split)}
        yield from ((dataset.id(place), told[dataset.id(place)]) for place in range(len(dataset)))
    elif way == "hf":
        found = manifest.to_hf(split, filter=filter, columns=["id", "split"])
        yield from zip(found["id"], found["split"], strict=True)
    else:
        asked = filter if split is None else with_split(filter, split)
        export(manifest, way, tmp / way, asked)
        yield from exported(way, tmp / way)


def with_split(filter: Any, split: str) -> Any:
    if isinstance(filter, pc.Expression):
        return filter & (pc.field("split") == split)
    return f"split = '{split}'" + (f" and ({filter})" if filter else "")


def exported(form: str, at: Path) -> Iterator[tuple[str, str]]:
    """(id, split) of every image of an export, where its files say that it is."""
    readers = {
        "parquet": lambda: of_table(pq.read_table(at)),
        "arrow": lambda: of_table(pa.ipc.open_file(at).read_all()),
        "folders": lambda: of_folders(at),
        "hf": lambda: of_tables(at.glob("*/metadata.parquet"), lambda file: file.parent.name),
        "webdataset": lambda: of_tars(at),
        "csv": lambda: of_table(pacsv.read_csv(at / "labels.csv")),
        "coco": lambda: of_coco(at),
        "labelstudio": lambda: of_tasks(json.loads((at / "tasks.json").read_bytes())),
        "fiftyone": lambda: of_samples(json.loads((at / "samples.json").read_bytes())["samples"]),
    }
    return readers[form]()


def of_coco(at: Path) -> Iterator[tuple[str, str]]:
    for file in (at / "annotations").iterdir() if (at / "annotations").exists() else ():
        split = {"val": "validation"}.get(name := file.stem.removeprefix("instances_"), name)
        yield from ((image["metadata"]["id"], split) for image in json.loads(file.read_bytes())["images"])


def of_table(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True)


def of_tables(files: Iterable[Path], split_of: Callable[[Path], str]) -> Iterator[tuple[str, str]]:
    for file in files:
        yield from ((name, split_of(file)) for name in pq.read_table(file)["id"].to_pylist())


def of_folders(at: Path) -> Iterator[tuple[str, str]]:
    def split_of(file: Path) -> str:
        return "train" if file.parent.parent == at else file.parent.parent.name

    return of_tables(at.rglob("metadata/images.parquet"), split_of)


def of_tars(at: Path) -> Iterator[tuple[str, str]]:
    for file in at.glob("*.tar"):
        with tarfile.open(file) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".json") and (data := archive.extractfile(member)):
                    yield json.loads(data.read())["id"], file.name.rpartition("-")[0]


def of_tasks(tasks: list[Any]) -> Iterator[tuple[str, str]]:
    return ((task["data"]["id"], task["data"]["split"]) for task in tasks)


def of_samples(samples: list[Any]) -> Iterator[tuple[str, str]]:
    return ((sample["balancer_id"], sample["tags"][0]) for sample in samples)


@settings(max_examples=120)
@given(
    rows=drawn_rows(),
    way=st.sampled_from(["images", "torch", "hf", *FORMATS]),
    split=st.sampled_from([None, *ORDER[:3]]),
    filter=st.sampled_from(FILTERS),
)
def test_nothing_leaks_whatever_the_rows_the_splits_and_the_filter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Drawn], way: str, split: str | None, filter: Any
):
    tmp = tmp_path_factory.mktemp("leak")
    oracle = Oracle({one.id: one for one in rows})
    manifest = commit(tmp / "run", *(one.as_row(number) for number, one in enumerate(rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is left out
        try:
            found = list(yielded(manifest, way, split, filter, tmp))
        except UsageError:
            return  # refusing is safe; what must be given is tested below
    for row_id, told in found:
        assert told == oracle.split(row_id), "an image belongs where its parent does"
        assert told not in EVALUATION or oracle.rows[row_id].source == "real", "generated ones test nothing"
        assert not oracle.shows_what_is_kept_apart(row_id), "what is tested on is not trained on"


# ---- each rule by itself ---------------------------------------------------------------------


def ids(manifest: Manifest, split: str, **options: Any) -> list[str]:
    dataset = manifest.to_torch(split, **options)
    return [dataset.id(place) for place in range(len(dataset))]


def child(number: int, parent: str | None, split: str = "train") -> dict[str, Any]:
    return row(f"basic/dim/{number:04d}", split=split, parent_id=parent)


def test_a_child_follows_its_parent_however_far_back(tmp_path):
    manifest = commit(
        tmp_path,
        real("a.png", split="train"),
        real("b.png", split="validation"),
        child(0, "real/a.png", split="train"),
        child(1, "real/b.png", split="train"),
        child(2, "basic/dim/0001-1", split="train"),
    )
    assert ids(manifest, "train") == ["real/a.png", "basic/dim/0000-1"]
    tested_on = ids(manifest, "validation", allow_synthetic_eval=True)
    assert tested_on == ["real/b.png", "basic/dim/0001-1", "basic/dim/0002-1"]


@pytest.mark.parametrize("parent", ["holdout/x.png", "basic/dim/0000-1"])
def test_a_child_of_nobody_known_and_one_of_itself_belong_nowhere(tmp_path, parent):
    manifest = commit(tmp_path, real("a.png", split="train"), child(0, parent))
    assert ids(manifest, "train") == ["real/a.png"]
    assert [image.id for image in manifest.images()] == ["real/a.png"]


@pytest.mark.parametrize("split", EVALUATION)
def test_generated_images_in_validation_or_test_are_an_error_unless_they_are_wanted(tmp_path, split):
    manifest = commit(tmp_path, real("a.png", split=split), child(0, None, split=split))
    with pytest.raises(UsageError, match=f"1 generated image would be in '{split}', such as") as caught:
        manifest.to_torch(split)
    assert "allow_synthetic_eval=True" in caught.value.hint
    assert "source = 'real'" in caught.value.hint
    assert ids(manifest, split, allow_synthetic_eval=True) == ["real/a.png", "basic/dim/0000-1"]
    assert ids(manifest, split, filter="source = 'real'") == ["real/a.png"]


def test_every_way_of_reading_takes_the_flag(tmp_path):
    manifest = commit(tmp_path / "run", real("a.png", split="test"), child(0, None, split="test"))
    flag = {"allow_synthetic_eval": True}
    assert len(manifest.images(split="test", **flag)) == 2
    assert len(manifest.sampler(split="test", **flag)) == 2
    assert manifest.to_hf("test", **flag).num_rows == 2
    assert export(manifest, "parquet", tmp_path / "all.parquet", None, Options(**flag)).images == 2
    for way in ("images", "hf", "webdataset"):
        with pytest.raises(UsageError, match="generated image "):
            list(yielded(manifest, way, None, None, tmp_path))


def test_of_two_copies_the_one_in_the_later_split_stays(tmp_path):
    manifest = commit(
        tmp_path,
        real("a.png", split="train", **looks(0)),
        real("b.png", split="validation", **looks(0, 1)),
        real("c.png", split="train", **looks(1)),
        real("d.png", split="validation", **looks(2)),
        real("e.png", split="test", **looks(2, 3)),
    )
    with pytest.warns(UserWarning, match=r"left out: 1 image, .* real/a\.png is real/b\.png"):
        assert ids(manifest, "train") == ["real/c.png"]
    with pytest.warns(UserWarning, match=r"real/d\.png is real/e\.png"):
        assert ids(manifest, "validation") == ["real/b.png"]
    assert ids(manifest, "test") == ["real/e.png"]


def test_a_filter_that_does_not_meet_the_original_changes_nothing(tmp_path):
    manifest = commit(
        tmp_path,
        real("a.png", split="train", **looks(0)),
        real("b.png", split="test", **looks(0, 1)),
        real("c.png", split="train", **looks(1)),
    )
    with pytest.warns(UserWarning, match="left out"):
        assert ids(manifest, "train", filter="id <> 'real/b.png'") == ["real/c.png"]


def test_images_that_are_alike_by_their_hash_alone_are_no_copies(tmp_path):
    other = looks(0, 1) | {"embedding": looks(1)["embedding"]}
    manifest = commit(
        tmp_path, real("a.png", split="train", **looks(0)), real("b.png", split="test", **other)
    )
    assert ids(manifest, "train") == ["real/a.png"]


def test_an_image_that_the_hold_out_shows_is_in_no_split(tmp_path):
    held_out = {"nearest_id": "holdout/basic/1.png", "nearest_distance": 1, "nearest_similarity": 0.99}
    manifest = commit(
        tmp_path, real("a.png", split="train", **held_out), real("b.png", split="train"), child(0, None)
    )
    with pytest.warns(UserWarning, match=r"real/a\.png is holdout/basic/1\.png"):
        assert ids(manifest, "train") == ["real/b.png", "basic/dim/0000-1"]


def test_the_nearest_image_of_a_generated_one_is_no_reason_to_leave_it_out(tmp_path):
    manifest = commit(tmp_path, row("basic/dim/0000", split="train", nearest_id="holdout/basic/1.png"))
    assert ids(manifest, "train") == ["basic/dim/0000-1"]


def test_an_export_says_on_the_command_line_what_it_leaves_out(tmp_path):
    commit(
        tmp_path / "run",
        real("a.png", split="train", **looks(0)),
        real("b.png", split="test", **looks(0, 1)),
    )
    command = ["export", str(tmp_path / "run"), "parquet", str(tmp_path / "out.parquet")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "warning: left out: 1 image" in result.stderr


def test_an_export_with_generated_images_to_test_on_needs_its_flag(tmp_path):
    commit(tmp_path / "run", real("a.png", split="test"), child(0, None, split="test"))
    command = ["export", str(tmp_path / "run"), "parquet", str(tmp_path / "out.parquet")]
    refused = CliRunner().invoke(main, command)
    assert (refused.exit_code, (tmp_path / "out.parquet").exists()) == (2, False)
    assert "--allow-synthetic-eval" in refused.stderr
    assert CliRunner().invoke(main, [*command, "--allow-synthetic-eval"]).exit_code == 0


def test_rows_reach_training_code_and_exports_through_one_door(project):
    """What reads a manifest otherwise would have to keep the rules by itself."""
    reading = re.compile(r"(?<!balancer\.)(?<!\bselect\()manifest\.(to_table|count_by|sql|dataset|rows)\b")
    readers = {
        path.name
        for package in ("training", "export")
        for path in (project / "balancer" / package).glob("*.py")
        if reading.search(path.read_text())
    }
    assert readers == {"selection.py"}


# ---- fsck ------------------------------------------------------------------------------------


def found_by_fsck(manifest: Manifest) -> tuple[dict[str, str], dict[str, str]]:
    """Problems and notes: rule -> detail."""
    found = check_run(open_storage(manifest.uri, create=False))
    return {each.rule: each.detail for each in found.problems}, {
        each.rule: each.detail for each in found.notes
    }


def test_fsck_is_content_with_splits_that_share_nothing(tmp_path):
    manifest = commit(
        tmp_path,
        real("a.png", split="train", **looks(0)),
        real("b.png", split="validation", **looks(1)),
        real("c.png", split="test", **looks(2)),
        child(0, "real/a.png"),
        row("basic/dim/0001", split="train"),
    )
    assert found_by_fsck(manifest) == ({}, {})


@pytest.mark.parametrize(
    ("rows", "rule", "detail"),
    [
        ([real("a.png", split="extra")], "known splits", "is of split 'extra'"),
        ([child(0, None, split="test")], "generated images are for training", "belongs to split 'test'"),
        ([child(0, "real/x.png")], "parents are there", "'real/x.png', which leads to no image"),
        ([child(0, "basic/dim/0000-1")], "parents are there", "leads to no image"),
        (
            [real("a.png", split="test"), child(0, "real/a.png")],
            "children follow their parents",
            "is of split 'train', and 'real/a.png', of which it was generated, of 'test'",
        ),
        (
            [real("a.png", split="test"), child(0, "real/a.png", split="test")],
            "generated images are for training",
            "belongs to split 'test'",
        ),
        (
            [real("a.png", split="train", **looks(0)), real("b.png", split="test", **looks(0))],
            "no picture in two splits",
            "is the same picture as 'real/b.png' of split 'test', itself in 'train'",
        ),
    ],
)
def test_fsck_finds_a_leak(tmp_path: Path, rows: Sequence[dict[str, Any]], rule: str, detail: str):
    problems, _ = found_by_fsck(commit(tmp_path, *rows))
    assert detail in problems[rule]


def test_fsck_lists_copies_across_splits(tmp_path):
    manifest = commit(
        tmp_path,
        real("a.png", split="train", **looks(0)),
        real("b.png", split="validation", **looks(0, 1)),
        real("c.png", split="train", **looks(0, 3)),
    )
    result = CliRunner().invoke(main, ["fsck", str(tmp_path)])
    assert result.exit_code == 0, result.output
    noted = [line for line in result.stderr.splitlines() if "looks like 'real/b.png'" in line]
    assert len(noted) == 2
    assert "1 bits apart, cosine 1.000" in noted[0]
    assert found_by_fsck(manifest)[0] == {}


def test_card_and_report_say_how_many_images_are_left_out(tmp_path):
    held_out = {"nearest_id": "holdout/basic/1.png", "nearest_distance": 1, "nearest_similarity": 0.99}
    rows = real("a.png", split="train", **held_out), real("b.png", split="train"), child(0, None)
    manifest = commit(tmp_path / "run", *rows)
    export(manifest, "hf", tmp_path / "hf")
    card = (tmp_path / "hf/README.md").read_text()
    assert "Left out of it: 1 image of the run, because an image of a later split, or of the hold-out" in card
    assert "2 images of 1 class: 1 real" in card
    assert gather_facts(manifest, run_status(manifest.uri)).left_out == 1
