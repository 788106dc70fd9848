"""Numbers survive every way out of a manifest, read as readers do whose numbers are floats."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.export import FORMATS, export
from balancer.manifest.formats import exact
from balancer.run_manifest import Manifest, open_manifest
from balancer.storage import open_storage
from tests.manifest_samples import image_bytes, real, row, start

SLOTS = ("basic/dim/0000", "burnt/dim/severe/0000")
SEEDS = {f"{SLOTS[0]}-1": 2**64 - 1, f"{SLOTS[1]}-1": 2**53 + 1}
TEXT = {row_id: str(seed) for row_id, seed in SEEDS.items()}


@pytest.fixture
def run(tmp_path: Path) -> Manifest:
    """Two seeds that no float holds, a real image without a seed, a score that is no number."""
    rows = [row(slot, split="train", seed=SEEDS[f"{slot}-1"], unjudged=["lighting"]) for slot in SLOTS]
    rows[0]["scores"] = {"class": 0.75, "lighting": math.nan}
    storage = open_storage(tmp_path / "run", create=True)
    everything = [real("a.png", split="train"), *rows]
    for one in everything:
        storage.publish(one["file_name"], image_bytes(one["file_name"][len("images/") : -len(".png")]))
    start(storage).commit(everything)
    return open_manifest(tmp_path / "run")


def as_floats(text: str | bytes) -> Any:
    """JSON as JavaScript and jq read it. NaN and infinity are no JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_int=lambda digits: int(float(digits)), parse_constant=refuse)


def with_pandas(path: Path) -> list[Mapping[str, Any]]:
    pandas = pytest.importorskip("pandas")
    read = pandas.read_feather if path.suffix == ".arrow" else pandas.read_parquet
    return read(path).to_dict("records")


def content_of(shard: tarfile.TarFile, name: str) -> bytes:
    file = shard.extractfile(name)
    assert file is not None
    return file.read()


def notes_in(path: Path) -> list[Mapping[str, Any]]:
    with tarfile.open(path) as shard:
        names = [name for name in shard.getnames() if name.endswith(".json")]
        return [as_floats(content_of(shard, name)) for name in names]


def with_csv(path: Path) -> list[Mapping[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def seeds_in(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {row.get("id") or row["balancer_id"]: row["seed"] for row in rows if row["source"] == "synthetic"}


def rows_of(form: str, out: Path) -> list[Mapping[str, Any]]:
    if out.is_file():
        return with_pandas(out)
    if form in ("hf", "folders"):
        [table] = out.rglob("*.parquet")
        return with_pandas(table)
    if form == "webdataset":
        return [note for path in out.glob("*.tar") for note in notes_in(path)]
    if form == "csv":
        return with_csv(out / "labels.csv")
    if form == "coco":
        [path] = (out / "annotations").iterdir()
        return [image["metadata"] for image in as_floats(path.read_text())["images"]]
    if form == "labelstudio":
        return [task["data"] for task in as_floats((out / "tasks.json").read_text())]
    return as_floats((out / "samples.json").read_text())["samples"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_loses_no_digit_of_a_seed_and_is_valid_json(run, tmp_path, form):
    out = tmp_path / (f"out.{form}" if form in ("parquet", "arrow") else form)
    export(run, form, out)
    assert seeds_in(rows_of(form, out)) == TEXT


@pytest.mark.parametrize("form", ["json", "csv", "parquet", "arrow"])
def test_a_query_loses_no_digit_of_a_seed(run, tmp_path, form):
    out = tmp_path / f"rows.{form}"
    words = ["query", run.uri, "--columns", "id,source,seed", "--output", str(out)]
    assert CliRunner().invoke(main, words).exit_code == 0
    if form == "json":
        rows = as_floats(out.read_text())
    else:
        rows = with_csv(out) if form == "csv" else with_pandas(out)
    assert seeds_in(rows) == TEXT


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_reads_the_seeds_of_a_query(run):
    text = CliRunner().invoke(main, ["query", run.uri, "--format", "json"]).stdout
    program = "console.log(JSON.parse(require('fs').readFileSync(0)).map(row => String(row.seed)).join())"
    done = subprocess.run(["node", "-e", program], input=text, capture_output=True, text=True, check=True)
    assert set(done.stdout.strip().split(",")) == {"null", *TEXT.values()}


def test_hugging_face_datasets_have_seeds_as_text(run):
    pytest.importorskip("datasets")
    found = run.to_hf(columns=["id", "source", "seed"]).remove_columns("image")
    assert seeds_in(found.to_pandas().to_dict("records")) == TEXT


def test_lineage_as_json_has_the_seed_as_text(run):
    [slot, _] = SLOTS
    told = run.lineage(f"{slot}-1").as_dict()
    assert as_floats(json.dumps(told | {"generated_at": None}))["seed"] == TEXT[f"{slot}-1"]
    assert told["scores"] == {"class": 0.75, "lighting": None, "burn_level": None}


def test_in_memory_a_seed_is_the_number_it_is(run):
    assert set(run.to_table(["seed"])["seed"].to_pylist()) == {None, *SEEDS.values()}


def test_no_column_of_a_manifest_leaves_as_a_number_that_a_float_cannot_hold(run):
    kinds = {str(field.type) for field in exact(run.to_table()).schema}
    assert "uint64" not in kinds


def test_a_number_that_is_none_is_an_empty_field_of_a_csv_file(run, tmp_path):
    out = tmp_path / "rows.csv"
    CliRunner().invoke(main, ["query", run.uri, "--output", str(out)])
    told = {row["id"]: row["scores.lighting"] for row in with_csv(out)}
    assert set(told.values()) == {"", "0.875"}
