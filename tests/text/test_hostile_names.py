"""Names of classes, facets and values, whatever they are, mean themselves everywhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from balancer import open_manifest
from balancer.cells import Candidate, Cell, Slot
from balancer.cli import main
from balancer.config.schema import INTERNAL_PREFIX, RESERVED_FACET_NAMES, Config
from balancer.errors import UsageError
from balancer.export import FORMATS, Options, export
from balancer.manifest import ManifestLog, create_run
from balancer.manifest.query.sql_text import quoted
from balancer.manifest.snapshot.build import _sorted, compact
from balancer.manifest.snapshot.superseded import PLACE
from balancer.run_manifest import Manifest, manifest_in
from balancer.storage import Storage, open_storage
from balancer.text.names import composed
from balancer.training.sampling import sample_weights
from tests.manifest_samples import DIM, NOON, MemoryStorage, run_info

NFD = unicodedata.normalize("NFD", "é")
WORDS = ("order", "user", "select", "table", "from", "index", "group", "primary", "null", "rowid")
OURS = ("count", "key 0", "image", "label", "label_", "score_x", "scores.class", "manifest", "key")
THEIRS = ("pk", "objects", "_id", "tags", "filepath", "metadata", "train")
ODD = (
    ".dot", "a.b", "a.", "[0]", "a[0]", "$.x", 'size "x"', '"', "it's", "a,b", "a=b", "a: b", "(x)", "%s",
    "{x}", "\\", "*", "?", "-", "a b", "x;--", "🍕", "שלום", "\u202eabc", "डोसा", "é", "x" * 100, "1st",
    "FieldPath(0)", "con", "<b>&amp;", "]]>", "`rm`", "a\u2028b",
)  # fmt: skip
FACETS = (*WORDS, *OURS, *THEIRS, *ODD)


@pytest.fixture(scope="module", autouse=True)
def _many_facets() -> Iterator[None]:
    """One run has all the names at once; nothing here plans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.config.schema.MAX_FACETS_OF_CLASS", 1000)
        patch.setattr("balancer.config.schema.MAX_CELLS", 10**100)
        yield


def named(facets: list[str], classes: list[str], values: list[str]) -> Config:
    return Config.model_validate(
        {
            "classes": {name: {"prompts": ["a"]} for name in classes},
            "facets": {name: {"values": {value: {"prompts": ["a"]} for value in values}} for name in facets},
            "target": {"per_class": 4},
            "output": {"rejected_per_reason": 0},
        }
    )


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def accepted(config: Config, number: int) -> dict[str, Any]:
    """Classes and values in turn: the second class has the second value of every facet."""
    class_name = list(config.classes)[number % 2]
    facets = {name: list(of.values)[number % 2] for name, of in config.facets.items()}
    candidate = Candidate(Slot(Cell(class_name, tuple(facets.items())), number // 2), 1)
    data = image(number)
    return {
        "id": candidate.id,
        "file_name": f"images/{number:04d}.png",
        "class": class_name,
        **facets,
        "cell": candidate.slot.cell.key,
        "slot": candidate.slot.key,
        "attempt": 1,
        "source": "synthetic",
        "status": "accepted",
        "score": 0.75,
        "scores": dict.fromkeys(("class", *facets), 0.75),
        "brightness": 0.5,
        "deviation": 0.1,
        "nonfinite": 0,
        "threshold": 0.6,
        "seed": number,
        "width": 8,
        "height": 8,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "embedding": b"\0" * (2 * DIM),
        "generated_at": NOON,
        "split": "train",
        "run_id": "run-1",
    }


def run_of(config: Config, storage: Storage, compacted: bool = False) -> Manifest:
    """Four rows, of which the first two may be compacted."""
    rows = [accepted(config, number) for number in range(4)]
    plan = [
        {name: row[name] for name in ("class", *config.facets, "cell")} | {"quota": 2, "priority": "high"}
        for row in rows[:2]
    ]
    nothing = dict.fromkeys(config.classes, 0)
    info = create_run(
        storage,
        run_info(
            config=config.model_dump(mode="json"),
            facets=list(config.facets),
            plan=plan,
            real_counts=nothing,
            targets=dict.fromkeys(config.classes, 2),
        ),
    )
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=lambda: NOON)
    for number, row in enumerate(rows):
        storage.publish(row["file_name"], image(number))
    log.commit(rows[:2])
    if compacted:
        compact(storage)
    log.commit(rows[2:])
    log.close("complete")
    return manifest_in(storage)


def check_queries(manifest: Manifest, facet: str, values: list[str]) -> None:
    """Two rows of each value, however they are asked for."""
    condition = f"{quoted(facet)} = '{values[0].replace(chr(39), chr(39) * 2)}'"
    assert manifest.to_table([facet], condition).to_pylist() == [{facet: values[0]}] * 2
    assert manifest.to_table([facet], pc.field(facet) == values[0]).to_pylist() == [{facet: values[0]}] * 2
    for by in ([facet], ["class", facet]):
        for filter in (None, "true"):
            counts = manifest.count_by(*by, filter=filter)
            assert counts.column_names[:-1] == by
            assert counts[facet].to_pylist() == sorted(values) or len(by) == 2
            assert counts.column(len(by)).to_pylist() == [2, 2]
        assert manifest.count_by(*by, filter=condition).column(len(by)).to_pylist() == [2]
    found = manifest.sql(
        f"SELECT {quoted(facet)} AS x, count(*) AS n FROM manifest WHERE {condition} GROUP BY 1"
    )
    assert found.to_pylist() == [{"x": values[0], "n": 2}]
    dataset = manifest.dataset([facet])
    assert sorted(dataset.to_table()[facet].to_pylist()) == sorted(values * 2)
    assert dataset.filter(pc.field(facet) == values[0]).count_rows() == 2
    assert (
        sample_weights(manifest.to_table([facet, "source"]), [facet], real_weight=1.0).tolist() == [0.25] * 4
    )


@pytest.fixture(scope="module", params=[False, True], ids=["log", "compacted"])
def odd_manifest(request: pytest.FixtureRequest) -> Manifest:
    return run_of(named([*FACETS], ["a", "b"], ["u", "v"]), MemoryStorage(), request.param)


@pytest.mark.parametrize("facet", FACETS)
def test_a_facet_of_any_name_is_queried_as_any_other(odd_manifest: Manifest, facet: str):
    check_queries(odd_manifest, facet, ["u", "v"])


@pytest.mark.parametrize("facet", FACETS)
def test_compacted_rows_are_sorted_by_a_facet_of_any_name(facet: str):
    rows = _sorted(pa.table({facet: ["v", "u", "u"], PLACE: [0, 1, 2]}), [facet])
    assert rows.to_pydict() == {facet: ["u", "u", "v"], PLACE: [1, 2, 0]}


def test_long_values_of_any_script_are_found():
    for length in range(20, 44):
        manifest = run_of(named(["x"], ["a", "b"], ["🍕" * length, "v"]), MemoryStorage())
        assert manifest.to_table(["x"], "x <> 'v'").num_rows == 2


NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/", min_codepoint=32),
    min_size=1,
    max_size=100,
).filter(lambda name: name == composed(name))
FACET = NAME.filter(
    lambda name: name.lower() not in RESERVED_FACET_NAMES and not name.startswith(INTERNAL_PREFIX)
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(FACET | st.sampled_from(FACETS), min_size=1, max_size=3, unique_by=str.lower),
    st.lists(NAME | st.sampled_from(ODD), min_size=2, max_size=2, unique=True),
    st.lists(NAME | st.sampled_from(ODD), min_size=2, max_size=2, unique=True),
    st.booleans(),
)
def test_any_names_are_committed_compacted_and_queried(facets, classes, values, compacted):
    manifest = run_of(named(facets, classes, values), MemoryStorage(), compacted)
    for facet in facets:
        check_queries(manifest, facet, values)
    assert manifest.to_table(["class"])["class"].to_pylist() == classes * 2


# Names that look alike, or that SQL knows


def test_a_condition_finds_a_name_that_is_composed_otherwise():
    manifest = run_of(named(["é"], ["crème", "b"], ["ü", "v"]), MemoryStorage())
    facet, class_name, value = (unicodedata.normalize("NFD", name) for name in ("é", "crème", "ü"))
    condition = f"class = '{class_name}' and \"{facet}\" = '{value}' and {facet} = 'ü'"
    assert manifest.to_table(["id"], condition).num_rows == 2
    assert manifest.count_by(facet).to_pylist() == [{"é": "v", "count": 2}, {"é": "ü", "count": 2}]


def test_a_condition_keeps_what_is_no_name_of_the_run():
    manifest = run_of(named(["x"], ["é", "b"], ["u", "v"]), MemoryStorage())
    query = f"SELECT '{NFD}.png' AS file, '{NFD}' AS name, 'it''s {NFD}' AS words FROM manifest LIMIT 1"
    assert manifest.sql(query).to_pylist() == [{"file": f"{NFD}.png", "name": "é", "words": f"it's {NFD}"}]


@pytest.mark.parametrize("facet", ["order", "select", "group", "a.b", "1st", "a-b"])
def test_a_condition_that_needs_quotes_is_told_so(facet: str):
    manifest = run_of(named([facet], ["a", "b"], ["u", "v"]), MemoryStorage())
    with pytest.raises(UsageError) as caught:
        manifest.to_table(["id"], f"{facet} = 'u'")
    assert caught.value.hint == f'this column goes in double quotes: "{facet}"'


def test_counts_have_a_column_of_their_own_beside_a_facet_called_count():
    manifest = run_of(named(["count"], ["a", "b"], ["u", "v"]), MemoryStorage())
    wanted = [{"count": "u", "count_": 2}, {"count": "v", "count_": 2}]
    assert manifest.count_by("count").to_pylist() == wanted
    assert manifest.count_by("count", filter="count = 'u'").to_pylist() == wanted[:1]


# A run in which every odd name is a facet: commands, exports, loaders

CLASSES = ['"it\'s" <b>', "डोसा"]
VALUES = ["🍕, .x", "=1+1"]


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "run"
    run_of(named([*FACETS], CLASSES, VALUES), open_storage(folder, create=True), compacted=True)
    return folder


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize("facet", FACETS)
def test_the_command_line_counts_by_a_facet_of_any_name(odd_run: Path, facet: str):
    in_list = '"' + facet.replace('"', '""') + '"'
    alone = json.loads(invoke("query", str(odd_run), "--count-by", facet, "--format", "json"))
    listed = json.loads(invoke("query", str(odd_run), "--count-by", f"class,{in_list}", "--format", "json"))
    assert sorted(row[facet] for row in alone) == sorted(row[facet] for row in listed) == sorted(VALUES)


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_rows_of_any_names_are_shown_in_every_form(odd_run: Path, form: str):
    shown = invoke("query", str(odd_run), "--format", form)
    if form == "json":
        assert all(row[facet] in VALUES for row in json.loads(shown) for facet in FACETS)
    if form == "csv":
        header, *rows = csv.reader(io.StringIO(shown))
        assert len(set(header)) == len(header) == len(rows[0])
        assert rows[0][header.index("pk")] == VALUES[0]


@pytest.mark.parametrize("command", ["status", "fsck", "gc", "compact", "report"])
def test_every_command_takes_a_run_of_any_names(odd_run: Path, command: str):
    invoke(command, str(odd_run))


def test_the_lineage_of_an_image_has_facets_of_any_name(odd_run: Path):
    manifest = open_manifest(odd_run)
    row_id = manifest.to_table(["id"])["id"][0].as_py()
    assert manifest.lineage(row_id).facets == dict.fromkeys(FACETS, VALUES[0])


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_of_any_names_is_whole(odd_run: Path, tmp_path: Path, form: str):
    out = tmp_path / ("out.parquet" if form == "parquet" else "out.arrow" if form == "arrow" else "out")
    embedded = Options(embed=True) if form in ("parquet", "arrow") else Options()
    assert export(open_manifest(odd_run), form, out, options=embedded).images == 4
    check = {"parquet": check_parquet, "fiftyone": check_fiftyone, "labelstudio": check_labelstudio}
    check |= {"webdataset": check_webdataset, "hf": check_hf}
    check.get(form, lambda at: None)(out)


def check_parquet(out: Path) -> None:
    names = pq.read_schema(out).names
    assert len({name.lower() for name in names}) == len(names)
    rows = pq.read_table(out).to_pylist()
    assert Image.open(io.BytesIO(rows[0]["image"]["bytes"])).size == (8, 8)
    assert rows[0]["image_"] == VALUES[0]


def check_fiftyone(out: Path) -> None:
    metadata = json.loads((out / "metadata.json").read_text())
    fields = [field["name"] for field in metadata["sample_fields"]]
    assert len({field.lower() for field in fields}) == len(fields)
    assert all(field.isidentifier() and not field.startswith("_") for field in fields)
    assert not {"pk", "objects"} & set(fields)
    labels = [field for field, classes in metadata["classes"].items() if classes == VALUES]
    assert len(labels) == len(FACETS)
    for sample in json.loads((out / "samples.json").read_text())["samples"]:
        assert all(sample[field]["label"] in VALUES for field in labels)


def check_labelstudio(out: Path) -> None:
    view = ET.parse(out / "label_config.xml").getroot()
    controls = [control.get("name") for control in view.iter("Choices")]
    assert len({*controls, "image"}) == len(FACETS) + 2
    tasks = json.loads((out / "tasks.json").read_text())
    assert {result["from_name"] for result in tasks[0]["predictions"][0]["result"]} == set(controls)
    assert tasks[0]["data"]["image"].startswith("/data/")


def check_webdataset(out: Path) -> None:
    stems = []
    for path in out.glob("train-*.tar"):
        with tarfile.open(path) as tar:
            stems += [name.partition(".")[0] for name in tar.getnames()]
    assert len(stems) == 12
    assert len(set(stems)) == 4


def check_hf(out: Path) -> None:
    names = pq.read_schema(out / "train" / "metadata.parquet").names
    assert len({name.lower() for name in names}) == len(names)


def test_torch_gets_facets_of_any_name(odd_run: Path):
    dataset = open_manifest(odd_run).to_torch(facets=FACETS)
    assert dataset[0][2] == dict.fromkeys(FACETS, 0)
    assert dataset.classes == tuple(CLASSES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face_gets_facets_of_any_name(odd_run: Path):
    datasets = pytest.importorskip("datasets")
    table = open_manifest(odd_run).to_hf()
    assert sum(isinstance(kind, datasets.ClassLabel) for kind in table.features.values()) == len(FACETS) + 1
    assert table[0]["image"].size == (8, 8)
    assert {table[0][name] for name in ("label", "image_", ".dot", "pk")} == {0}
