"""Exports: other tools load them, writing again is safe, and nothing that is not ours is touched."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from balancer import open_manifest
from balancer.cli import main
from balancer.errors import ManifestError, StorageError, UsageError
from balancer.export import FORMATS, Options, export
from balancer.export import folder as export_folder
from balancer.export.card import escaped, size_category
from balancer.export.folder import CLAIM, JOURNAL
from balancer.export.formats.folders import facet_folder
from balancer.export.names import folder_names, image_name
from balancer.images import is_marked_synthetic
from balancer.manifest.formats import exact
from balancer.manifest.rows import revoked
from balancer.run_manifest import Manifest
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, HEAD, NO_HEAD, image_bytes, real, rejected, row, start

CLASSES = ("basic", "burnt", "combined", "mixed", "progression", "segment")
FOLDER_FORMATS = ("folders", "hf", "webdataset", "csv", "coco", "labelstudio", "fiftyone")
FILE_FORMATS = ("parquet", "arrow")
NOT_READ = r"a symbolic link|not a regular file|over the limit"
DIM, SEVERE = "basic/dim/0000", "burnt/dim/severe/0000"

of_other_libraries = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""What these say of each other and of themselves."""


def test_every_format_is_tested_here():
    assert set(FOLDER_FORMATS) | set(FILE_FORMATS) == set(FORMATS)


# ---- the real run, and the tools themselves ----------------------------------------------------


def place_of(form: str) -> str:
    return f"table.{form}" if form in FILE_FORMATS else form


@pytest.fixture(scope="module")
def exports(reference_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format of the reference run, each in its place."""
    root = tmp_path_factory.mktemp("exports")
    manifest = open_manifest(reference_run)
    for form in FORMATS:
        options = Options(embed=form in FILE_FORMATS, shard_megabytes=2 if form == "webdataset" else 500)
        assert export(manifest, form, root / place_of(form), options=options).images == 300
    return root


@pytest.fixture(scope="module")
def rows(reference_run: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in open_manifest(reference_run).to_table().to_pylist()}


@of_other_libraries
def test_datasets_loads_the_imagefolder(exports, rows):
    import datasets

    found = datasets.load_dataset("imagefolder", data_dir=str(exports / "hf"))
    assert list(found) == ["train"]
    train = found["train"]
    assert train.features["label"].names == list(CLASSES)
    assert Counter(train["class"]) == dict.fromkeys(CLASSES, 50)
    one = train[299]
    kept = rows[one["id"]]
    assert one["image"].size == (128, 128)
    assert (one["prompt"], one["seed"], one["source"]) == (kept["prompt"], str(kept["seed"]), "synthetic")
    assert one["score_lighting"] == kept["scores"]["lighting"]


@of_other_libraries
def test_datasets_loads_the_folder_by_its_card(exports):
    import datasets

    found = datasets.load_dataset(str(exports / "hf"), split="train")
    assert found.num_rows == 300
    assert isinstance(found.features["image"], datasets.Image)


@of_other_libraries
@pytest.mark.parametrize("form", FILE_FORMATS)
def test_datasets_sees_the_images_in_a_table(exports, rows, form):
    import datasets

    found = datasets.load_dataset(form, data_files=str(exports / place_of(form)), split="train")
    assert found.num_rows == 300
    assert isinstance(found.features["image"], datasets.Image)
    one = found[150]
    assert one["image"].size == (128, 128)
    assert one["seed"] == str(rows[one["id"]]["seed"])
    assert len(one["embedding"]) == len(rows[one["id"]]["embedding"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(exports, rows):
    import webdataset

    shards = sorted(map(str, (exports / "webdataset").glob("train-*.tar")))
    assert len(shards) > 2
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json")
    labels, seen = Counter(), set()
    for image, label, about in samples:
        assert image.size == (128, 128)
        assert CLASSES[label] == about["label"] == rows[about["id"]]["class"]
        assert about.get("seed", "None") == str(rows[about["id"]]["seed"])
        labels[label] += 1
        seen.add(about["id"])
    assert labels == dict.fromkeys(range(6), 50)
    assert seen == set(rows)
    del samples, image
    gc.collect()  # it leaves closing its files to that


def test_a_shard_keeps_to_its_size_and_holds_most_classes(exports):
    for shard in (exports / "webdataset").glob("train-*.tar"):
        assert shard.stat().st_size <= 2e6
        with tarfile.open(shard) as archive:
            ids = {member.name.partition("-")[0] for member in archive.getmembers()}
        assert len(ids & {"real", *CLASSES}) >= 5


@of_other_libraries
def test_ray_data_reads_the_parquet_file(exports, ray_session):
    import ray.data

    found = ray.data.read_parquet(str(exports / "table.parquet"))
    assert found.count() == 300
    classes = found.select_columns(["class"]).take_all()  # a groupby starts processes for 200 partitions
    assert Counter(one["class"] for one in classes) == dict.fromkeys(CLASSES, 50)


def test_duckdb_reads_the_parquet_file(exports):
    question = (
        f"select class, count(*), count(distinct lighting), min(len(embedding)), max(seed::ubigint) > 1e18 "
        f"from '{exports / 'table.parquet'}' where source = 'synthetic' group by all order by all"
    )
    found = {name: told for name, *told in duckdb.sql(question).fetchall()}
    assert found["mixed"] == [50, 4, found["basic"][2], True]
    assert sum(told[0] for told in found.values()) == 244


def test_a_table_has_every_column_and_no_type_that_is_hard_to_read(exports, reference_run):
    table = pa.ipc.open_file(exports / "table.arrow").read_all()
    manifest = open_manifest(reference_run).to_table()
    assert table.column_names == ["image", "label", *manifest.column_names]
    assert not any(pa.types.is_dictionary(field.type) for field in table.schema)
    assert table["embedding"].type.value_type == pa.float32()
    told = ("id", "class", "scores", "seed", "generated_at", "nearest_id")
    assert table.select(told).to_pylist() == exact(manifest.select(told)).to_pylist()
    assert pq.read_table(exports / "table.parquet").equals(table)


def test_torchvision_reads_the_class_folders(exports):
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(exports / "folders" / "train"))
    assert tuple(found.classes) == CLASSES
    assert Counter(found.targets) == dict.fromkeys(range(6), 50)
    assert found[0][0].size == (128, 128)


def test_folders_hold_relative_links_by_class_and_by_facet(exports, reference_run, rows):
    root = exports / "folders"
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"train", "facets", "metadata"}
    assert {path.name for path in (root / "train").iterdir()} == set(CLASSES)
    assert {path.name for path in (root / "facets/train").iterdir()} == {"lighting", "burn_levels"}
    assert {path.name for path in (root / "facets/train/burn_levels").iterdir()} == {
        "slightly_burnt", "moderately_burnt", "severely_burnt",
    }  # fmt: skip
    dim = list((root / "facets/train/lighting/dim_ambient").iterdir())
    assert len(dim) == sum(one["lighting"] == "dim_ambient" for one in rows.values()) > 61
    for link in dim:
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve().is_relative_to(reference_run.resolve())
    listed = pq.read_table(root / "metadata" / "train.parquet")["file_name"].to_pylist()
    assert all((root / name).is_file() for name in listed)
    assert (root / "metadata" / "train.csv").read_text().count("\n") == 301


def test_label_studio_tasks_have_the_documented_fields(exports, rows):
    root = exports / "labelstudio"
    tasks = json.loads((root / "tasks.json").read_bytes())
    interface = ET.fromstring((root / "label_config.xml").read_text())
    choices = {
        control.get("name"): {choice.get("value") for choice in control.findall("Choice")}
        for control in interface.findall("Choices")
    }
    assert {control.get("toName") for control in interface.findall("Choices")} == {"image"}
    assert choices["class"] == set(CLASSES)
    assert len(tasks) == 300
    for task in tasks:
        assert set(task) == {"data", "predictions"}
        path = parse_qs(urlsplit(task["data"]["image"]).query)["d"][0]
        assert task["data"]["image"].startswith("/data/local-files/?d=images/")
        assert (root / path).is_file()
        (prediction,) = task["predictions"]
        kept = rows[task["data"]["id"]]
        assert prediction.get("score") == kept["score"]
        assert prediction["model_version"]
        answers = {}
        for result in prediction["result"]:
            assert {"id", "from_name", "to_name", "type", "value"} <= set(result)
            assert (result["type"], result["to_name"]) == ("choices", "image")
            (choice,) = result["value"]["choices"]
            assert choice in choices[result["from_name"]]
            answers[result["from_name"]] = choice
        assert answers["class"] == kept["class"]
        assert answers.get("burn_level") == kept["burn_level"]


def test_fiftyone_samples_have_the_fields_that_its_own_exports_have(exports, rows):
    """Field by field, as FiftyOne 1.22.1 writes and reads them (checked with its importer on this export)."""
    root = exports / "fiftyone"
    metadata = json.loads((root / "metadata.json").read_bytes())
    samples = json.loads((root / "samples.json").read_bytes())["samples"]
    assert {"name", "version", "media_type", "sample_fields", "default_classes", "app_config"} <= set(
        metadata
    )
    assert metadata["default_classes"] == list(CLASSES)
    fields = {field["name"]: field for field in metadata["sample_fields"]}
    for field in fields.values():
        assert {"name", "ftype", "subfield", "embedded_doc_type", "db_field", "fields"} <= set(field)
        assert field["ftype"].startswith("fiftyone.core.fields.")
    label = "fiftyone.core.labels.Classification"
    labels = {name for name, field in fields.items() if field["embedded_doc_type"] == label}
    assert labels == {"ground_truth", "lighting", "burn_level"}
    assert len({sample["_id"]["$oid"] for sample in samples}) == 300
    for sample in samples:
        kept = rows[sample["balancer_id"]]
        assert set(sample) - {"_id", "_media_type", "_rand"} == set(fields) - {"id", "metadata"}
        assert len(sample["_id"]["$oid"]) == 24
        assert 0 <= sample["_rand"] < 1
        assert (root / sample["filepath"]).is_file()
        assert sample["tags"] == [kept["split"], kept["source"]]
        assert sample["ground_truth"]["_cls"] == "Classification"
        assert sample["ground_truth"]["label"] == kept["class"]
        assert sample["ground_truth"].get("confidence") == (kept["scores"] or {}).get("class")
        assert (sample["burn_level"] or {}).get("label") == kept["burn_level"]
        assert sample["seed"] == (None if kept["seed"] is None else str(kept["seed"]))


def test_fiftyone_imports_the_export(exports):
    """Where it is installed: it needs a database server besides, and is no dependency of the tests."""
    fiftyone = pytest.importorskip("fiftyone")
    found = fiftyone.Dataset.from_dir(
        str(exports / "fiftyone"), dataset_type=fiftyone.types.FiftyOneDataset, name="balancer-test"
    )
    try:
        assert found.count_values("ground_truth.label") == dict.fromkeys(CLASSES, 50)
    finally:
        found.delete()


def files_of(root: Path) -> dict[str, bytes]:
    """Every image of an export, by the name of its file."""
    found = {}
    if root.is_file():
        table = pq.read_table(root) if root.suffix == ".parquet" else pa.ipc.open_file(root).read_all()
        return {image["path"]: image["bytes"] for image in table["image"].to_pylist()}
    for path in root.rglob("*"):
        if path.suffix == ".png":
            found[path.name] = path.read_bytes()
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for member in archive.getmembers():
                    if member.name.endswith(".png"):
                        data = archive.extractfile(member)
                        assert data is not None
                        found[member.name] = data.read()
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_the_synthetic_mark_is_in_every_generated_image(exports, rows, form):
    files = files_of(exports / place_of(form))
    assert set(files) == {image_name(name, one["file_name"]) for name, one in rows.items()}
    marked = {name for name, data in files.items() if is_marked_synthetic(data)}
    generated = {name: one for name, one in rows.items() if one["source"] == "synthetic"}
    assert marked == {image_name(name, one["file_name"]) for name, one in generated.items()}
    assert len(marked) == 244


# ---- the dataset card ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card(exports: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    _, front, text = (exports / "hf" / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_has_the_tags_of_the_hub(card):
    front, _ = card
    assert front["license"] == "unknown"
    assert front["task_categories"] == ["image-classification"]
    assert front["size_categories"] == ["n<1K"]
    assert front["annotations_creators"] == ["machine-generated", "other"]
    assert front["source_datasets"] == ["original"]
    assert "synthetic" in front["tags"]
    assert front["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train/**"}]}
    ]


def test_what_a_card_quotes_is_neither_html_nor_markup_nor_a_line_of_its_own(tmp_path):
    hostile = "<img src=x onerror=y> & [a](http://evil.example)\n---\n# \x1b[31m\u202e title"
    run = commit(tmp_path / "run", row(DIM, split="train"), name=hostile)
    export(run, "hf", tmp_path / "out", options=Options(licence=hostile))
    whole = (tmp_path / "out" / "README.md").read_text()
    _, front, text = whole.split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["pretty_name"], told["license"]) == (hostile, hostile)
    assert not re.search(r"(?<!\\)[<>&]", whole)
    assert whole.replace("\n", "").isprintable()
    assert "(http:" not in text


def test_the_card_is_one_for_the_hub_library(exports):
    from huggingface_hub import DatasetCard

    loaded = DatasetCard.load(exports / "hf" / "README.md")
    assert (loaded.data.pretty_name, loaded.data.license) == ("Rendered pizzas", "unknown")


def test_the_card_tells_what_reviewers_ask_for(card, reference_run):
    _, text = card
    run = open_manifest(reference_run).run
    candidates = open_manifest(reference_run).to_table(["id"], "source = 'synthetic'", "all").num_rows
    assert "81.3 % synthetic" in text
    assert f"Generated by embedded at {run.models['generator']['revision']}" in text
    assert f"244 of {candidates} candidates passed" in text
    assert "| mixed | 0 | 50 | 100 % |" in text
    assert "a pizza half burnt and half fresh" in text
    assert "None is stated" in text
    assert "no photographs" in text
    assert "All images are for training" in text


def test_a_card_does_not_claim_that_simulated_actors_checked_anything(tmp_path):
    simulated = CONFIG | {"actors": CONFIG["actors"] | {"kind": "simulated"}}
    for folder, config in (("plain", CONFIG), ("simulated", simulated)):
        run = commit(tmp_path / folder, row(DIM, split="train"), config=config)
        export(run, "hf", tmp_path / f"{folder}-out")
    plain, text = ((tmp_path / f"{name}-out" / "README.md").read_text() for name in ("plain", "simulated"))
    assert "Each image was checked by" in plain
    assert "had to reach a probability" in plain
    assert "No image was checked: scores are random numbers" in text
    assert "Generated images are noise, and their labels mean nothing" in text
    for claim in ("was checked by", "had to reach", "verifier", "agreed"):
        assert claim not in text


def test_a_missing_image_is_an_error_with_the_command_that_lists_all(tmp_path):
    run = commit(tmp_path / "my run", row(DIM, split="train"))
    (tmp_path / "my run" / f"images/{DIM}-1.png").unlink()
    for form in ("hf", "folders"):
        with pytest.raises(StorageError, match="missing") as caught:
            export(run, form, tmp_path / form)
        assert "my run'` lists every image that is missing" in caught.value.hint


def test_an_empty_destination_is_not_the_working_folder(tmp_path):
    commit(tmp_path / "run", row(DIM, split="train"))
    result = CliRunner().invoke(main, ["export", str(tmp_path / "run"), "hf", ""])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: DEST is empty\nhint: name the folder or file to write\n",
    )


TRIED_IN_VAIN = [rejected(DIM, attempt, split="train") for attempt in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("rows", "short", "still_open"),
    [([], 0, 5), (TRIED_IN_VAIN[:1], 0, 5), (TRIED_IN_VAIN, 1, 4)],
    ids=["nobody tried", "tried once", "tried in vain"],
)
def test_a_card_calls_short_what_was_tried_in_vain_and_open_what_was_not(tmp_path, rows, short, still_open):
    run = commit(tmp_path / "run", real("a.png", split="train"))
    start(open_storage(tmp_path / "run", create=False)).commit(rows)
    export(run, "hf", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ("could not be" in text) == bool(short)
    assert not short or f"Of 5 images to be generated, {short} could not be" in text
    assert f"Of 5 images to be generated, {still_open} are still open" in text


def test_a_card_names_the_classes_that_stay_below_their_target_by_design(tmp_path):
    limited = CONFIG | {"target": CONFIG["target"] | {"max_synthetic_share": 0.5}}
    for folder, config in (("plain", CONFIG), ("limited", limited)):
        run = commit(tmp_path / folder, real("a.png", split="train"), config=config, targets=TARGETS)
        export(run, "hf", tmp_path / f"{folder}-out")
    told = escaped("burnt reaches 2 of 9 images: target.max_synthetic_share allows no more generated ones")
    assert f"- {told}." in (tmp_path / "limited-out" / "README.md").read_text()
    assert "reaches" not in (tmp_path / "plain-out" / "README.md").read_text()


def test_a_card_says_what_heads_judged(tmp_path):
    for folder, heads in (("plain", {"class": NO_HEAD}), ("heads", {"class": HEAD, "lighting": NO_HEAD})):
        run = commit(tmp_path / folder, row(DIM, split="train"), heads=heads)
        export(run, "hf", tmp_path / f"{folder}-out")
    plain, text = ((tmp_path / f"{name}-out" / "README.md").read_text() for name in ("plain", "heads"))
    assert "Judged by a classifier fitted on labelled real training images, besides the words: class." in text
    assert "Judged by a classifier" not in plain


def test_a_card_counts_what_was_made_from_real_images_and_every_export_names_the_parent(tmp_path):
    parent = {"parent_id": "real/a.png", "strength": 0.7}
    for folder, made_from in (("plain", {}), ("conditioned", parent)):
        run = commit(tmp_path / folder, real("a.png", split="train"), row(DIM, split="train", **made_from))
        export(run, "hf", tmp_path / f"{folder}-out")
    plain, text = ((tmp_path / f"{name}-out" / "README.md").read_text() for name in ("plain", "conditioned"))
    assert "1 of them were made from a real training image each" in text
    assert "keep each with its parent" in text
    assert "from a real training image" not in plain
    [file] = (tmp_path / "conditioned-out").rglob("metadata.parquet")
    rows = {each["id"]: each for each in pq.read_table(file).to_pylist()}
    assert {name: rows[f"{DIM}-1"][name] for name in parent} == parent


TARGETS = {"basic": 4, "burnt": 9}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a <b>bold</b> | cell", r"a \<b\>bold\</b\> \| cell"),
        ("two\n\n# lines", r"two \# lines"),
        ("[link](http://x) `code` ~~*_", r"\[link\]\(http\://x\) \`code\` \~\~\*\_"),
    ],
)
def test_names_and_prompts_mean_nothing_in_markdown(text, written):
    assert escaped(text) == written


@pytest.mark.parametrize(
    ("images", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**7, "n>10M")],
)
def test_sizes_have_the_categories_of_the_hub(images, category):
    assert size_category(images) == category


# ---- writing again ---------------------------------------------------------------------------


def commit(folder: Path, *rows: dict[str, Any], **changes: Any) -> Manifest:
    storage = open_storage(folder, create=True)
    for one in rows:
        storage.publish(one["file_name"], image_bytes(one["file_name"][len("images/") : -len(".png")]))
    start(storage, **changes).commit(rows)
    return open_manifest(folder)


@pytest.fixture
def run(tmp_path: Path) -> Manifest:
    return commit(
        tmp_path / "run",
        real("a.png", split="train"),
        real("b.png", split="validation"),
        real("c.png", "burnt", split="test"),
        row(DIM, split="train", fallback=False, review=True),
        row(SEVERE, split="train", fallback=True, review=False),
    )


def contents(root: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, hidden ones included."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("form", FOLDER_FORMATS)
def test_the_same_export_again_writes_nothing(run, tmp_path, form):
    first = export(run, form, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = export(run, form, tmp_path / "out")
    assert (again.written, again.kept, again.removed) == (0, first.written, 0)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_the_same_table_again_is_the_same_file(run, tmp_path, form):
    export(run, form, tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    export(run, form, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["out"]


@pytest.mark.parametrize("form", FOLDER_FORMATS)
def test_an_export_that_was_cut_short_is_completed(run, tmp_path, form, monkeypatch):
    export(run, form, tmp_path / "whole", options=Options(copy=form == "folders"))
    calls = []

    def dies(job, row):
        calls.append(row["id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(job, row)

    from balancer.export.job import Job

    original = Job.image
    monkeypatch.setattr(Job, "image", dies)
    with pytest.raises(KeyboardInterrupt):
        export(run, form, tmp_path / "out", options=Options(copy=form == "folders"))
    monkeypatch.undo()
    export(run, form, tmp_path / "out", options=Options(copy=form == "folders"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("form", FOLDER_FORMATS)
def test_a_file_that_was_damaged_since_is_written_again(run, tmp_path, form):
    options = Options(copy=form == "folders")
    export(run, form, tmp_path / "out", options=options)
    before = contents(tmp_path / "out")
    for path in before:
        if not path.startswith(".balancer"):
            (tmp_path / "out" / path).write_bytes(b"damaged")
    again = export(run, form, tmp_path / "out", options=options)
    assert (again.kept, contents(tmp_path / "out")) == (0, before)


@pytest.mark.parametrize("form", FOLDER_FORMATS)
def test_what_has_no_row_any_more_is_removed_and_what_is_not_ours_stays(run, tmp_path, form):
    export(run, form, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    start(open_storage(run.uri, create=False)).commit_verdicts([revoked(row(SEVERE, split="train"), "class")])
    fewer = export(open_manifest(run.uri), form, tmp_path / "out")
    assert fewer.images == 4
    assert fewer.removed >= (form not in ("webdataset",))
    kept = contents(tmp_path / "out")
    assert kept.pop("notes.txt") == b"mine"
    export(open_manifest(run.uri), form, tmp_path / "fresh")
    assert {path.name for path in (tmp_path / "out").rglob("*")} - {"notes.txt"} == {
        path.name for path in (tmp_path / "fresh").rglob("*")
    }
    assert kept.keys() == contents(tmp_path / "fresh").keys()


def test_what_a_killed_export_left_half_written_is_removed(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    before = contents(tmp_path / "out")
    for folder in ("", "train", "train/basic"):
        (tmp_path / "out" / folder / ".balancer-export.123.tmp").write_bytes(b"half")
    export(run, "hf", tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    before = contents(tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'["train/basic/x.p')
    export(run, "hf", tmp_path / "out")
    assert contents(tmp_path / "out") == before


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FOLDER_FORMATS)
def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(run, tmp_path, form):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds files that are not of an export, such as precious\.txt"):
        export(run, form, tmp_path / "out")
    assert contents(tmp_path / "out") == {"precious.txt": b"mine"}


@pytest.mark.parametrize("form", FILE_FORMATS)
@pytest.mark.parametrize("kind", ["text", "folder", "table", "link"])
def test_a_file_that_is_anything_else_is_refused_and_left_alone(run, tmp_path, form, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "link":
        (tmp_path / "target").write_bytes(b"")
        out.symlink_to(tmp_path / "target")
    elif kind == "text":
        out.write_text("precious")
    else:
        pq.write_table(pa.table({"x": [1]}), out)
    with pytest.raises(UsageError, match="exists and is not a file of this export"):
        export(run, form, out)
    assert out.is_dir() == (kind == "folder")
    if kind == "text":
        assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("form", "change", "problem"),
    [
        ("hf", {"filter": "class = 'basic'"}, "its filter is '', not \"class = 'basic'\""),
        (
            "hf",
            {"options": Options(licence="mit")},
            "its option licence (--licence) is 'unknown', not 'mit'",
        ),
        *((other, {}, f"its format is 'hf', not {other!r}") for other in FOLDER_FORMATS if other != "hf"),
        ("folders", {"filter": "class = 'basic'"}, "its format is 'hf', not 'folders'"),
    ],
)
def test_a_folder_of_another_export_is_refused(run, tmp_path, form, change, problem):
    export(run, "hf", tmp_path / "out")
    with pytest.raises(UsageError, match="holds another export") as caught:
        export(run, form, tmp_path / "out", **change)
    assert problem in caught.value.message


def test_an_export_of_another_run_is_refused(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    export(run, "parquet", tmp_path / "out.parquet")
    other = commit(tmp_path / "other", real("a.png", split="train", run_id="run-2"), run_id="run-2")
    with pytest.raises(UsageError, match="its run_id is 'run-1', not 'run-2'"):
        export(other, "hf", tmp_path / "out")
    with pytest.raises(UsageError, match="not a file of this export"):
        export(other, "parquet", tmp_path / "out.parquet")


def test_a_claim_that_cannot_be_read_is_refused(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    for text in ("[1", "[[1, 2]]"):
        (tmp_path / "out" / CLAIM).write_text(text)
        with pytest.raises(UsageError, match="cannot be read"):
            export(run, "hf", tmp_path / "out")


def test_no_link_in_the_destination_leads_to_files_that_are_removed(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    theirs = tmp_path / "elsewhere" / ".balancer-export.mine.tmp"
    theirs.parent.mkdir()
    theirs.write_bytes(b"")
    (tmp_path / "out" / "link").symlink_to(theirs.parent)
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write('["link/x", null]\n')
    export(run, "hf", tmp_path / "out")
    assert theirs.exists()


def test_a_file_put_where_an_image_belongs_is_not_overwritten(run, tmp_path):
    export(run, "hf", tmp_path / "out", filter="split = 'train'")
    shutil.rmtree(tmp_path / "out" / "train")
    (tmp_path / "out" / JOURNAL).write_bytes(b"")
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README\.md exists and is not of this export"):
        export(run, "hf", tmp_path / "out", filter="split = 'train'")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_no_link_in_the_destination_leads_an_export_out_of_it(run, tmp_path):
    export(run, "hf", tmp_path / "out")
    shutil.move(tmp_path / "out" / "train", tmp_path / "elsewhere")
    (tmp_path / "out" / "train").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link that leads out"):
        export(run, "hf", tmp_path / "out")
    assert contents(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", [CLAIM, JOURNAL])
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "sparse"])
def test_what_an_export_keeps_beside_its_files_is_not_read_or_written_through_anything_else(
    run, tmp_path, name, kind
):
    export(run, "hf", tmp_path / "out")
    note, precious = tmp_path / "out" / name, tmp_path / "precious"
    note.rename(precious)
    before = precious.read_bytes()
    if kind == "pipe":
        os.mkfifo(note)
    elif kind == "sparse":
        with note.open("wb") as file:
            file.truncate(20_000_000_000)
    else:
        note.symlink_to(precious if kind == "link" else "/dev/zero")
    with pytest.raises((UsageError, StorageError), match=NOT_READ):
        export(run, "hf", tmp_path / "out")
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    "entry",
    [["../precious", None], ["/precious", None], ["..", None], ["", None], [".", None], [7, None],
     ["a", 7], [["a"], None], ["a"], 7, {"a": 1, "b": 2}, ["a\0b", None], ["train", None],
     ["x" * 9999, None], ["x" * 300, None], ["é" * 200, None], ["x/" * 2500 + "x", None]],
)  # fmt: skip
def test_a_journal_with_other_entries_than_ours_touches_nothing_outside(run, tmp_path, entry):
    export(run, "hf", tmp_path / "out")
    (tmp_path / "precious").write_text("mine")
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write(json.dumps(entry) + "\n")
    before = contents(tmp_path / "out")
    export(run, "hf", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"
    assert contents(tmp_path / "out").keys() == before.keys()


@pytest.mark.parametrize("place", ["run", "run/export", "run/images/export", "."])
def test_run_and_destination_do_not_contain_each_other(run, tmp_path, place):
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="contain each other"):
        export(run, "hf", tmp_path / place)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("form", "destination", "options", "problem"),
    [
        ("xml", "out", Options(), "no export format 'xml'"),
        ("hf", "s3://bucket/out", Options(), "exports go to local paths"),
        ("hf", "out", Options(copy=True), r"option copy \(--copy\) has no effect on format 'hf'"),
        (
            "folders",
            "out",
            Options(embed=True),
            r"option embed \(--embed\) has no effect",
        ),
        ("parquet", "no/folder/out.parquet", Options(), "no folder"),
    ],
)
def test_a_mistake_is_a_usage_error(run, tmp_path, form, destination, options, problem):
    at = destination if "://" in destination else tmp_path / destination
    with pytest.raises(UsageError, match=problem):
        export(run, form, at, options=options)


def test_a_folder_export_onto_a_file_is_refused(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file, but this export is a folder"):
        export(run, "hf", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_a_storage_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        export(run, "hf", tmp_path / "file" / "out")


@pytest.mark.parametrize(("form", "copy"), [(form, False) for form in FORMATS] + [("folders", True)])
def test_an_image_that_is_not_what_was_committed_is_never_exported(run, tmp_path, form, copy):
    (Path(run.uri) / f"images/{DIM}-1.png").write_bytes(b"something else")
    options = Options(copy=copy, embed=form in FILE_FORMATS)
    with pytest.raises(ManifestError, match="is not the image that row 'basic/dim/0000-1' was written for"):
        export(run, form, tmp_path / "out", options=options)


def test_a_journal_that_cannot_be_written_is_a_storage_error(run, tmp_path, monkeypatch):
    full = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - the export closes it
    monkeypatch.setattr(export_folder, "append_regular", lambda path: full)
    with pytest.raises(StorageError, match=r"cannot write .*no space left on device"):
        export(run, "hf", tmp_path / "out")


# ---- splits, filters, names --------------------------------------------------------------------


def test_splits_are_splits_of_the_imagefolder(run, tmp_path):
    assert export(run, "hf", tmp_path / "out").images == 5
    tables = {path.parent.name: pq.read_table(path)["id"].to_pylist()
              for path in (tmp_path / "out").rglob("metadata.parquet")}  # fmt: skip
    assert tables["validation"] == ["real/b.png"]
    assert tables["test"] == ["real/c.png"]
    assert len(tables["train"]) == 3
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert [told["split"] for told in front["configs"][0]["data_files"]] == ["train", "validation", "test"]
    assert "Validation and test hold real images only" in (tmp_path / "out" / "README.md").read_text()


def test_with_splits_each_is_a_folder_of_the_layout(run, tmp_path):
    export(run, "folders", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "train", "validation", "test", "facets", "metadata",
    }  # fmt: skip
    (listed,) = pq.read_table(tmp_path / "out/metadata/test.parquet")["file_name"].to_pylist()
    assert (tmp_path / "out" / listed).read_bytes() == image_bytes("burnt/dim/c.png-1")


def test_copies_are_no_links(run, tmp_path):
    export(run, "folders", tmp_path / "out", filter="split = 'train'", options=Options(copy=True))
    found = list((tmp_path / "out").rglob("*.png"))
    assert len(found) == 3 * 2 + 1
    assert not any(path.is_symlink() for path in found)


@pytest.mark.parametrize("form", FORMATS)
def test_a_filter_applies_to_every_format(run, tmp_path, form):
    found = export(run, form, tmp_path / "out", filter="class = 'burnt' and source = 'synthetic'")
    assert found.images == 1
    with pytest.raises(UsageError, match="no images of filter 'score > 2'"):
        export(run, form, tmp_path / "none", filter="score > 2")
    assert not (tmp_path / "none").exists()


HOSTILE = ["../../etc", "..", ".hidden", "con", "a b", "Basic", "basic", "x" * 100, "пицца", "a:b", "train"]


@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_no_folder_names_lead_nowhere(tmp_path, form):
    names = [name for name in HOSTILE if "/" not in name]
    config = CONFIG | {"classes": {name: {"prompts": ["x"]} for name in names}}
    values = {"values": {"..": {"prompts": ["x"]}}}
    config |= {"facets": {"lighting": values, "burn_level": values}}
    rows = [real(f"{n}.png", name, split="train", lighting="..") for n, name in enumerate(names)]
    rows = [{**one, "file_name": f"images/{n}.png"} for n, one in enumerate(rows)]
    rows = [{**one, "id": f"real/{one['class']}/../../../{n}.png"} for n, one in enumerate(rows)]
    for one in rows:
        data = image_bytes(one["file_name"][7:-4])
        one |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    run = commit(tmp_path / "run", *rows, config=config, plan=[], targets=dict.fromkeys(names, 1))
    before = set(tmp_path.rglob("*"))
    found = export(run, form, tmp_path / "out", options=Options(copy=form == "folders"))
    assert found.images == len(names)
    new = set(tmp_path.rglob("*")) - before
    assert all(path == tmp_path / "out" or path.is_relative_to(tmp_path / "out") for path in new)
    folded = Counter(str(path).casefold() for path in new)
    assert max(folded.values()) == 1, "also where upper and lower case are the same"


@given(st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=12))
def test_folder_names_are_safe_and_all_different(names: list[str]):
    found = folder_names(names, taken=["metadata", "Train"])
    for folder in found.values():
        assert folder not in (".", "..")
        assert not set(folder) & set('/\\:*?"<>|\0\n')
        assert not folder.startswith(".")
        assert not folder.endswith((" ", "."))
    assert len({folder.casefold() for folder in found.values()} - {"metadata", "train"}) == len(names)


def test_a_name_that_looks_like_the_slug_of_another_is_another():
    slugged = folder_names(["con"])["con"]
    found = folder_names(["con", slugged])
    assert len(set(found.values())) == 2


def test_facets_whose_names_differ_in_number_only_have_their_own_folders(tmp_path):
    names = ["burn_level", "burn_levels"]
    facets = {name: {"values": {"severe": {"prompts": ["x"]}}} for name in names}
    one = real("a.png", split="train") | {"burn_level": "severe", "burn_levels": None}
    one.pop("lighting")
    run = commit(tmp_path / "run", one, config=CONFIG | {"facets": facets}, facets=names, plan=[])
    export(run, "folders", tmp_path / "out", options=Options(copy=True))
    assert len(list((tmp_path / "out/facets/train/burn_level/severe").iterdir())) == 1
    assert not (tmp_path / "out/facets/train/burn_levels").exists()


def test_plain_names_stay_as_they_are():
    names = ["basic", "Golden Retriever", "пицца", "burn_level-2"]
    assert list(folder_names(names).values()) == names


@given(st.text(min_size=1, max_size=200))
def test_image_names_are_one_part_of_a_path(row_id: str):
    name = image_name(row_id, "images/x/y.PNG")
    assert name.endswith(".png")
    assert "/" not in name
    assert "." not in name[:-4]
    assert len(name) <= 100
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize("file_name", ["images/x.exe", "images/png", "images/x.png/y", "images/x.png.sh"])
def test_a_file_of_another_kind_is_never_exported(file_name):
    with pytest.raises(ManifestError, match="not that of a PNG, JPEG or WebP file"):
        image_name("real/x", file_name)


@pytest.mark.parametrize(
    ("facet", "folder"),
    [
        ("lighting", "lighting"),
        ("burn_level", "burn_levels"),
        ("angle", "angles"),
        ("props", "props"),
        ("time of day", "time of day"),
    ],
)
def test_facets_have_the_folders_of_the_earlier_layout(facet, folder):
    assert facet_folder(facet) == folder


@pytest.mark.parametrize("form", FORMATS)
def test_a_facet_that_is_called_like_a_column_of_an_export_keeps_its_values(tmp_path, form):
    facets = {name: {"values": {"dim": {"prompts": ["x"]}}} for name in ("label", "image", "tags")}
    told = {"label": "dim", "image": "dim", "tags": "dim"}
    odd = real("a.png", split="train") | told
    for name in ("lighting", "burn_level"):
        odd.pop(name)
    run = commit(
        tmp_path / "run", odd, config=CONFIG | {"facets": facets}, facets=["label", "image", "tags"],
        plan=[],
    )  # fmt: skip
    assert export(run, form, tmp_path / "out").images == 1
    if form == "labelstudio":
        (task,) = json.loads((tmp_path / "out" / "tasks.json").read_bytes())
        assert (task["data"]["label"], task["data"]["label_"]) == ("basic", "dim")
        assert task["data"]["image"].startswith("/data/local-files/")
    if form == "fiftyone":
        (sample,) = json.loads((tmp_path / "out" / "samples.json").read_bytes())["samples"]
        assert sample["tags"] == ["train", "real"]
        assert sample["balancer_tags"]["label"] == "dim"


# ---- the command -------------------------------------------------------------------------------


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_the_command_says_what_it_wrote(run, tmp_path):
    result = command(run.uri, "hf", tmp_path / "out", "split = 'train'", "--licence", "cc-by-4.0")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out'}: 3 images, 5 files written\n"
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    again = command(run.uri, "hf", tmp_path / "out", "split = 'train'", "--licence", "cc-by-4.0")
    assert again.stdout == f"{tmp_path / 'out'}: 3 images, 0 files written, 5 unchanged\n"


def test_the_help_names_every_format():
    shown = command("--help").stdout
    for form, about in FORMATS.items():
        assert f"{form} " in shown
        assert about in shown


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        (Options(copy=True), Options(), "it was written with option copy (--copy)"),
        (Options(), Options(copy=True), "it was written without option copy (--copy)"),
    ],
)
def test_an_option_in_which_exports_differ_is_called_as_it_is_given(run, tmp_path, first, then, told):
    export(run, "folders", tmp_path / "out", options=first)
    with pytest.raises(UsageError) as refused:
        export(run, "folders", tmp_path / "out", options=then)
    assert told in refused.value.message


def test_the_hint_for_a_filter_that_leaves_nothing_is_about_the_filter(run, tmp_path):
    with pytest.raises(UsageError, match="no images of filter") as refused:
        export(run, "folders", tmp_path / "out", "class = 'nope'")
    assert "split" not in refused.value.hint
    assert "the filter leaves none of 5 images" in refused.value.hint


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["xml", "out"], "error: no export format 'xml'"),
        (["hf", "out", "class = "], "is not valid SQL"),
        (["hf", "out", "--copy"], "option copy (--copy) has no effect on format 'hf'"),
        (["webdataset", "out", "--shard-megabytes", "0"], "0.0 is not in the range x>0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path, arguments, problem, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(run.uri, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_long_exports_show_how_far_they_are(run, tmp_path, monkeypatch):
    monkeypatch.setattr("balancer.cli.console.LINE_INTERVAL_S", 0.0)
    shown = command(run.uri, "hf", tmp_path / "out").stderr.splitlines()
    assert shown[0] == "1 of 5 images exported (20%)"
    assert shown[-1] == "5 of 5 images exported (100%)"
