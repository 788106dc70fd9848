"""Rules of how the rows of metadata tables find their images, and their values the facets of a config."""

from __future__ import annotations

import io
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balancer.config.schema import Config
from balancer.dataset.audit import Audit, audit, audit_dataset, credited_facets, match_classes
from balancer.dataset.decoding import decoders
from balancer.dataset.decoding.image_info import DecodeLimits, ImageInfo
from balancer.dataset.decoding.watching import Count
from balancer.dataset.table_reader import read_table_answer
from balancer.errors import DatasetError
from balancer.manifest.formats import csv_text

FILES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
WEATHER = dict(zip(FILES, ("rain", "sun", "rain", "rain"), strict=True))


@pytest.fixture(autouse=True)
def _nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read here, not in a process of their own, and every image is a small one."""

    def read_all_images(
        root: Path, names: Sequence[str], limits: DecodeLimits, count: Count
    ) -> list[ImageInfo]:
        return [
            ImageInfo(8, 8, 1, f"{place:064x}", "0" * 16, f"{place:064x}", False)
            for place in range(len(names))
        ]

    def read_table_lines(paths: Iterable[Path]) -> Iterator[bytes]:
        for path in paths:
            yield from read_table_answer(path)

    monkeypatch.setattr(decoders, "read_all_images", read_all_images)
    monkeypatch.setattr(decoders, "read_table_lines", read_table_lines)


def dataset(tmp_path: Path, tables: Mapping[str, str | bytes], files: Iterable[str] = FILES) -> Path:
    root = tmp_path / "photos"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, content in tables.items():
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def config(
    root: Path, values: Iterable[str] = ("rain", "sun"), facet: str = "weather", **target: Any
) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": str(root)},
            "classes": {name: {"prompts": [name]} for name in ("cat", "dog")},
            "facets": {facet: {"values": {value: {"prompts": [value]} for value in values}}},
            "target": {"per_class": 5, **target},
        }
    )


def csv(rows: Mapping[str, str] = WEATHER, header: str = "file_name,weather") -> str:
    separator = header.removeprefix("file_name")[0]
    return "\n".join([header, *(f"{name}{separator}{value}" for name, value in rows.items())])


def weather(found: Audit) -> dict[str, str | None]:
    return {image.file_name: image.facets.get("weather") for image in found.images}


def renamed(change: str) -> dict[str, str]:
    return {change.format(*name.split("/")): value for name, value in WEATHER.items()}


# What is certain works, and is said

CERTAIN = {
    "a byte order mark and CRLF": (lambda root: "\ufeff" + csv().replace("\n", "\r\n"), ""),
    "backslashes": (lambda root: csv(renamed("{}\\{}")), "4 file names written with backslashes"),
    "absolute paths": (lambda root: csv(renamed(f"{root}/{{}}/{{}}")), "with the dataset's own path before"),
    "the dataset's folder": (lambda root: csv(renamed("photos/{}/{}")), "beginning with photos/"),
    "a moved dataset": (lambda root: csv(renamed("C:\\me\\photos\\{}\\{}")), "beginning with C:/me/photos/"),
    "case of file names": (lambda root: csv(renamed("{}/{}")).replace("cat/1", "Cat/1"), "1 file name"),
    "semicolons": (lambda root: csv(header="file_name;weather"), "separated by semicolons"),
    "tabs": (lambda root: csv(header="file_name\tweather"), "separated by tabs"),
    "case of the header": (lambda root: csv(header="file_name,Weather"), ""),
    "case of file_name": (lambda root: csv().replace("file_name", "File_Name"), ""),
    "spaces in the header": (lambda root: csv(header="file_name, weather "), ""),
    "spaces around values": (lambda root: csv({name: f" {value} " for name, value in WEATHER.items()}), ""),
}


@pytest.mark.parametrize("what", CERTAIN)
def test_a_match_that_is_certain_is_made_and_what_was_done_is_said(tmp_path, what):
    table, remark = CERTAIN[what]
    root = dataset(tmp_path, {})
    (root / "metadata.csv").write_text(table(root), newline="")
    found = audit_dataset(config(root))
    assert weather(found) == WEATHER
    assert (found.warnings, found.unknown_rows) == ((), ())
    assert remark in " ".join(found.remarks)
    assert bool(found.remarks) == bool(remark)


def test_a_table_in_a_class_folder_names_files_relative_to_that_folder(tmp_path):
    tables = {
        f"{name}/metadata.csv": csv({file[4:]: value for file, value in WEATHER.items() if file[:3] == name})
        for name in ("cat", "dog")
    }
    found = audit_dataset(config(dataset(tmp_path, tables)))
    assert weather(found) == WEATHER
    assert (found.tables, found.ignored_files) == (("cat/metadata.csv", "dog/metadata.csv"), 0)


def test_a_name_composed_otherwise_is_the_same_name_everywhere(tmp_path):
    apart, whole = (unicodedata.normalize(form, "crème") for form in ("NFD", "NFC"))
    files = [f"{apart}/1.png", f"{apart}/{apart}.png"]
    rows = {f"{whole}/1.png": f"{whole},{whole}", f"{apart}/{whole}.png": f"{apart},{apart}"}
    root = dataset(tmp_path, {"metadata.csv": csv(rows, f"file_name,class,{apart}")}, files)
    named = {"classes": {whole: {"prompts": ["x"]}}, "target": {"per_class": 5, "count_real_facets": "known"}}
    facets = {whole: {"values": {whole: {"prompts": ["x"]}}}}
    settings = Config.model_validate({"dataset": {"path": str(root)}, "facets": facets, **named})
    found = audit_dataset(settings)
    assert match_classes(found, settings) == {whole: 2}
    assert credited_facets(found, settings) == {whole: [{whole: whole}] * 2}
    assert {image.file_name for image in found.images} == set(files)
    assert (found.misfiled, found.warnings) == ((), ())


def test_folders_that_only_look_different_to_a_computer_are_one_class_and_that_is_said(tmp_path):
    found = audit(
        dataset(tmp_path, {}, [f"{unicodedata.normalize(form, 'é')}/1.png" for form in ("NFC", "NFD")])
    )
    assert found.counts == {"é": 2}
    assert "2 folders are named 'é'" in found.warnings[1]


# Values keep their meaning, whatever type they have


def jsonl(*values: object) -> bytes:
    rows = ({"file_name": name, "weather": value} for name, value in zip(FILES, values, strict=False))
    return "\n".join(map(json.dumps, rows)).encode()


def parquet(*values: object, kind: pa.DataType | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"file_name": FILES[: len(values)], "weather": pa.array(values, kind)}), sink)
    return sink.getvalue()


SECONDS = 1704164645
"""2024-01-02 03:04:05 UTC."""


@pytest.mark.parametrize(
    ("values", "content", "seen"),
    [
        (["true", "false"], jsonl(True, False), ["true", "false"]),
        (["True", "False"], jsonl(True, False), ["True", "False"]),
        (["true", "false"], parquet(True, None), ["true", None]),
        (["1", "2"], jsonl(1.0, 2), ["1", "2"]),
        (["1", "2"], parquet(1.0, None, 2.0), ["1", None, "2"]),
        (["1", "1.0"], jsonl("1.0", "1"), ["1.0", "1"]),
        (["0.1"], parquet(0.1, kind=pa.float32()), ["0.1"]),
        (["0.1"], jsonl("0.10", 0.1), ["0.1", "0.1"]),
        (["1"], jsonl("01"), ["01"]),
        (["none"], jsonl("none"), ["none"]),
        (["nan"], jsonl("nan", math.nan), ["nan", None]),
        (["2024-01-02"], parquet(date(2024, 1, 2), None), ["2024-01-02", None]),
        (["2024-01-02 03:04:05"], parquet(SECONDS * 10**9, kind=pa.timestamp("ns")), ["2024-01-02 03:04:05"]),
        (["2024-01-02"], parquet(1704153600 * 10**6, kind=pa.timestamp("us", "UTC")), ["2024-01-02"]),
        (["2.50", "100"], parquet(Decimal("2.50"), Decimal("100.00")), ["2.50", "100"]),
    ],
)
def test_a_value_is_that_of_the_config_which_means_the_same(tmp_path, values, content, seen):
    name = "metadata.parquet" if content.startswith(b"PAR1") else "metadata.jsonl"
    found = audit_dataset(config(dataset(tmp_path, {name: content}), values))
    assert list(weather(found).values())[: len(seen)] == seen


@pytest.mark.parametrize(
    "content",
    [
        jsonl(math.nan, None, "", " "),
        jsonl("NaN", "null", "NULL", "<NA>"),
        parquet(math.nan, None, math.nan, math.nan, kind=pa.float64()),
        csv(dict.fromkeys(FILES, "nan")).encode(),
        csv(dict.fromkeys(FILES, "")).encode(),
    ],
)
def test_a_value_that_says_missing_is_missing(tmp_path, content):
    kind = {b"P": "parquet", b"{": "jsonl"}.get(content[:1], "csv")
    found = audit_dataset(config(dataset(tmp_path, {f"metadata.{kind}": content})))
    assert (set(weather(found).values()), found.warnings) == ({None}, ())


def test_a_fault_in_json_lines_is_told_with_the_number_of_its_line(tmp_path):
    root = dataset(tmp_path, {"metadata.jsonl": '{"file_name": "cat/1.png"}\n\n\n{bad'})
    with pytest.raises(DatasetError, match="is damaged: line 4: Expecting property name"):
        audit(root)


# What matches nothing, or two things, is a warning

DOUBTFUL = {
    "names without folders": (
        csv({"1.png": "rain"}),
        "1 row, none of which names an image: there is no file 1.png",
    ),
    "some rows": (csv({**WEATHER, "cat/9.png": "sun"}), "1 of 5 rows names no image, such as cat/9.png"),
    "case of a value": (
        csv({name: value.title() for name, value in WEATHER.items()}),
        "not values of the facet weather: 'Rain' (3 images, did you mean 'rain'?); 'Sun' (1 image",
    ),
    "a slip in a header": (csv(header="file_name,wether"), "facet weather, did you mean 'wether'?"),
    "another header": (csv(header="file_name,x"), "no column for the facet weather; the columns are x"),
    "two columns of one name": (
        "file_name,weather, weather\n" + "\n".join(f"{name},{value},fog" for name, value in WEATHER.items()),
        "the columns 'weather' and ' weather' have one name; only the first is read",
    ),
    "one column twice": (
        "file_name,weather,weather\n" + "\n".join(f"{name},{value},fog" for name, value in WEATHER.items()),
        "the columns 'weather' and 'weather' have one name",
    ),
    "two rows of one file": (
        csv(WEATHER) + "\n./cat/1.png,sun",
        "rows of 1 file contradict each other, such as cat/1.png; the first row counts",
    ),
    "another folder": (
        csv(renamed("/mnt/{}/{}")),
        "4 file names beginning with /mnt/, taken for this",
    ),
    "several folders": (
        csv({f"/mnt/{place}/{name}": value for place, (name, value) in enumerate(WEATHER.items())}),
        "none of which names an image",
    ),
}


@pytest.mark.parametrize("what", DOUBTFUL)
def test_what_matches_nothing_or_is_in_doubt_is_a_warning(tmp_path, what):
    table, warning = DOUBTFUL[what]
    found = audit_dataset(config(dataset(tmp_path, {"metadata.csv": table})))
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("metadata.csv: ")
    assert warning in found.warnings[0]


def test_a_column_of_which_short_rows_have_no_cell_is_there_all_the_same(tmp_path):
    table = "file_name,weather\n" + "\n".join([*FILES, "cat/1.png,rain"])
    found = audit_dataset(config(dataset(tmp_path, {"metadata.csv": "file_name,x,weather\ncat/1.png,y\n"})))
    assert found.warnings == ()
    assert weather(audit_dataset(config(dataset(tmp_path, {"metadata.csv": table}))))["cat/2.png"] is None


@pytest.mark.parametrize("name", ["-1", "+1", "=1+1", "'-1", "''=x", "it's", "'quoted'"])
def test_the_csv_table_of_an_export_says_what_was_written(tmp_path, name):
    rows = {"file_name": ["cat/1.png"], "weather": [name], "source": ["real"], "run_id": ["x"]}
    table = csv_text(pa.table(rows))
    found = audit_dataset(config(dataset(tmp_path, {"metadata.csv": table}), [name]))
    assert weather(found)["cat/1.png"] == name
    assert found.warnings == ()


def test_what_an_export_says_besides_facets_is_not_said_to_hardly_repeat(tmp_path):
    table = "file_name,weather,source,run_id\n" + "".join(f"{name},sun,real,1\n" for name in FILES)
    assert audit(dataset(tmp_path, {"metadata.csv": table})).passed_over == ()


def test_columns_that_are_not_named_are_counted(tmp_path):
    table = "file_name,a,b,c,d,e,f\ncat/1.png,1,1,1,1,1,1\n"
    found = audit_dataset(config(dataset(tmp_path, {"metadata.csv": table})))
    assert found.warnings == (
        "metadata.csv: no column for the facet weather; the columns are a, b, c, d, e and 1 more",
    )


def test_rows_of_a_class_that_is_left_out_are_not_said_to_name_no_image(tmp_path):
    chosen = config(dataset(tmp_path, {"metadata.csv": csv(WEATHER)}))
    settings = chosen.dataset.model_copy(update={"exclude": ["dog"]})
    found = audit_dataset(chosen.model_copy(update={"dataset": settings}))
    assert (found.warnings, found.unknown_rows) == ((), ())


def test_the_folder_of_a_run_is_no_dataset(tmp_path):
    root = dataset(tmp_path, {"run.json": "{}"})
    (root / "manifest" / "log").mkdir(parents=True)
    with pytest.raises(DatasetError, match="this is the folder of a run"):
        audit(root)


def test_a_table_beside_another_one_is_not_read_and_that_is_said(tmp_path):
    tables = {"metadata.csv": csv(), "metadata.jsonl": "not read"}
    found = audit_dataset(config(dataset(tmp_path, tables)))
    assert found.warnings == ("metadata.jsonl is not read, because metadata.csv exists",)


@pytest.mark.parametrize(
    "what", ["names without folders", "case of a value", "a slip in a header", "another header"]
)
def test_a_plan_that_counts_facet_values_needs_some_that_match(tmp_path, what):
    table, warning = DOUBTFUL[what]
    counting = config(dataset(tmp_path, {"metadata.csv": table}), count_real_facets="known")
    with pytest.raises(DatasetError, match="no value in the metadata table is a value of weather") as caught:
        credited_facets(audit_dataset(counting), counting)
    assert warning in caught.value.message


def test_a_facet_without_a_column_is_only_a_warning_where_another_facet_is_known(tmp_path):
    counting = config(dataset(tmp_path, {"metadata.csv": csv()}), count_real_facets="known").model_dump()
    counting["facets"]["place"] = {"values": {"in": {"prompts": ["in"]}}}
    settings = Config.model_validate(counting)
    found = audit_dataset(settings)
    assert credited_facets(found, settings) == {
        "cat": [{"weather": "rain"}, {"weather": "sun"}],
        "dog": [{"weather": "rain"}, {"weather": "rain"}],
    }
    assert found.warnings == ("metadata.csv: no column for the facet place; the columns are weather",)


def test_counting_facet_values_without_any_table_is_a_warning(tmp_path):
    counting = config(dataset(tmp_path, {}), count_real_facets="known")
    assert "no metadata table" in audit_dataset(counting).warnings[0]
