"""Layouts of datasets: each gives images with their classes and splits, and says what it passed over."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image, features

from actors.real_images import measure_real_images, read_unchanged
from balancer.cli import main
from balancer.config.schema import ActorsConfig, Config, DatasetConfig, OutputConfig
from balancer.dataset.audit import Audit, audit, audit_dataset, audit_holdout, match_classes
from balancer.dataset.decoding import members
from balancer.dataset.location import refuse_shared_holdout
from balancer.dataset.readers import packed_files
from balancer.dataset.splits import assign_splits, describe_kept_apart
from balancer.errors import DatasetError, UsageError
from balancer.images import (
    UnreadableImage,
    decode_image,
    encode_image,
    is_marked_synthetic,
    pixel_sha256,
    read_bytes,
    read_image,
)
from balancer.manifest import read_log
from balancer.manifest.rows import RunFacts
from balancer.runs.import_real import commit_real_images
from balancer.storage import open_storage
from balancer.verification.verdict import ImageFlags, Measurement
from tests.manifest_samples import start


def picture(seed: int = 0, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def put(root: Path, *names: str) -> Path:
    """Files below `root`: each name another picture, and a name that ends in a slash an empty folder."""
    for number, name in enumerate(names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(picture(number) if path.suffix in (".png", ".jpg") else b"text")
    return root


def write(root: Path, contents: Mapping[str, str]) -> None:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def read(root: Path, **settings: Any) -> Audit:
    return audit(root, settings=DatasetConfig.model_validate(settings))


def job(root: Path, *classes: str, **settings: Any) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": str(root), **settings},
            "classes": {name: {"prompts": [name]} for name in classes},
            "target": {"per_class": 5},
        }
    )


def written(config: Config, folder: Path) -> str:
    (folder / "job.json").write_text(config.model_dump_json(exclude_defaults=True))
    return str(folder / "job.json")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


# Split folders


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "validation"),
        ("valid", "validation"),
        ("validation", "validation"),
        ("dev", "validation"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders_are_splits_by_any_usual_name(tmp_path, folder, split):
    root = put(tmp_path, f"{folder}/cat/1.png", "train/dog/1.png")
    audited = audit_dataset(job(root, "cat", "dog"))
    assert (audited.layout, audited.counts) == ("splits", {"cat": 1, "dog": 1})
    assert assign_splits(audited, job(root, "cat", "dog"))[f"{folder}/cat/1.png"] == split


def test_images_of_split_folders_that_are_not_for_training_are_kept_apart_by_them(tmp_path):
    config = job(put(tmp_path, "train/cat/1.png", "val/cat/2.png", "test/cat/3.png"), "cat")
    audited = audit_dataset(config)
    line = describe_kept_apart(audited, assign_splits(audited, config), config)
    assert line == "2 real images are for validation or test (split folders), and not counted"


def test_a_class_may_lack_in_a_split_and_images_may_be_deeper(tmp_path):
    audited = read(put(tmp_path, "train/cat/a/1.png", "train/dog/2.png", "test/cat/3.png", "test/owl/"))
    assert audited.counts == {"cat": 2, "dog": 1, "owl": 0}


def test_a_test_set_without_labels_is_one_warning(tmp_path):
    audited = read(put(tmp_path, "train/cat/1.png", "test/1.png", "test/2.png"))
    assert audited.counts == {"cat": 1}
    assert audited.outside == ("test/1.png", "test/2.png")
    assert audited.warnings == (
        "test: 2 images are in the split folder but in no class folder, and not counted",
    )


def test_splits_without_a_training_folder_are_a_warning(tmp_path):
    audited = read(put(tmp_path, "val/cat/1.png", "test/cat/2.png"))
    assert audited.warnings == ("no split folder is called train: test, val count for no target",)


def test_splits_beside_other_folders_are_classes_with_a_warning(tmp_path):
    audited = read(put(tmp_path, "train/cat/1.png", "extra/2.png"))
    assert (audited.layout, audited.counts) == ("folders", {"extra": 1, "train": 1})
    [warning] = audited.warnings
    assert warning.startswith("train: named like a split and holding folders, but taken for a class")
    assert warning.endswith("dataset.exclude can leave out extra")
    assert read(tmp_path, exclude=["extra"]).layout == "splits"


def test_the_layout_may_be_named(tmp_path):
    root = put(tmp_path, "train/cat/1.png", "test/cat/2.png")
    assert read(root, layout="folders").counts == {"test": 1, "train": 1}
    put(root, "extra/2.png")
    with pytest.raises(DatasetError, match=r"dataset\.layout is splits, but extra is no name of a split"):
        read(root, layout="splits")
    with pytest.raises(DatasetError, match="no class folder in test"):
        read(put(tmp_path / "flat", "test/1.png"), layout="splits")


def test_a_table_may_lie_in_a_split_folder(tmp_path):
    root = put(tmp_path, "train/cat/1.png", "train/cat/2.png", "test/cat/3.png")
    write(root, {"train/metadata.csv": "file_name,light\ncat/1.png,dim\ncat/2.png,dim\n"})
    assert [image.facets for image in read(root).images] == [{}, {"light": "dim"}, {"light": "dim"}]


def test_where_the_table_and_the_folder_give_another_split_the_folder_counts(tmp_path):
    root = put(tmp_path, "train/cat/1.png", "test/cat/2.png")
    write(root, {"metadata.csv": "file_name,split\ntrain/cat/1.png,test\ntest/cat/2.png,test\n"})
    audited = read(root)
    assert [image.split for image in audited.images] == ["test", "train"]
    assert audited.warnings == (
        "1 image (train/cat/1.png) is in another split folder than metadata.csv says; the folder counts",
    )


def test_audit_and_plan_say_what_the_layout_is_and_why(tmp_path):
    root = put(tmp_path / "data", "train/cat/1.png", "test/cat/2.png")
    line = "read as dataset.layout: splits (test, train hold class folders)"
    assert line in invoke("audit", str(root)).stdout
    assert json.loads(invoke("audit", str(root), "--json").stdout)["layout"] == "splits"
    assert line in invoke("plan", written(job(root, "cat"), tmp_path), "--no-preflight").stderr


# Leaving out, renaming, merging


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"exclude": ["junk"]}, {"cat": 3, "dog": 1}),
        ({"include": ["cat"]}, {"cat": 3}),
        ({"exclude": ["cat/2*"]}, {"cat": 1, "dog": 1, "junk": 1}),
        ({"include": ["cat/*.png", "dog"], "exclude": ["*/21.png"]}, {"cat": 2, "dog": 1}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "train/"])
def test_patterns_choose_classes_and_files(tmp_path, prefix, settings, counts):
    names = ("cat/1.png", "cat/20.png", "cat/21.png", "dog/1.png", "junk/1.png")
    root = put(tmp_path, *(prefix + name for name in names))
    audited = read(root, **settings)
    assert (audited.counts, audited.warnings) == (counts, ())


def test_what_was_left_out_is_counted_and_its_rows_are_not_unknown(tmp_path):
    root = put(tmp_path, "cat/1.png", "cat/2.png")
    write(root, {"metadata.csv": "file_name,light\ncat/1.png,dim\ncat/2.png,dim\n"})
    audited = read(root, exclude=["*/2.png"])
    assert audited.remarks == ("left out by dataset.exclude: 1 image",)
    assert (audited.unknown_rows, audited.warnings) == ((), ())


def test_a_pattern_that_matches_nothing_is_a_warning(tmp_path):
    audited = read(put(tmp_path, "cat/1.png"), include=["cat", "dgo"], exclude=["*.gif"])
    assert audited.warnings == (
        "dataset.include: 'dgo' matches no class and no file of the dataset",
        "dataset.exclude: '*.gif' matches no class and no file of the dataset",
    )


def test_labels_rename_and_merge_classes(tmp_path):
    root = put(tmp_path, "kitty/1.png", "Tomcat/2.png", "dog/3.png")
    audited = read(root, labels={"kitty": "cat", "tomcat": "cat", "dgo": "dog"})
    assert audited.counts == {"cat": 2, "dog": 1}
    assert audited.remarks == ("by dataset.labels, Tomcat, kitty are cat",)
    assert audited.warnings == ("dataset.labels: the dataset has no class 'dgo', did you mean 'dog'?",)


def test_init_writes_the_settings_it_was_given(tmp_path):
    root = put(tmp_path / "data", "kitty/1.png", "dog/3.png")
    result = invoke("init", str(root), "--set", "dataset.labels.kitty=cat", "--set", "dataset.exclude=[x]")
    assert "labels:\n    kitty: cat\n" in result.stdout
    assert "\n  cat: # 1 image\n" in result.stdout
    assert "dataset.exclude: 'x' matches no class" in result.stderr


def test_a_command_without_a_config_takes_dataset_settings_only(tmp_path):
    result = invoke("audit", str(put(tmp_path, "cat/1.png")), "--set", "seed=3")
    assert (result.exit_code, result.stderr) == (
        UsageError.exit_code,
        "error: --set seed=3: only settings of `dataset` have an effect here\n",
    )


def test_the_audit_that_plan_suggests_reads_the_same_images(tmp_path):
    root = put(tmp_path / "data", "kitty/1.png")
    (root / "kitty/2.png").write_bytes(b"no image")
    config = job(root, "cat", labels={"kitty": "cat"})
    [line] = [line for line in invoke("plan", written(config, tmp_path), "--no-preflight").stderr.splitlines()
              if "cannot be read" in line]  # fmt: skip
    command = line.partition("`")[2].partition("`")[0]
    shown = json.loads(invoke(*shlex.split(command)[1:], "--json").stdout)
    assert shown["classes"]["cat"]["images"] == 1


# What looks like a mistake


MISTAKES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "system folders": (
        ("cat/1.png", "__MACOSX/cat/1.png", "cat/@eaDir/1.png", "$RECYCLE.BIN/",
         "cat/.ipynb_checkpoints/1.png"),
        "passed over, because a system made them: $RECYCLE.BIN, __MACOSX, cat/.ipynb_checkpoints, cat/@eaDir",
    ),
    "hidden pictures": (
        ("cat/1.png", ".dog/1.png", "cat/.2.png", "cat/._1.png", ".git/index", ".empty/"),
        "passed over, because the name begins with a dot: .dog, cat/.2.png",
    ),
    "annotations": (
        ("cat/1.png", "Annotations/1.xml"),
        "Annotations: no image in it, passed over as a folder of annotations",
    ),
    "an image in no class": (
        ("cat/1.png", "2.png"),
        "1 image is beside the class folders, and not counted: 2.png",
    ),
    "one class called images": (
        ("images/1.png",),
        "the only class is called 'images': the images of each class belong into a folder named after the"
        " class",
    ),
    "one class with a table": (
        ("images/1.png", "labels.csv"),
        "the only class is called 'images'; if labels.csv names the classes, set dataset.table: labels.csv",
    ),
    "one folder too high": (
        ("data/cat/1.png", "data/dog/2.png"),
        "the only class is called 'data' and holds folders (cat, dog): did you mean dataset.path: ROOT/data?",
    ),
    "classes by case": (
        ("Cat/1.png", "cat/2.png"),
        "classes equal but for case or Unicode form: Cat, cat (dataset.labels can merge them)",
    ),
    "files by case": (
        ("cat/A.png", "cat/a.png"),
        "file names equal but for case or Unicode form: cat/A.png, cat/a.png (some systems can keep only"
        " one of them)",
    ),
    "files by Unicode form": (
        ("cat/\u00e9.png", "cat/e\u0301.png"),
        "file names equal but for case or Unicode form: cat/e\u0301.png, cat/\u00e9.png (some systems can"
        " keep only one of them)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_what_looks_like_a_mistake_is_a_warning(tmp_path, what):
    names, warning = MISTAKES[what]
    assert read(put(tmp_path, *names)).warnings == (warning.replace("ROOT", str(tmp_path)),)


def test_system_folders_and_annotations_are_no_classes(tmp_path):
    assert read(put(tmp_path, "cat/1.png", "lost+found/", "labels/1.txt")).counts == {"cat": 1}


def test_a_class_that_the_config_names_is_no_mistake(tmp_path):
    audited = audit_dataset(job(put(tmp_path, "images/1.png", "masks/"), "images", "masks"))
    assert (audited.counts, audited.warnings) == ({"images": 1, "masks": 0}, ())


def test_a_class_of_the_table_that_is_not_the_folder_is_a_warning(tmp_path):
    root = put(tmp_path, "cat/1.png", "dog/2.png")
    write(root, {"metadata.csv": "file_name,class\ncat/1.png,dog\ndog/2.png,dog\n"})
    assert read(root).warnings == (
        "1 image (cat/1.png) is in another folder than the class in metadata.csv; the folder counts",
    )


@pytest.mark.parametrize("command", ["audit", "init", "plan"])
def test_every_command_says_what_looks_like_a_mistake(tmp_path, command):
    root = put(tmp_path / "data", "Cat/1.png", "cat/2.png")
    at = [written(job(root, "Cat", "cat"), tmp_path), "--no-preflight"] if command == "plan" else [str(root)]
    assert "warning: classes equal but for case" in invoke(command, *at).stderr


def test_a_hold_out_need_not_match_patterns_and_labels(tmp_path):
    put(tmp_path / "data", "cat/1.png", "junk/2.png", "kitty/3.png")
    put(tmp_path / "apart", "cat/1.png")
    settings = {"exclude": ["junk"], "labels": {"kitty": "cat"}, "holdout": str(tmp_path / "apart")}
    holdout = audit_holdout(job(tmp_path / "data", "cat", **settings))
    assert holdout is not None
    assert (holdout.counts, holdout.warnings) == ({"cat": 1}, ())


def test_a_class_of_a_table_that_the_config_lacks_is_called_a_class(tmp_path):
    write(put(tmp_path, "a.png"), {"labels.csv": "file_name,class\na.png,cta\n"})
    config = job(tmp_path / "labels.csv", "cat")
    with pytest.raises(DatasetError, match=r"class 'cta' is not a class .*did you mean 'cat'") as caught:
        match_classes(audit_dataset(config), config)
    assert caught.value.hint == "add it to `classes`, or leave it out with dataset.exclude"


# Tables of files and classes


LABELS = "file_name,class\na.png,cat\nin/b.png,dog\nin/c.png,cat\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", LABELS),
        ("labels.csv", "path;Label\na.png;cat\nin\\\\b.png;dog\n./in/c.png;cat\n"),
        ("labels.jsonl", "".join(f'{{"image": "{file}", "label": "{name}"}}\n' for file, name in
                                 (("a.png", "cat"), ("in/b.png", "dog"), ("in/c.png", "cat")))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_path", [True, False])
def test_a_table_gives_files_their_classes(tmp_path, name, content, as_path):
    root = put(tmp_path, "a.png", "in/b.png", "in/c.png")
    write(root, {name: content})
    audited = read(root / name) if as_path else read(root, table=name)
    assert (audited.layout, audited.layout_reason) == ("table", f"{name} names files and classes")
    assert (audited.path, audited.given) == (root, root / name if as_path else None)
    assert (audited.counts, audited.warnings) == ({"cat": 2, "dog": 1}, ())
    assert [image.file_name for image in audited.images] == ["a.png", "in/b.png", "in/c.png"]


def test_a_parquet_table_gives_files_their_classes(tmp_path):
    root = put(tmp_path, "a.png", "in/b.png")
    pq.write_table(pa.table({"path": ["a.png", "in/b.png"], "target": [0, 1]}), root / "labels.parquet")
    assert read(root / "labels.parquet", labels={"0": "cat", "1": "dog"}).counts == {"cat": 1, "dog": 1}


def test_columns_of_a_table_have_the_names_that_the_config_gives(tmp_path):
    root = put(tmp_path, "a.png", "b.png")
    write(root, {"t.csv": "img,class,kind,fold,light\na.png,9,cat,val,dim\nb.png,9,dog,train,dim\n"})
    settings = {"columns": {"file": "img", "class": "kind", "split": "fold"}}
    audited = read(root / "t.csv", **settings)
    assert (audited.counts, audited.facet_names) == ({"cat": 1, "dog": 1}, ("class (column)", "light"))
    config = job(root / "t.csv", "cat", "dog", **settings)
    assert assign_splits(audited, config) == {"a.png": "validation", "b.png": "train"}
    line = describe_kept_apart(audited, assign_splits(audited, config), config)
    assert line == "1 real image is for validation or test (column `split` of t.csv), and not counted"


def test_names_in_a_table_are_relative_to_it_and_lead_nowhere_else(tmp_path):
    root = put(tmp_path / "data", "in/b.png", "in/link.png")
    put(tmp_path, "secret.png", "a.png")
    (root / "in/link.png").unlink()
    (root / "in/link.png").symlink_to(tmp_path / "secret.png")
    rows = (
        "b.png",
        "../../secret.png",
        f"{tmp_path}/secret.png",
        "link.png",
        f"{root}/in/b.png",
        "/etc/passwd",
    )
    write(root, {"in/labels.csv": "file_name,class\n" + "".join(f"{name},cat\n" for name in rows)})
    audited = read(root, table="in/labels.csv")
    assert [image.file_name for image in audited.images] == ["in/b.png"]
    assert audited.unreadable == (("in/link.png", "a symbolic link, which is not followed"),)
    assert len(audited.unknown_rows) == 3
    [warning] = audited.warnings
    assert warning.startswith("in/labels.csv: 3 of 6 rows name no image, such as ")


def test_files_and_rows_that_do_not_meet_are_counted(tmp_path):
    root = put(tmp_path, "a.png", "b.png", "c.png", "d.png")
    write(root, {"labels.csv": "file_name,class\na.png,cat\na.png,dog\nb.png,\ngone.png,dog\n"})
    audited = read(root, table="labels.csv")
    assert audited.counts == {"cat": 1}
    assert audited.unreadable == (("b.png", "its row in the table names no class"),)
    assert audited.outside == ("c.png", "d.png")
    assert audited.warnings == (
        "2 images are in no row of labels.csv, and not counted, such as c.png",
        "labels.csv: 1 of 3 rows names no image, such as gone.png",
        "labels.csv: rows of 1 file contradict each other, such as a.png; the first row counts",
    )


TABLE_ERRORS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "no class": ({"table": "x.csv"}, r"x\.csv: no column names the class; the columns are file_name, light$"),
    "no such class column": (
        {"table": "x.csv", "columns": {"class": "kind"}}, r"x\.csv: no column names the class",
    ),
    "no file column": (
        {"table": "x.csv", "columns": {"file": "img"}},
        r"the file has no column `img`; the columns are file_name, light$",
    ),
    "no table": ({"table": "y.csv"}, r"dataset\.table: no such table: .*y\.csv"),
    "no table by name": (
        {"layout": "table"}, r"dataset\.layout is table, and which of w\.csv, x\.csv is it\?",
    ),
    "two tables": (
        {"table": "x.csv", "metadata": "w.csv"}, r"dataset\.metadata: the classes are in .*x\.csv",
    ),
    "another kind": ({"table": "x.txt"}, r"x\.txt: a metadata table must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLE_ERRORS)
def test_a_table_of_labels_that_cannot_be_used_is_one_clear_line(tmp_path, what):
    settings, problem = TABLE_ERRORS[what]
    root = put(tmp_path, "a.png", "x.txt")
    write(root, {"x.csv": "file_name,light\na.png,dim\n", "w.csv": "file_name\n"})
    with pytest.raises(DatasetError, match=problem) as caught:
        read(root, **settings)
    assert "\n" not in caught.value.message


def test_a_metadata_table_beside_images_without_folders_gives_the_classes(tmp_path):
    root = put(tmp_path, "a.png", "b.png")
    write(root, {"metadata.csv": "file_name,label\na.png,cat\nb.png,dog\n"})
    audited = read(root)
    assert (audited.counts, audited.layout_reason) == (
        {"cat": 1, "dog": 1},
        "metadata.csv lies beside the images",
    )


def test_init_takes_no_folder_beside_a_table_for_a_hold_out(tmp_path):
    root = put(tmp_path, "train/cat/1.png", "val/cat/2.png")
    write(root, {"labels.csv": "path,label\ntrain/cat/1.png,cat\nval/cat/2.png,cat\n"})
    assert "holdout: " not in invoke("init", str(root / "labels.csv")).stdout


def test_two_tables_of_one_folder_of_images_are_dataset_and_hold_out(tmp_path):
    root = put(tmp_path, "in/a.png", "in/b.png")
    write(root, {"train.csv": "path,label\nin/a.png,cat\n", "test.csv": "path,label\nin/b.png,cat\n"})
    config = job(root / "train.csv", "cat", holdout=str(root / "test.csv"))
    refuse_shared_holdout(config)
    assert [image.file_name for image in audit_dataset(config).images] == ["in/a.png"]
    holdout = audit_holdout(config)
    assert holdout is not None
    assert [image.file_name for image in holdout.images] == ["in/b.png"]


# Images that a model made


def generated(seed: int) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8), {})


def test_images_marked_as_generated_are_not_real(tmp_path):
    root = put(tmp_path, "train/cat/1.png", "test/cat/2.png", "val/cat/")
    for name in ("train/cat/made.png", "test/cat/made.png"):
        (root / name).write_bytes(generated(len(name)))
    config = job(root, "cat")
    audited = audit_dataset(config)
    assert audited.counts == {"cat": 2}
    assert audited.marked_synthetic == ("test/cat/made.png", "train/cat/made.png")
    assert set(assign_splits(audited, config)) == {"test/cat/2.png", "train/cat/1.png"}
    assert audited.warnings == (
        "2 images (such as test/cat/made.png) are marked as generated by a model, so not counted as real"
        " (dataset.count_marked_synthetic)",
    )


def test_images_marked_as_generated_are_real_where_the_config_says_so(tmp_path):
    root = put(tmp_path, "cat/1.png")
    (root / "cat/made.png").write_bytes(generated(0))
    audited = read(root, count_marked_synthetic=True)
    assert (audited.counts, audited.marked_synthetic) == ({"cat": 2}, ("cat/made.png",))
    assert audited.warnings == (
        "1 image (cat/made.png) is marked as generated by a model, and counted as real all the same"
        " (dataset.count_marked_synthetic)",
    )


def test_the_verifier_is_not_tested_on_images_marked_as_generated(tmp_path):
    for folder in ("data", "apart"):
        put(tmp_path / folder, "cat/1.png")
        (tmp_path / folder / "cat/made.png").write_bytes(generated(len(folder)))
    config = job(tmp_path / "data", "cat", holdout=str(tmp_path / "apart"))
    config = config.model_copy(update={"actors": ActorsConfig(kind="simulated")})
    shown: list[bytes] = []

    def measure(calls):
        for number, (images, _) in enumerate(calls):
            shown.extend(images)
            yield (
                number,
                [
                    Measurement({"class": {"cat": 1.0}}, 0.5, 0.2, ImageFlags(), "0" * 16, bytes(8))
                    for _ in images
                ],
            )

    measured = measure_real_images(config, audit_dataset(config), audit_holdout(config), measure)
    assert measured.ids == ("real/cat/1.png", "holdout/cat/1.png")
    assert not any(map(is_marked_synthetic, shown))


# Labels that contradict


def contradicting(root: Path) -> Path:
    put(root, "train/cat/1.png", "train/dog/2.png", "train/owl/3.png", "test/owl/4.png")
    Image.open(root / "train/cat/1.png").save(root / "train/dog/1 again.webp", lossless=True)
    (root / "test/owl/3 again.png").write_bytes((root / "train/owl/3.png").read_bytes())
    return root


CONTRADICTION = (
    "1 picture is in two classes, such as train/cat/1.png (cat), train/dog/1 again.webp (dog);"
    " 1 picture is in two splits, such as test/owl/3 again.png (test), train/owl/3.png (train)"
)


def test_one_picture_in_two_classes_or_splits_counts_with_a_warning(tmp_path):
    audited = read(contradicting(tmp_path))
    assert audited.counts == {"cat": 1, "dog": 2, "owl": 3}
    assert audited.warnings == (f"{CONTRADICTION}; all of them count (dataset.conflicts)",)


def test_of_a_dropped_picture_no_class_and_only_the_later_split_stays(tmp_path):
    audited = read(contradicting(tmp_path), conflicts="drop")
    assert audited.counts == {"cat": 0, "dog": 1, "owl": 2}
    assert [name for name, _ in audited.dropped] == [
        "train/cat/1.png",
        "train/dog/1 again.webp",
        "train/owl/3.png",
    ]
    assert audited.warnings == (f"{CONTRADICTION}; 3 of their files are left out (dataset.conflicts)",)


def test_contradictions_can_be_refused(tmp_path):
    with pytest.raises(DatasetError) as caught:
        read(contradicting(tmp_path), conflicts="error")
    assert caught.value.message == f"{tmp_path}: {CONTRADICTION}"
    assert caught.value.hint == "correct the labels, or set dataset.conflicts to drop or keep"


def test_copies_within_a_class_or_of_no_split_contradict_nothing(tmp_path):
    root = put(tmp_path, "cat/1.png", "dog/2.png")
    (root / "cat/again.png").write_bytes((root / "cat/1.png").read_bytes())
    write(root, {"metadata.csv": "file_name,split\ncat/1.png,train\n"})
    assert (read(root, conflicts="error").counts, read(root).conflicts) == ({"cat": 2, "dog": 1}, ())


def test_pictures_that_look_alike_in_two_classes_are_listed_only(tmp_path):
    put(tmp_path, "cat/3.png", "dog/4.png")
    pixels = np.random.default_rng(9).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for class_name, grey in (("cat", 10), ("dog", 200)):
        pixels[0, 0] = grey
        Image.fromarray(pixels).save(tmp_path / class_name / "1.png")
        Image.new("L", (64, 64), grey).save(tmp_path / class_name / "plain.png")
    audited = read(tmp_path, conflicts="error")
    assert audited.counts == {"cat": 3, "dog": 3}
    assert [*map(str, audited.lookalikes)] == ["cat/1.png (cat), dog/1.png (dog)"]
    assert audited.warnings == (
        "1 pair of pictures look alike in two classes or splits, such as cat/1.png (cat), dog/1.png (dog)",
    )


# Formats

OTHER_FORMATS = [form for form in ("TIFF", "BMP", "GIF", "AVIF") if form != "AVIF" or features.check("avif")]


@pytest.mark.parametrize(("form", "suffix"), [(form, form) for form in OTHER_FORMATS] + [("GIF", "jpg")])
def test_a_format_that_few_programs_read_is_png_in_the_run(tmp_path, form, suffix):
    name = f"basic/1.{suffix.lower()}"
    put(tmp_path / "data", "basic/")
    (tmp_path / "data" / name).write_bytes(picture(form=form))
    config = job(tmp_path / "data", "basic")
    storage = open_storage(tmp_path / "run", create=True)
    facts = RunFacts("run-1", ("lighting", "burn_level"), config, None, None, {})
    assert commit_real_images(audit_dataset(config), ["basic"], start(storage), storage, facts) == 1
    [row] = read_log(storage).table.to_pylist()
    assert (row["id"], row["file_name"].endswith(".png")) == (f"real/{name}", True)
    data = storage.read(row["file_name"])
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert pixel_sha256(decode_image(data, max_pixels=100)) == row["pixel_sha256"]


@pytest.mark.parametrize("suffix", ["bmp", "png"])
def test_a_run_cannot_refer_to_such_a_file(tmp_path, suffix):
    put(tmp_path / "data", "basic/")
    (tmp_path / f"data/basic/1.{suffix}").write_bytes(picture(form="BMP"))
    config = job(tmp_path / "data", "basic")
    config = config.model_copy(update={"output": OutputConfig(real_images="reference")})
    storage = open_storage(tmp_path / "run", create=True)
    facts = RunFacts("run-1", ("lighting", "burn_level"), config, None, None, {})
    with pytest.raises(DatasetError, match="refer to PNG, JPEG and WebP files only") as caught:
        commit_real_images(audit_dataset(config), ["basic"], start(storage), storage, facts)
    assert caught.value.hint.startswith("set output.real_images: copy")


# Annotations of objects


def coco(**objects: Sequence[str]) -> str:
    """A COCO file with the categories of each image's objects."""
    names = sorted({name for categories in objects.values() for name in categories})
    return json.dumps(
        {
            "images": [{"id": place, "file_name": f"{name}.png"} for place, name in enumerate(objects)],
            "categories": [{"id": 7 + place, "name": name} for place, name in enumerate(names)],
            "annotations": [
                {"image_id": place, "category_id": 7 + names.index(name), "segmentation": [[0.5, 1]]}
                for place, categories in enumerate(objects.values())
                for name in categories
            ],
        }
    )


def test_coco_images_have_the_category_of_their_objects(tmp_path):
    root = put(tmp_path, "train2017/a.png", "train2017/b.png", "val2017/a.png", "val2017/c.png")
    write(
        root,
        {
            "annotations/instances_train2017.json": coco(a=["cat", "cat"], b=["dog"]),
            "annotations/instances_val2017.json": coco(a=["dog"], c=["cat", "dog"]),
            "annotations/captions_val2017.json": "{}",
        },
    )
    config = job(root, "cat", "dog")
    audited = audit_dataset(config)
    assert (audited.layout, audited.counts) == ("coco", {"cat": 1, "dog": 2})
    assert assign_splits(audited, config) == {
        "train2017/a.png": "train",
        "train2017/b.png": "train",
        "val2017/a.png": "validation",
    }
    assert audited.unreadable == (
        ("val2017/c.png", "its objects are of 2 categories (cat, dog), not of one"),
    )
    assert audited.warnings == (
        "1 image left out, with objects of several categories or none, such as val2017/c.png",
    )
    assert audited.facet_names == ()


def test_coco_files_in_split_folders_are_read(tmp_path):
    root = put(tmp_path, "train/a.png", "train/b.png", "valid/c.png")
    name = "_annotations.coco.json"
    write(root, {f"train/{name}": coco(a=["cat"], b=[]), f"valid/{name}": coco(c=["cat"])})
    audited = read(root)
    assert (audited.counts, [image.split for image in audited.images]) == ({"cat": 2}, ["train", "valid"])
    assert audited.unreadable == (("train/b.png", "no object in it is annotated"),)


def test_a_coco_file_may_be_named(tmp_path):
    root = put(tmp_path, "images/a.png")
    write(root, {"labels.json": coco(a=["cat"])})
    assert read(root, table="labels.json").counts == read(root / "labels.json").counts == {"cat": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "is damaged: not a COCO file: it lacks the lists images, annotations and categories"),
        ("[1", "is damaged: "),
        ("[" * 100_000, "is damaged: "),
    ],
)
def test_a_json_file_that_is_no_coco_file_is_one_clear_line(tmp_path, content, problem):
    write(put(tmp_path, "a.png"), {"labels.json": content})
    with pytest.raises(DatasetError, match=problem) as caught:
        read(tmp_path, table="labels.json")
    assert "\n" not in caught.value.message


def voc(name: str, *categories: str) -> str:
    objects = "".join(f"<object><name>{each}</name></object>" for each in categories)
    return f"<annotation><filename>C:\\{name}.jpg</filename>{objects}</annotation>"


def test_voc_images_have_the_category_of_their_objects(tmp_path):
    root = put(tmp_path, *(f"JPEGImages/{name}.png" for name in "abcde"))
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    write(
        root,
        {
            "Annotations/a.xml": voc("a", "cat"),
            "Annotations/b.xml": voc("b", "dog", "dog"),
            "Annotations/c.xml": voc("c", "cat", "dog"),
            "Annotations/d.xml": bomb,
            "ImageSets/Main/train.txt": "a 1\n",
            "ImageSets/Main/test.txt": "b -1\nc\n",
        },
    )
    config = job(root, "cat", "dog")
    audited = audit_dataset(config)
    assert (audited.layout, audited.counts) == ("voc", {"cat": 1, "dog": 1})
    assert assign_splits(audited, config) == {"JPEGImages/a.png": "train", "JPEGImages/b.png": "test"}
    assert audited.unreadable == (
        ("JPEGImages/c.png", "its objects are of 2 categories (cat, dog), not of one"),
        (
            "JPEGImages/d.png",
            "d.xml: it declares entities or a document type, which annotations do not need",
        ),
    )
    assert audited.outside == ("JPEGImages/e.png",)


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_a_layout_that_is_not_there_is_one_clear_line(tmp_path, layout):
    with pytest.raises(
        DatasetError, match=r"neither annotations|no folders Annotations and JPEGIm"
    ) as caught:
        read(put(tmp_path, "cat/1.png"), layout=layout)
    assert "\n" not in caught.value.message


# Files that hold images


FEATURES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def images_table(*labels: int, paths: bool = True) -> pa.Table:
    """A table as the hub keeps it: a column of `{bytes, path}`, and one of labels with their names."""
    rows = [
        {"bytes": picture(place), **({"path": f"{place}.png"} if paths else {})}
        for place in range(len(labels))
    ]
    table = pa.table({"image": rows, "label": list(labels), "light": ["dim"] * len(labels)})
    return table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


def to_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def to_arrow(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 2)


def to_tar(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def test_parquet_files_of_the_hub_hold_images_with_classes_and_splits(tmp_path):
    to_parquet(images_table(0, 1, 0, 1, 1), tmp_path / "data/train-00000-of-00001.parquet")
    to_parquet(images_table(1), tmp_path / "data/test-00000-of-00001.parquet")
    config = job(tmp_path, "cat", "dog")
    audited = audit_dataset(config)
    assert (audited.layout, audited.counts) == ("parquet", {"cat": 2, "dog": 4})
    assert audited.layout_reason == "data/test-00000-of-00001.parquet holds images"
    assert Counter(assign_splits(audited, config).values()) == {"train": 5, "test": 1}
    assert audited.images[0].file_name == "data/test-00000-of-00001.parquet/0.png"
    assert audited.images[0].sha256 == hashlib.sha256(picture(0)).hexdigest()


@pytest.mark.parametrize("paths", [True, False])
def test_a_parquet_file_of_images_may_be_the_path(tmp_path, paths):
    to_parquet(images_table(0, 1, 1, paths=paths), tmp_path / "all.parquet")
    audited = read(tmp_path / "all.parquet")
    assert (audited.layout, audited.counts) == ("parquet", {"cat": 1, "dog": 2})
    assert audit(tmp_path / "all.parquet").facet_names == ("light",)


def test_a_column_of_plain_bytes_holds_images_too(tmp_path):
    to_parquet(pa.table({"jpg": [picture(1), None], "kind": ["cat", "cat"]}), tmp_path / "a.parquet")
    audited = read(tmp_path, columns={"class": "kind"})
    assert audited.counts == {"cat": 1}
    assert audited.unreadable == (
        ("a.parquet/1", "cannot be read from a.parquet: the file has no bytes of it, only a path"),
    )


def test_a_saved_dataset_is_read_without_its_library(tmp_path):
    to_arrow(images_table(0, 1, 0), tmp_path / "one/data-00000-of-00001.arrow")
    write(
        tmp_path, {"one/state.json": "{}", "both/dataset_dict.json": '{"splits": ["train", "../x", "test"]}'}
    )
    audited = read(tmp_path / "one")
    assert (audited.layout, audited.counts) == ("saved", {"cat": 2, "dog": 1})
    for split in ("train", "test"):
        to_arrow(images_table(0, 1, 1), tmp_path / "both" / split / "data-00000-of-00001.arrow")
    config = job(tmp_path / "both", "cat", "dog")
    assert Counter(assign_splits(audit_dataset(config), config).values()) == {"train": 3, "test": 3}


def test_shards_hold_images_with_classes_and_splits(tmp_path):
    files = {
        "a/1.png": picture(1), "a/1.json": b'{"label": "cat"}',
        "a/2.jpg": picture(2, "JPEG"), "a/2.json": b'{"label": "dog", "light": "dim", "box": [1]}',
        "a/3.png": picture(3),
        "4.txt": b"no image", "../5.png": picture(5), "/6.png": picture(6), "a/.7.png": picture(7),
    }  # fmt: skip
    to_tar(tmp_path / "train-000000.tar", files)
    to_tar(tmp_path / "val-000000.tar", {"1.png": picture(8), "1.cls": b"dog\n"})
    config = job(tmp_path, "cat", "dog")
    audited = audit_dataset(config)
    assert (audited.layout, audited.counts) == ("webdataset", {"cat": 1, "dog": 2})
    assert [image.file_name for image in audited.images] == [
        "train-000000.tar/a/1.png",
        "train-000000.tar/a/2.jpg",
        "val-000000.tar/1.png",
    ]
    odd = "not a plain file with a plain name in its shard"
    assert audited.unreadable == (
        ("train-000000.tar/../5.png", odd),
        ("train-000000.tar//6.png", odd),
        ("train-000000.tar/a/3.png", "its row names no class"),
    )
    assert Counter(assign_splits(audited, config).values()) == {"train": 2, "validation": 1}


SAMPLES = {name: data for number in range(4) for name, data in (
    (f"{number}.png", picture(number)), (f"{number}.cls", b"cat"))}  # fmt: skip


def test_shards_may_be_made_of_a_folder(tmp_path):
    to_tar(tmp_path / "a.tar", {f"./{name}": data for name, data in SAMPLES.items()})
    audited = read(tmp_path)
    assert (audited.counts, audited.images[0].file_name) == ({"cat": 4}, "a.tar/0.png")


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_shard_that_ends_early_is_refused(tmp_path, damage):
    """tarfile reads what comes before, and says nothing."""
    to_tar(path := tmp_path / "a.tar", SAMPLES)
    data, header = bytearray(path.read_bytes()), 4 * 1024
    assert data[header : header + 5] == b"2.png"
    path.write_bytes(
        data[: header + 100] if damage == "cut" else data[:header] + b"x" * 512 + data[header + 512 :]
    )
    with pytest.raises(DatasetError, match="it is damaged or cut off at byte 4,096"):
        read(tmp_path)


def test_of_two_files_of_one_name_in_a_shard_the_first_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in (("a.png", picture(0)), ("a.cls", b"cat"), ("b.png", picture(1)), ("b.cls", b"dog"),
                           ("a.png", picture(2)), ("a.cls", b"dog")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    [first, _] = read(tmp_path).images
    assert (first.class_name, first.sha256) == ("cat", hashlib.sha256(picture(0)).hexdigest())


def test_an_arrow_file_is_read_as_a_stream_is(tmp_path):
    table = images_table(0, 1, 0)
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 2)
    (tmp_path / "state.json").write_text("{}")
    assert read(tmp_path).counts == {"cat": 2, "dog": 1}


def test_links_in_shards_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
        info = tarfile.TarInfo("1.cls")
        info.size = 3
        shard.addfile(info, io.BytesIO(b"cat"))
    audited = read(tmp_path)
    assert audited.images == ()
    assert audited.unreadable == (("a.tar/1.png", "not a plain file with a plain name in its shard"),)


def test_tables_beside_images_or_folders_are_not_taken_for_images(tmp_path):
    root = put(tmp_path / "flat", "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "class": ["cat"]}), root / "metadata.parquet")
    assert (read(root).layout, read(root).counts) == ("table", {"cat": 1})
    root = put(tmp_path / "classes", "cat/1.png", "state.json", "a.tar")
    to_parquet(images_table(0), root / "more.parquet")
    assert read(root).layout == "folders"
    root = put(tmp_path / "one", "data/1.png")
    pq.write_table(pa.table({"path": ["data/1.png"], "label": ["cat"]}), root / "labels.parquet")
    assert "set dataset.table: labels.parquet" in read(root).warnings[0]


@pytest.mark.parametrize("name", ["a.parquet", "a.tar"])
def test_a_damaged_file_of_images_is_one_clear_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 not really, and no shard" * 40)
    with pytest.raises(DatasetError, match=rf"{name}: the file is damaged") as caught:
        read(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_images_inside_files_come_into_a_run_and_are_measured(tmp_path, monkeypatch, kind):
    """Here the images are read in the process with limits."""
    monkeypatch.setattr(members, "_in_child", False)
    root = tmp_path / "data"
    if kind == "tar":
        to_tar(
            root / "a.tar",
            {"1.png": picture(0), "1.cls": b"basic", "2.bmp": picture(1, "BMP"), "2.cls": b"basic"},
        )
    else:
        to_parquet(
            pa.table({"image": [picture(0), picture(1, "BMP")], "class": ["basic"] * 2}), root / "a.parquet"
        )
    config = job(root, "basic")
    audited = audit_dataset(config)
    assert audited.counts == {"basic": 2}
    storage = open_storage(tmp_path / "run", create=True)
    facts = RunFacts("run-1", ("lighting", "burn_level"), config, None, None, {})
    assert commit_real_images(audited, ["basic"], start(storage), storage, facts) == 2
    rows = read_log(storage).table.to_pylist()
    assert [row["file_name"].rpartition(".")[2] for row in rows] == ["png", "png"]
    for row in rows:
        pixels = decode_image(storage.read(row["file_name"]), max_pixels=100)
        assert pixel_sha256(pixels) == row["pixel_sha256"]
    assert read_unchanged(
        audited.path / audited.images[0].file_name, audited.images[0].sha256, 10_000
    ) == picture(0)
    with pytest.raises(UnreadableImage, match="over the limit"):
        read_bytes(audited.path / audited.images[0].file_name, max_bytes=10)
    members.close()


def test_ids_of_coco_may_be_any_numbers(tmp_path):
    """The third image has no annotation."""
    document = {
        "categories": [{"id": 0.0, "name": "cat"}, {"id": 1.5, "name": "dog"}],
        "images": [{"id": number / 2, "file_name": f"{number}.png"} for number in range(3)],
        "annotations": [{"image_id": 0.0, "category_id": 0}, {"image_id": 0.5, "category_id": 1.5}],
    }
    put(tmp_path, *(f"images/{number}.png" for number in range(3)))
    write(tmp_path, {"annotations/instances_a.json": json.dumps(document)})
    assert read(tmp_path).counts == {"cat": 1, "dog": 1}
    document["images"][0]["id"] = [1]
    write(tmp_path, {"annotations/instances_a.json": json.dumps(document)})
    with pytest.raises(DatasetError, match=r"id is '\[1\]', not a number or a text"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_annotations_that_declare_entities_are_refused_in_any_encoding(tmp_path, encoding):
    put(tmp_path, "JPEGImages/a.png")
    text = '<!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>'
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_bytes(
        f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)
    )
    audited = read(tmp_path)
    assert audited.images == ()
    assert "declares entities" in dict(audited.unreadable)["JPEGImages/a.png"]


@pytest.mark.parametrize("layout", ["coco", "folders"])
def test_init_takes_a_dataset_without_a_classed_image(tmp_path, layout):
    if layout == "coco":
        put(tmp_path, "images/a.png")
        write(tmp_path, {"annotations/instances_a.json": coco(a=[])})
    else:
        put(tmp_path, "cat/1.png")
    settings = () if layout == "coco" else ("--set", "dataset.include=[zzz]")
    result = invoke("init", str(tmp_path), *settings)
    assert (result.exit_code, "Traceback" in result.output) in {(0, False), (2, False)}
    assert not isinstance(result.exception, ValueError)


def test_images_of_a_parquet_file_may_be_read_in_any_order(tmp_path, monkeypatch):
    path = tmp_path / "images.parquet"
    images = [f"{place}".encode() for place in range(300)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), path, row_group_size=70)
    for place in (299, 0, 70, 69, 200, 139, 140, 299):
        packed_files._last.identity = None
        assert packed_files.read_member(path, str(place), 100) == images[place]
        before = max(place - 1, 0)
        assert packed_files.read_member(path, f"{before}.png", 100) == images[before]
    with pytest.raises(ValueError, match="no such row"):
        packed_files.read_member(path, "300", 100)


# Crops


def photograph(path: Path, *colours: int) -> None:
    """Squares of 40 x 40 pixels side by side, each of one brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.repeat(np.array([colours], np.uint8), 40, 0), 40, 1)).convert("RGB").save(
        path
    )


def with_boxes(layout: str, root: Path, *objects: tuple[str, int]) -> None:
    """The annotations of `a.png`: categories, and the numbers of their squares."""
    if layout == "voc":
        boxes = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{1 + 40 * at}</xmin><ymin>1</ymin>"
            f"<xmax>{40 + 40 * at}</xmax><ymax>40</ymax></bndbox></object>"
            for name, at in objects
        )
        write(root, {"Annotations/a.xml": f"<annotation>{boxes}</annotation>"})
        return
    names = sorted({name for name, _ in objects})
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": place, "name": name} for place, name in enumerate(names)],
        "annotations": [
            {"image_id": 1, "category_id": names.index(name), "bbox": [40 * at + 0.4, 0.2, 39.1, 39.6]}
            for name, at in objects
        ],
    }
    write(root, {"annotations/instances_train.json": json.dumps(document)})


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_objects_are_cut_out_where_crops_are_wanted(tmp_path, layout):
    where = "JPEGImages/a.png" if layout == "voc" else "train/a.png"
    photograph(tmp_path / where, 10, 90, 170)
    photograph((tmp_path / where).with_name("b.png"), 50)
    with_boxes(layout, tmp_path, ("cat", 0), ("dog", 2), ("cat", 2))
    config = job(tmp_path, "cat", "dog", crop_boxes=True, splits={"train": 0.5, "test": 0.5})
    audited = audit_dataset(config)
    assert (audited.layout, audited.counts, audited.unreadable) == (layout, {"cat": 2, "dog": 1}, ())
    assert [image.file_name for image in audited.images] == [
        f"{where}/{name}.png" for name in ("0,0,40,40", "80,0,40,40-2", "80,0,40,40")
    ]
    assert {(image.width, image.height) for image in audited.images} == {(40, 40)}
    first = read_image(tmp_path / audited.images[0].file_name, max_bytes=10**6, max_pixels=10**4)
    assert (first == 10).all()
    assert audited.conflicts, "one box, two classes"
    assert "1 image without a box that can be cut out, such as" in " ".join(audited.warnings)
    assert len(set(assign_splits(audited, config).values())) == 1, "all of one photograph"
    storage = open_storage(tmp_path / "run", create=True)
    facts = RunFacts("run-1", ("lighting", "burn_level"), config, None, None, {})
    assert commit_real_images(audited, ["cat", "dog"], start(storage), storage, facts) == 3


def test_boxes_that_are_small_or_make_no_sense_are_left_out(tmp_path):
    photograph(tmp_path / "train/a.png", 10, 90)
    boxes = [[0, 0, 31, 40], [0, 0, 40, 40], [0, 0, 0, 40], [90, 0, 50, 50], "x", [1], [0, 0, 1e9, 1], None]
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [
            *({"image_id": 1, "category_id": 0, "bbox": box} for box in boxes),
            {"image_id": 1, "category_id": 0, "bbox": [40, 0, 40, 40], "iscrowd": 1},
        ],
    }
    write(tmp_path, {"annotations/instances_train.json": json.dumps(document)})
    audited = read(tmp_path, crop_boxes=True)
    assert [image.file_name for image in audited.images] == ["train/a.png/0,0,40,40.png"]
    [(name, reason)] = audited.unreadable
    assert name == "train/a.png/90,0,50,50.png"
    assert "the box reaches out of the photograph, which has 80 x 40 pixels" in reason
    assert audited.warnings == (
        "1 box left out: a side is under 32 pixels (dataset.min_crop_side)",
        "6 boxes left out: around a crowd, without a category that is listed, or without four usable numbers",
    )
    assert len(read(tmp_path, crop_boxes=True, min_crop_side=8).images) == 2


def test_a_crop_of_an_image_that_a_model_made_is_not_real(tmp_path):
    photograph(tmp_path / "train/a.png", 10, 90)
    with_boxes("coco", tmp_path, ("cat", 0), ("cat", 1))
    (tmp_path / "train/a.png").write_bytes(encode_image(np.zeros((40, 80, 3), np.uint8), {}))
    assert (len(read(tmp_path, crop_boxes=True).images), len(read(tmp_path, crop_boxes=True).set_aside)) == (
        0,
        2,
    )
    photograph(tmp_path / "train/a.png", 10, 90)
    document = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    document["images"][0]["metadata"] = {"source": "synthetic", "run_id": "x"}
    write(tmp_path, {"annotations/instances_train.json": json.dumps(document)})
    for settings in ({"crop_boxes": True}, {}):
        assert not read(tmp_path, **settings).images, "an export says so, although the file has lost its mark"


def test_a_category_that_is_not_listed_is_no_class(tmp_path):
    photograph(tmp_path / "train/a.png", 10)
    with_boxes("coco", tmp_path, ("cat", 0))
    path = tmp_path / "annotations/instances_train.json"
    path.write_text(path.read_text().replace('"category_id": 0', '"category_id": 5'))
    audited = read(tmp_path)
    assert audited.unreadable == (("train/a.png", "an object in it has no category, or none that is listed"),)
    assert read(tmp_path, crop_boxes=True).images == ()


def test_a_run_cannot_refer_to_crops(tmp_path):
    photograph(tmp_path / "train/a.png", 10)
    with_boxes("coco", tmp_path, ("cat", 0))
    config = job(tmp_path, "cat", crop_boxes=True)
    config = config.model_copy(update={"output": OutputConfig(real_images="reference")})
    with pytest.raises(DatasetError, match="cannot refer to crops"):
        audit_dataset(config)


def test_a_folder_of_packed_files_or_annotations_that_is_a_link_leads_nowhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    to_parquet(images_table(0, 1), elsewhere / "train.parquet")
    to_tar(elsewhere / "train-000000.tar", {"1.png": picture(8), "1.cls": b"dog"})
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/data").symlink_to(elsewhere)
    for settings in ({}, {"layout": "parquet"}, {"layout": "webdataset"}):
        with pytest.raises(DatasetError):
            read(tmp_path / "packed", **settings)
    with pytest.raises(DatasetError, match="packed/data is a symbolic link, which is not followed"):
        read(tmp_path / "packed", table="data/train-000000.tar")
    to_arrow(images_table(0), elsewhere / "data-00000-of-00001.arrow")
    write(tmp_path / "saved", {"dataset_dict.json": '{"splits": ["train"]}'})
    (tmp_path / "saved/train").symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="symbolic link"):
        read(tmp_path / "saved", layout="saved")
    voc_root = tmp_path / "voc"
    photograph(voc_root / "JPEGImages/a.png", 10)
    with_boxes("voc", voc_root, ("cat", 0))
    write(elsewhere, {"Main/test.txt": "a\n"})
    (voc_root / "ImageSets").symlink_to(elsewhere)
    assert [image.split for image in read(voc_root).images] == [""]


def test_what_a_shard_has_twice_is_said(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in (
            ("1.png", picture(1)), ("1.cls", b"cat"), ("1.jpg", picture(2, "JPEG")),
            ("2.png", picture(3)), ("2.cls", b"cat"), ("3.txt", b""),
            ("2.png", picture(4)), ("2.cls", b"dog"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    audited = read(tmp_path)
    assert audited.counts == {"cat": 2}
    assert audited.unreadable == (("a.tar/1.jpg", "1.png is the picture of its sample"),)
    assert (
        "a.tar: 1 name more than once with other values, such as 2.png; the first counts" in audited.warnings
    )


@pytest.mark.parametrize("layout", ["folders", "table"])
def test_a_layout_without_boxes_has_no_crops(tmp_path, layout):
    write(put(tmp_path, "cat/1.png"), {"labels.csv": "file,class\ncat/1.png,cat\n"})
    with pytest.raises(DatasetError, match="crop_boxes") as caught:
        read(tmp_path, layout=layout, crop_boxes=True)
    assert "coco" in caught.value.hint
