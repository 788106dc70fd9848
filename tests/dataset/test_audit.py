"""Rules of the audit: what is counted, what is listed with a reason, and what is no dataset at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from balancer.cli import main
from balancer.cli.datasets.audit import _percent as share
from balancer.config.schema import Config
from balancer.dataset.audit import (
    Audit,
    audit,
    audit_dataset,
    dataset_folder,
    find_dataset,
    match_classes,
)
from balancer.dataset.readers import walking
from balancer.errors import DatasetError, StorageError
from balancer.images import NAMES_OF_FORMATS, encode_image, perceptual_hash

Dataset = Callable[[Mapping[str, bytes]], Path]


def png(seed: int = 0, width: int = 8, height: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Makes a dataset of the given files; a name that ends in a slash is an empty folder."""

    def make(files: Mapping[str, bytes]) -> Path:
        root = tmp_path / "data"
        root.mkdir()
        for name, content in files.items():
            target = root / name
            if name.endswith("/"):
                target.mkdir(parents=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return root

    return make


def config(*classes: str, **sections: Any) -> Config:
    return Config.model_validate(
        {"classes": {name: {"prompts": [name]} for name in classes}, "target": {"per_class": 5}, **sections}
    )


def names(found: Audit) -> list[str]:
    return [image.file_name for image in found.images]


def table(*rows: Mapping[str, object]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


# What is counted


def test_each_class_folder_counts_its_readable_images(dataset: Dataset):
    found = audit(dataset({"basic/1.png": png(1), "basic/2.png": png(2), "burnt/1.png": png(3)}))
    assert found.counts == {"basic": 2, "burnt": 1}


def test_a_class_folder_without_images_counts_none(dataset: Dataset):
    assert audit(dataset({"basic/": b"", "burnt/1.png": png()})).counts == {"basic": 0, "burnt": 1}


def test_images_deeper_than_the_class_folder_belong_to_the_class(dataset: Dataset):
    found = audit(dataset({"basic/day/one/1.png": png(1), "basic/night/1.png": png(2)}))
    assert found.counts == {"basic": 2}
    assert names(found) == ["basic/day/one/1.png", "basic/night/1.png"]


def test_images_are_sorted_by_name(dataset: Dataset):
    found = audit(dataset({f"{name}.png": png(i) for i, name in enumerate(("b/2", "a/9", "b/1", "a/10"))}))
    assert names(found) == ["a/10.png", "a/9.png", "b/1.png", "b/2.png"]


def test_an_image_is_described_by_what_is_in_it(dataset: Dataset):
    data = png(seed=3, width=24, height=16)
    [image] = audit(dataset({"basic/1.png": data})).images
    assert (image.class_name, image.width, image.height, image.num_bytes) == ("basic", 24, 16, len(data))
    assert len(image.sha256) == 64
    assert image.phash == perceptual_hash(np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "name", ["-rf.png", "two\nlines.png", "naïve 披萨.png", "a'b\"c.png", "[x].PNG", "a..png"]
)
def test_any_file_name_works(dataset: Dataset, name: str):
    assert names(audit(dataset({f"basic/{name}": png()}))) == [f"basic/{name}"]


def test_hidden_files_and_folders_are_left_out(dataset: Dataset):
    found = audit(dataset({"basic/.1.png": png(), "basic/.thumbs/1.png": png(), ".git/1.png": png()}))
    assert (found.counts, found.unreadable, found.ignored_files) == ({"basic": 0}, (), 0)


def test_files_that_are_no_pictures_are_only_counted(dataset: Dataset):
    found = audit(
        dataset({"basic/1.png": png(), "basic/notes.txt": b"", "basic/1.json": b"", "README.md": b""})
    )
    assert (found.unreadable, found.ignored_files) == ((), 2)


def test_an_image_is_read_whatever_its_suffix_says(dataset: Dataset):
    assert audit(dataset({"basic/1.jpg": png()})).counts == {"basic": 1}


def test_images_beside_the_class_folders_are_listed_and_not_counted(dataset: Dataset):
    found = audit(dataset({"basic/1.png": png(1), "stray.png": png(2)}))
    assert (found.counts, found.outside) == ({"basic": 1}, ("stray.png",))


def test_files_with_the_same_bytes_are_grouped_across_classes(dataset: Dataset):
    files = {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": png(1), "b/4.png": png(2), "b/5.png": png(5)}
    found = audit(dataset(files))
    assert found.duplicates == (("a/1.png", "b/3.png"), ("a/2.png", "b/4.png"))
    assert found.counts == {"a": 2, "b": 3}


def test_images_that_carry_the_synthetic_mark_are_listed(dataset: Dataset):
    generated = encode_image(np.zeros((8, 8, 3), np.uint8), {})
    assert audit(dataset({"a/1.png": png(), "a/2.png": generated})).marked_synthetic == ("a/2.png",)


# What cannot be used


def test_an_unreadable_image_is_listed_with_its_reason_and_the_others_are_counted(dataset: Dataset):
    files = {
        "a/1.png": png(),
        "a/cut.png": png(1, 64, 64)[:2000],
        "a/empty.jpg": b"",
        "a/page.webp": b"<html>",
    }
    found = audit(dataset(files))
    assert found.counts == {"a": 1}
    assert found.unreadable == (
        ("a/cut.png", "truncated: the file ends before the image does"),
        ("a/empty.jpg", "the file is empty"),
        ("a/page.webp", f"not a {NAMES_OF_FORMATS} image"),
    )


def test_a_huge_image_is_listed_with_the_limit(dataset: Dataset):
    root = dataset({"a/1.png": png(width=40, height=30)})
    assert audit(root, max_pixels=1200).unreadable == ()
    [(name, reason)] = audit(root, max_pixels=1199).unreadable
    assert name == "a/1.png"
    assert reason.startswith("40 x 30 is 0.0 megapixels, over the limit of 0.001199")


def test_a_large_file_is_listed_with_the_limit(dataset: Dataset):
    [(_, reason)] = audit(dataset({"a/1.png": bytes(30_000)}), max_bytes=20_000).unreadable
    assert reason == "0.0 megabytes, over the limit of 0.02 (dataset.max_image_megabytes)"


def test_pictures_of_other_formats_are_listed_and_not_passed_over(dataset: Dataset):
    found = audit(dataset({"a/1.png": png(), "a/2.JP2": b"x", "a/3.psd": b"x"}))
    assert found.unreadable == (
        ("a/2.JP2", f"JP2 is not supported: save it as {NAMES_OF_FORMATS}"),
        ("a/3.psd", f"PSD is not supported: save it as {NAMES_OF_FORMATS}"),
    )


def test_without_its_codec_a_heic_says_what_reads_it(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(walking, "OTHER_PICTURE_SUFFIXES", walking.OTHER_PICTURE_SUFFIXES | {".heic"})
    [(name, reason)] = audit(dataset({"a/1.png": png(), "a/2.HEIC": b"x"})).unreadable
    assert (name, reason) == ("a/2.HEIC", "HEIC needs the package pillow-heif: pip install 'balancer[heic]'")


def test_links_to_images_and_folders_are_listed_and_not_followed(dataset: Dataset):
    root = dataset({"a/1.png": png()})
    (root / "a/loop").symlink_to(root)
    (root / "a/2.png").symlink_to(root / "a/1.png")
    (root / "b").symlink_to(root / "a")
    (root / "a/circle").symlink_to("circle")
    found = audit(root)
    assert found.counts == {"a": 1}
    reason = "a symbolic link, which is not followed"
    assert found.unreadable == (("a/2.png", reason), ("a/loop", reason), ("b", reason))


def test_a_linked_dataset_folder_is_the_dataset(dataset: Dataset, tmp_path: Path):
    (tmp_path / "link").symlink_to(dataset({"a/1.png": png()}))
    assert audit(tmp_path / "link").counts == {"a": 1}


def test_names_that_are_not_utf8_are_listed_in_a_form_that_can_be_written(dataset: Dataset):
    root = dataset({"a/1.png": png()})
    try:
        (root / os.fsdecode(b"a/\xff.png")).write_bytes(png())
        (root / os.fsdecode(b"b\xfe")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = audit(root)
    assert found.counts == {"a": 1}
    assert found.unreadable == (
        ("a/\ufffd.png", "its name is not valid UTF-8"),
        ("b\ufffd", "its name is not valid UTF-8"),
    )


def test_a_folder_that_cannot_be_read_is_listed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    root = dataset({"a/1.png": png(), "a/locked/2.png": png()})
    scandir = os.scandir

    def refusing(path: str | Path) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = audit(root)
    assert (found.counts, found.unreadable) == (
        {"a": 1},
        (("a/locked", "a folder that cannot be read: Permission denied"),),
    )


def test_deeply_nested_folders_are_walked(dataset: Dataset):
    root = dataset({"a/1.png": png()})
    deepest = root / "a"
    for _ in range(500):  # more than pytest itself can remove would be no use
        deepest = deepest / "d"
        deepest.mkdir()
    (deepest / "2.png").write_bytes(png(1))
    assert audit(root).counts == {"a": 2}


# What is no dataset


@pytest.mark.parametrize("function", [audit, lambda path: audit(str(path))])
def test_a_missing_dataset_is_named_and_a_sample_offered(tmp_path: Path, function: Callable[[Path], Audit]):
    with pytest.raises(DatasetError, match="nowhere: no such dataset folder") as caught:
        function(tmp_path / "nowhere")
    assert caught.value.hint == "`balancer sample DIR` renders a sample dataset"
    assert caught.value.exit_code == 2


def test_a_file_is_no_dataset(tmp_path: Path):
    (tmp_path / "data.zip").touch()
    with pytest.raises(DatasetError, match=r"data\.zip: a dataset is a folder, not a file"):
        audit(tmp_path / "data.zip")


@pytest.mark.parametrize("files", [{}, {".DS_Store": b""}])
def test_an_empty_folder_is_no_dataset(dataset: Dataset, files: Mapping[str, bytes]):
    with pytest.raises(DatasetError, match="the dataset folder is empty"):
        audit(dataset(files))


def test_images_without_class_folders_are_no_dataset(dataset: Dataset):
    with pytest.raises(DatasetError, match="no class folder; 2 images directly in it") as caught:
        audit(dataset({"1.png": png(), "2.png": png()}))
    assert "named after the class" in caught.value.hint


def test_a_hold_out_beside_training_images_is_offered_as_such(dataset: Dataset):
    root = dataset({"holdout/basic/1.png": png(), "train/basic/1.png": png()})
    with pytest.raises(
        DatasetError, match=r"contains splits of a dataset \(train\) and a hold-out \(holdout\)"
    ) as caught:
        audit(root)
    assert caught.value.hint == f"set dataset.path: {root / 'train'} and dataset.holdout: {root / 'holdout'}"


def test_a_class_may_be_called_like_a_split(dataset: Dataset):
    assert audit(dataset({"test/1.png": png(), "train/1.png": png()})).counts == {"test": 1, "train": 1}


# The metadata table


ROWS: list[dict[str, object]] = [
    {"file_name": "a/1.png", "class": "a", "lighting": "dim"},
    {"file_name": "a/2.png", "class": "a", "lighting": "harsh"},
    {"file_name": "b/1.png", "class": "b", "lighting": "dim"},
    {"file_name": "b/2.png", "class": "b", "lighting": None},
]
FILES = {"a/1.png": png(1), "a/2.png": png(2), "b/1.png": png(3), "b/2.png": png(4)}


def parquet(dictionary: bool = False) -> bytes:
    buffer = io.BytesIO()
    columns = pa.Table.from_pylist(ROWS)
    if dictionary:
        columns = columns.set_column(2, "lighting", columns["lighting"].dictionary_encode())
    pq.write_table(columns, buffer)
    return buffer.getvalue()


def csv_table() -> bytes:
    lines = [",".join(str(value or "") for value in row.values()) for row in ROWS]
    return "\ufeff".encode() + "\r\n".join(["file_name,class,lighting", *lines]).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.parquet", parquet()),
        ("metadata.parquet", parquet(dictionary=True)),
        ("metadata.csv", csv_table()),
        ("metadata.jsonl", table(*ROWS)),
    ],
)
def test_the_metadata_table_gives_facet_values(dataset: Dataset, name: str, content: bytes):
    found = audit(dataset({**FILES, name: content}))
    assert found.facet_names == ("lighting",)
    assert [image.facets.get("lighting") for image in found.images] == ["dim", "harsh", "dim", None]


def test_images_without_a_facet_value_are_unlabelled(dataset: Dataset):
    found = audit(dataset({**FILES, "b/3.png": png(5), "metadata.jsonl": table(*ROWS)}))
    assert found.unlabelled == ("b/2.png", "b/3.png")


def test_without_facets_no_image_is_unlabelled(dataset: Dataset):
    root = dataset(FILES)
    assert (audit(root).facet_names, audit(root).unlabelled) == ((), ())


def test_without_a_table_every_image_is_unlabelled_for_the_facets_asked_for(dataset: Dataset):
    assert audit(dataset(FILES), facets=["lighting"]).unlabelled == tuple(FILES)


def test_rows_without_an_image_are_listed(dataset: Dataset):
    rows: list[Mapping[str, object]] = [
        *ROWS,
        {"file_name": "a/9.png", "lighting": "dim"},
        {"file_name": "../etc/passwd"},
    ]
    found = audit(dataset({**FILES, "metadata.jsonl": table(*rows)}))
    assert found.unknown_rows == ("../etc/passwd", "a/9.png")


def test_the_row_of_an_unreadable_image_is_not_called_unknown(dataset: Dataset):
    found = audit(dataset({**FILES, "a/1.png": b"", "metadata.jsonl": table(*ROWS)}))
    assert (found.unknown_rows, len(found.unreadable)) == ((), 1)


def test_an_image_in_another_folder_than_its_class_is_listed_and_the_folder_counts(dataset: Dataset):
    rows: list[Mapping[str, object]] = [*ROWS[1:], {**ROWS[0], "class": "b"}]
    found = audit(dataset({**FILES, "metadata.jsonl": table(*rows)}))
    assert (found.misfiled, found.counts) == (("a/1.png",), {"a": 2, "b": 2})


def test_of_two_rows_of_one_file_the_first_counts(dataset: Dataset):
    rows: list[Mapping[str, object]] = [*ROWS, {"file_name": "a/1.png", "lighting": "harsh"}]
    assert audit(dataset({**FILES, "metadata.jsonl": table(*rows)})).images[0].facets == {"lighting": "dim"}


@pytest.mark.parametrize(
    ("stored", "written"),
    [("a/é.png", "a/e\u0301.png"), ("a/e\u0301.png", "a/é.png"), ("a/1.png", "./a/1.png")],
)
def test_a_file_name_in_the_table_may_be_written_in_another_way(dataset: Dataset, stored: str, written: str):
    root = dataset({stored: png(), "metadata.jsonl": table({"file_name": written, "lighting": "dim"})})
    found = audit(root, facets=["lighting"])
    assert (found.images[0].facets, found.unknown_rows) == ({"lighting": "dim"}, ())


def test_columns_of_free_text_are_no_facets(dataset: Dataset):
    rows = [{**row, "caption": f"picture number {i}"} for i, row in enumerate(ROWS)]
    assert audit(dataset({**FILES, "metadata.jsonl": table(*rows)})).facet_names == ("lighting",)


def test_the_table_may_have_another_name(dataset: Dataset):
    root = dataset({**FILES, "labels/table.csv": csv_table(), "metadata.jsonl": b"not read"})
    (root / "labels" / "table.csv").rename(root / "table.csv")
    assert audit(root, metadata="table.csv").images[0].facets == {"lighting": "dim"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metadata.parquet", b"PAR1 no", r"metadata\.parquet: the file is damaged"),
        ("metadata.csv", b"file_name,light\n\xff\xfe,x", r"metadata\.csv: the file is not UTF-8"),
        ("metadata.jsonl", b"{}\n[1]", "damaged: line 2 is not an object"),
        ("metadata.jsonl", b'{"file_name": ', "damaged: line 1: Expecting value"),
        ("metadata.jsonl", b"[" * 100_000, "damaged"),
        ("metadata.csv", b"name,light\na/1.png,dim", "no column `file_name`; the columns are name, light"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_clear_line(
    dataset: Dataset, name: str, content: bytes, problem: str
):
    with pytest.raises(DatasetError, match=problem):
        audit(dataset({**FILES, name: content}))


def test_a_named_table_that_is_missing_is_an_error(dataset: Dataset):
    with pytest.raises(DatasetError, match=r"dataset\.metadata: no such table: .*/labels\.csv$") as caught:
        audit(dataset(FILES), metadata="labels.csv")
    assert "relative to the dataset" in caught.value.hint


def test_a_table_of_another_kind_is_refused(dataset: Dataset):
    with pytest.raises(
        DatasetError, match=r"labels\.xlsx: a metadata table must be one of \.parquet, \.csv, \.jsonl"
    ):
        audit(dataset({**FILES, "labels.xlsx": b"PK"}), metadata="labels.xlsx")


# The config's classes


def test_classes_come_in_the_order_of_the_config_and_a_missing_folder_counts_none(dataset: Dataset):
    counts = match_classes(audit(dataset(FILES)), config("c", "b", "a"))
    assert list(counts.items()) == [("c", 0), ("b", 2), ("a", 2)]


def test_a_folder_that_the_config_does_not_know_is_named_with_the_class_it_resembles(dataset: Dataset):
    root = dataset({"basic/1.png": png(), "brunt/1.png": png()})
    with pytest.raises(DatasetError, match=r"folder 'brunt' is not a class .* \(did you mean 'burnt'\?\)"):
        match_classes(audit(root), config("basic", "burnt"))


def test_all_unknown_folders_are_named_at_once(dataset: Dataset):
    with pytest.raises(DatasetError, match=r"'x' is not .*; folder 'y' is not") as caught:
        match_classes(audit(dataset({"x/": b"", "y/": b""})), config("basic"))
    assert caught.value.hint == "add it to `classes`, or leave it out with dataset.exclude"


def test_of_many_unknown_folders_the_first_are_named_and_the_rest_counted(dataset: Dataset):
    found = audit(dataset({f"class{number:03d}/1.png": png(number) for number in range(25)}))
    with pytest.raises(DatasetError, match=r"folder 'class019' is not a class .*; and 5 more$"):
        match_classes(found, config("basic"))


def test_one_folder_too_high_the_right_one_is_offered(dataset: Dataset):
    root = dataset({"photos/basic/1.png": png()})
    with pytest.raises(DatasetError) as caught:
        match_classes(audit(root), config("basic"))
    assert caught.value.hint == f"did you mean dataset.path: {root / 'photos'}?"


def test_a_config_decides_limits_facets_and_table(dataset: Dataset):
    root = dataset({**FILES, "table.jsonl": table(*ROWS), "a/big.png": png(width=400, height=300)})
    section = {"path": str(root), "metadata": "table.jsonl", "max_image_megapixels": 0.1}
    lighting = {"values": {"dim": {"prompts": ["dim"]}}}
    found = audit_dataset(config("a", "b", dataset=section, facets={"lighting": lighting}))
    assert found.facet_names == ("lighting",)
    assert [name for name, _ in found.unreadable] == ["a/big.png"]
    assert found.counts == {"a": 2, "b": 2}


# Where the dataset is


def test_a_path_is_taken_as_it_is_and_home_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for path, folder in {"photos": Path("photos"), "~/photos": tmp_path / "photos"}.items():
        assert dataset_folder(config("a", dataset={"path": path})) == folder


def test_a_dataset_in_an_object_store_is_refused_clearly():
    with pytest.raises(DatasetError, match=r"s3://bucket/x: datasets in object stores are not supported"):
        find_dataset("s3://bucket/x")


class Renderer:
    """Stands for `write_dataset`: one small file, and a count of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, directory: Path, seed: int = 0) -> None:
        self.calls += 1
        (directory / "train" / "basic").mkdir(parents=True)
        (directory / "train" / "basic" / "1.png").write_bytes(png(seed))


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Renderer:
    double = Renderer()
    monkeypatch.setattr("balancer.dataset.sample.write_dataset", double)
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))
    return double


def cache_names(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("user-")]


def test_the_sample_dataset_is_rendered_once_into_the_cache(renderer: Renderer, tmp_path: Path):
    first, second = find_dataset("sample"), find_dataset("sample")
    assert first == second
    assert (renderer.calls, first.name, first.parent.parent) == (1, "train", tmp_path / "cache")
    assert audit(first).counts == {"basic": 1}


def test_a_changed_renderer_is_rendered_anew(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = find_dataset("sample")
    (tmp_path / "sample.py").write_text("changed")
    monkeypatch.setattr(resources, "files", lambda _package: tmp_path)
    assert find_dataset("sample") != before
    assert renderer.calls == 2


def test_when_two_starts_render_at_once_one_folder_is_left(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def slow(directory: Path, seed: int = 0) -> None:
        monkeypatch.setattr("balancer.dataset.sample.write_dataset", renderer)
        find_dataset("sample")  # the other start begins later and ends first
        renderer(directory, seed)

    monkeypatch.setattr("balancer.dataset.sample.write_dataset", slow)
    assert audit(find_dataset("sample")).counts == {"basic": 1}
    assert len(cache_names(tmp_path)) == 1


def test_an_interrupted_rendering_leaves_nothing_behind(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(directory: Path, seed: int = 0) -> None:
        renderer(directory, seed)
        raise KeyboardInterrupt

    monkeypatch.setattr("balancer.dataset.sample.write_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_dataset("sample")
    assert cache_names(tmp_path) == []


def test_a_cache_that_cannot_be_written_names_the_setting(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="file/cache: cannot write the sample dataset there") as caught:
        find_dataset("sample")
    assert caught.value.hint == "set BALANCER_CACHE to a writable folder"
    assert renderer.calls == 0


def test_the_sample_dataset_is_the_reference_case():
    found = audit(find_dataset("sample"))
    assert found.counts == {"basic": 30, "burnt": 26}
    assert set(found.facet_names) == {"lighting", "burn_level"}
    assert (found.unreadable, found.duplicates, found.unlabelled, found.unknown_rows) == ((), (), (), ())


# The commands


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_a_share_rounds_neither_to_nothing_nor_to_everything():
    assert [share(part, 1000) for part in (0, 1, 500, 999, 1000)] == [0, "<1", 50, ">99", 100]


def test_audit_prints_counts_shares_facets_and_faults(dataset: Dataset):
    root = dataset({**FILES, "b/2.png": b"", "b/3.png": png(1), "metadata.jsonl": table(*ROWS)})
    code, out, err = invoke("audit", str(root))
    conflict = "a/1.png (a), b/3.png (b)"
    assert code == 0
    assert err == (
        f"warning: 1 picture is in two classes, such as {conflict}; all of them count (dataset.conflicts)\n"
    )
    assert out == (
        f"{root}: 4 images\n"
        "  class  images  share, %\n"
        "  a           2        50\n"
        "  b           2        50\n"
        "\n"
        "read as dataset.layout: folders (each folder is a class)\n"
        "\n"
        "by lighting\n"
        "  class     dim  harsh  (no value)\n"
        "  a           1      1           0\n"
        "  b           1      0           1\n"
        "  all         2      1           1\n"
        "  share, %   67     33           -\n"
        "\n"
        "unreadable (1)\n"
        "  b/2.png: the file is empty\n"
        "\n"
        "files with the same bytes (1)\n"
        "  a/1.png, b/3.png\n"
        "\n"
        "pictures in two classes or splits (1)\n"
        f"  {conflict}\n"
        "\n"
        "images without a facet value in the metadata table (1)\n"
        "  b/3.png\n"
    )


def test_the_column_of_missing_values_is_left_out_where_none_is_missing(dataset: Dataset):
    out = invoke("audit", str(dataset({**FILES, "b/2.png": b"", "metadata.jsonl": table(*ROWS)})))[1]
    assert "  class     dim  harsh\n" in out


def test_audit_prints_one_json_object(dataset: Dataset):
    root = dataset({**FILES, "b/2.png": b"", "metadata.jsonl": table(*ROWS)})
    code, out, err = invoke("audit", str(root), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "path": str(root),
        "layout": "folders",
        "layout_reason": "each folder is a class",
        "images": 3,
        "classes": {
            "a": {"images": 2, "share": 2 / 3, "facets": {"lighting": {"dim": 1, "harsh": 1}}},
            "b": {"images": 1, "share": 1 / 3, "facets": {"lighting": {"dim": 1, "harsh": 0}}},
        },
        "facets": {
            "lighting": {"dim": {"images": 2, "share": 2 / 3}, "harsh": {"images": 1, "share": 1 / 3}}
        },
        "splits": {},
        "unreadable": [{"file_name": "b/2.png", "reason": "the file is empty"}],
        "duplicates": [],
        "conflicts": [],
        "lookalikes": [],
        "dropped": [],
        "unlabelled": [],
        "misfiled": [],
        "unknown_rows": [],
        "outside": [],
        "marked_synthetic": [],
        "ignored_files": 0,
        "tables": ["metadata.jsonl"],
        "remarks": [],
        "warnings": [],
    }


def test_audit_counts_the_splits_that_the_metadata_gives(dataset: Dataset):
    rows = [row | {"split": split} for row, split in zip(ROWS, ("train", "test", "train"), strict=False)]
    root = dataset({**FILES, "metadata.jsonl": table(*rows)})
    source = "column `split` of the metadata table"
    shown = f"by split, from {source}\n  split  images\n  test        1\n  train       2\n"
    assert shown in invoke("audit", str(root))[1]
    assert json.loads(invoke("audit", str(root), "--json")[1])["splits"] == {"test": 1, "train": 2}


def test_a_dataset_without_readable_images_has_no_shares(dataset: Dataset):
    code, out, _ = invoke("audit", str(dataset({"a/": b"", "b/1.png": b""})), "--json")
    assert code == 0
    assert [entry["share"] for entry in json.loads(out)["classes"].values()] == [None, None]


def test_names_cannot_steer_the_terminal(dataset: Dataset):
    code, out, _ = invoke("audit", str(dataset({"a\x1b[2J/two\nlines.png": b""})))
    assert code == 0
    assert "\x1b" not in out
    assert "a\\x1b[2J/two\\nlines.png: the file is empty" in out.splitlines()[-1]


def test_of_many_faults_the_first_are_named_and_the_rest_counted(dataset: Dataset):
    root = dataset({f"a/{i:02d}.png": b"" for i in range(25)})
    lines = invoke("audit", str(root))[1].splitlines()
    assert "unreadable (25)" in lines
    assert lines[-2:] == ["  a/19.png: the file is empty", "  and 5 more; --json lists them all"]


def test_audit_of_a_missing_dataset_is_one_line_and_a_hint_with_exit_code_2(tmp_path: Path):
    code, out, err = invoke("audit", str(tmp_path / "gone"))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {tmp_path / 'gone'}: no such dataset folder\n"
        "hint: `balancer sample DIR` renders a sample dataset\n"
    )


def test_sample_says_in_one_line_what_it_wrote(renderer: Renderer, tmp_path: Path):
    code, out, err = invoke("sample", str(tmp_path / "pizzas"))
    assert (code, err) == (0, "")
    folder = tmp_path / "pizzas"
    assert out == f"{folder}: 1 in train/; count them with `balancer audit {folder / 'train'}`\n"


def test_sample_passes_its_seed_on(renderer: Renderer, tmp_path: Path):
    for seed in ("0", "7"):
        assert invoke("sample", str(tmp_path / seed), "--seed", seed)[0] == 0
    assert (tmp_path / "7/train/basic/1.png").read_bytes() == png(7)


def test_sample_does_not_write_into_a_folder_that_holds_something(tmp_path: Path):
    (tmp_path / "mine").write_text("kept")
    code, out, err = invoke("sample", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path} exists and is not an empty directory\nhint: ")


def test_sample_that_cannot_be_written_is_an_error_of_the_environment(tmp_path: Path):
    (tmp_path / "file").touch()
    code, _, err = invoke("sample", str(tmp_path / "file" / "pizzas"))
    assert code == 4
    assert "pizzas: cannot write the sample dataset: Not a directory" in err
