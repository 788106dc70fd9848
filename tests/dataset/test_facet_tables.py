"""Tables of facet values that strangers wrote: what is too much, or no table at all, costs one line."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balancer.dataset import table_reader
from balancer.dataset.decoding import decoders
from balancer.dataset.facet_table import Table, find_facet_columns, read_table, read_tables
from balancer.dataset.table_reader import MAX_COLUMNS, MAX_LINE_CHARS, MAX_ROWS
from balancer.errors import DatasetError

pytestmark = pytest.mark.decoders

Write = Callable[[Path], None]

SECRET = "hush:$6$hash,hush:it"


def only_table(root: Path) -> Table:
    table = read_table(root)
    assert table is not None
    return table


def text(content: str) -> Write:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20_000_000_000)


def parquet(rows: int, value: str = "dim", columns: int = 1) -> Write:
    def write(path: Path) -> None:
        def repeated(values: str) -> pa.Array:
            indices = pa.array([0], pa.int32()).take(pa.nulls(1_000_000, pa.int32()).fill_null(0))
            return pa.DictionaryArray.from_arrays(indices, [values])

        names = ["file_name", *(f"facet_{number}" for number in range(columns))]
        table = pa.table({name: repeated("a/1.png" if name == "file_name" else value) for name in names})
        with pq.ParquetWriter(path, table.schema) as writer:
            for _ in range(rows // 1_000_000):
                writer.write_table(table)

    return write


CSV, JSONL, PARQUET = "metadata.csv", "metadata.jsonl", "metadata.parquet"
LARGE = "20,000.0 megabytes, over the limit of 500"
MANY_KEYS = json.dumps({str(number): 1 for number in range(MAX_COLUMNS + 1)})
OWN_KEYS = "\n".join(json.dumps({"file_name": f"a/{row}.png", f"key_{row}": 1}) for row in range(10_000))

TOO_MUCH: dict[str, tuple[str, Write, str]] = {
    "a pipe": (CSV, os.mkfifo, "not a regular file"),
    "a device": (CSV, lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
    "a sparse file": (CSV, sparse, LARGE),
    "sparse lines": (JSONL, sparse, LARGE),
    "a sparse parquet": (PARQUET, sparse, LARGE),
    "equal rows": (PARQUET, parquet(10 * MAX_ROWS), "20,000,000 rows, over the limit of 2,000,000"),
    "long values": (PARQUET, parquet(MAX_ROWS, "x" * 1_000_000), "more memory than the limit for tables"),
    "repeated values": (PARQUET, parquet(MAX_ROWS, "x" * 20_000), "more than 1.0 GB of text"),
    "a line": (CSV, text("file_name," + "x" * MAX_LINE_CHARS), "line 1 has more than 1,000,000 char"),
    "one object": (JSONL, text('{"a": "' + "x" * MAX_LINE_CHARS), "line 1 has more than 1,000,000 char"),
    "columns": (CSV, text("," * MAX_COLUMNS + "\n"), "row 1 has 1,001 columns, over the limit of 1,000"),
    "keys of all rows": (JSONL, text(OWN_KEYS), "have 1,001 columns in all, over the limit of 1,000"),
    "blank lines": (CSV, text("file_name\n" + "\n" * 100_000_000), "more than 2,000,000 rows"),
    "blank lines of JSON": (JSONL, text("\n" * 100_000_000), "more than 2,000,000 rows, blank ones included"),
    "keys": (JSONL, text(MANY_KEYS), "row 1 has 1,001 columns, over the limit of 1,000"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_table_that_is_too_much_is_refused_with_the_number_and_the_limit(tmp_path, what):
    name, write, problem = TOO_MUCH[what]
    write(tmp_path / name)
    began = time.monotonic()
    with pytest.raises(DatasetError, match=rf"{name}: the file .*({problem})") as caught:
        read_table(tmp_path, None)
    assert len(caught.value.message) < 500
    assert time.monotonic() - began < 500


@pytest.mark.parametrize("named", [None, "metadata.csv"])
def test_a_table_that_is_a_link_is_not_followed_and_nothing_of_what_it_leads_to_is_told(tmp_path, named):
    (tmp_path / "secret").write_text(SECRET)
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "metadata.csv").symlink_to("../secret")
    with pytest.raises(DatasetError, match="a symbolic link, which is not followed") as caught:
        read_table(dataset, named)
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("name,light", "the columns are name, light"),
        ("a\x1b]0;x\x07b,c\u202ed", "the columns are a?]0;x?b, c?d"),
        ("名\u3000前,نمی\u200cشود", "the columns are 名\u3000前, نمی\u200cشود"),
        (",".join("abcdefghijklm"), "the columns are a, b, c, d, e, f, g, h, i, j, …"),
        ("x" * 200, f"the columns are {'x' * 40}"),
    ],
)
def test_of_a_table_without_file_names_a_few_short_names_of_columns_are_told(tmp_path, header, told):
    (tmp_path / "metadata.csv").write_text(f"{header}\nsecret,secret\n")
    with pytest.raises(DatasetError) as caught:
        read_table(tmp_path, None)
    assert caught.value.message.endswith(f"has no column `file_name`; {told}")


def test_names_that_take_long_to_compose_cost_nothing_outside_the_reader(tmp_path):
    marks = "".join(char for char in map(chr, range(0x300, 0x34F)) if unicodedata.combining(char))
    names = ["a" + marks[::-1] * 5_000, "a/1.png"]
    rows = [json.dumps({"file_name": name, "light": "dim"}, ensure_ascii=False) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert only_table(tmp_path).rows["a/1.png"] == {"file_name": "a/1.png", "light": "dim"}


def test_blank_lines_say_nothing(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,light\n\n\na/1.png,dim\n\n")
    assert only_table(tmp_path).rows == {"a/1.png": {"file_name": "a/1.png", "light": "dim"}}


def test_the_tables_of_all_folders_share_the_limit_of_columns(tmp_path):
    names = []
    for folder in range(3):
        (tmp_path / str(folder)).mkdir()
        names.append(f"{folder}/metadata.csv")
        header = ",".join(f"column_{folder}_{number}" for number in range(MAX_COLUMNS // 2))
        (tmp_path / names[-1]).write_text(f"file_name,{header}\n1.png\n")
    assert read_tables(tmp_path, None, names[:1])
    with pytest.raises(DatasetError, match=r"metadata.csv: .* more than 1,000 columns, the limit"):
        read_tables(tmp_path, None, names)


def test_a_large_table_is_read(tmp_path):
    with (tmp_path / "metadata.csv").open("w") as file:
        file.write("file_name,light\n")
        file.writelines(f"a/{number}.png,{('dim', 'harsh')[number % 2]}\n" for number in range(100_000))
    rows = only_table(tmp_path).rows
    assert (len(rows), find_facet_columns(rows.values())) == (100_000, ("light",))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import ctypes; ctypes.string_at(0)", "its reader crashed"),
        ("import os; os._exit(0)", "its reader ended unexpectedly"),
        ("import os; os._exit(7)", "its reader crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "reading it takes more than 60 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "most likely for lack of memory"),
        ("print([1, 2, 3])", "an invalid answer"),
        ("print(['a', {'b': 1}])", "cannot be read"),
        ('print(\'["a", {"b": 1}]\')', "an invalid answer"),
        ("print('[' * 100_000)", "cannot be read"),
        ("print('x' * 20_000_000)", "an invalid answer"),
        ("import time; time.sleep(1000)", "took more than 2 s"),
    ],
)
def test_a_reader_that_was_taken_over_costs_the_table_and_nothing_else(tmp_path, monkeypatch, body, problem):
    (tmp_path / "metadata.csv").write_text("file_name,light\na/1.png,dim\n")
    original = decoders.spawn
    monkeypatch.setattr(decoders, "MAX_WAIT_S", 2.0 if "sleep" in body else 60.0)
    monkeypatch.setattr(decoders, "spawn", lambda call: original(f"os\n{body}"))
    with pytest.raises(DatasetError, match=problem):
        read_table(tmp_path, None)


def test_rows_of_another_length_than_the_header_are_told(tmp_path):
    (tmp_path / CSV).write_text("file_name,light\na/0.png,dim\na/1.png\na/2.png,dim,more\na/3.png,,\n\n")
    table = only_table(tmp_path)
    [remark], [warning] = table.remarks, table.warnings
    assert (
        "1 row with fewer fields than the header's 2, first in line 3: missing fields count as empty"
        in remark
    )
    assert (
        "2 rows with more fields than the header's 2, first in line 4: fields without a header are" in warning
    )


@pytest.mark.parametrize("name", [CSV, JSONL])
def test_a_table_in_another_encoding_is_told_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"file_name\na/\xe9.png\n")
    with pytest.raises(DatasetError, match="is not UTF-8: a byte is 0xe9; save the table as UTF-8"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        (CSV, text("file_name,a,b\n" + "x,,\n" * 40)),
        (JSONL, text('{"file_name": "x", "a": null, "b": []}\n' * 40)),
        (
            PARQUET,
            lambda path: pq.write_table(pa.table({name: ["x"] * 40 for name in ("file_name", "a")}), path),
        ),
    ],
)
def test_rows_and_columns_within_their_limits_have_a_limit_together(tmp_path, monkeypatch, name, write):
    write(tmp_path / name)
    monkeypatch.setattr(table_reader, "MAX_CELLS", 40 - 1)
    [*_, last] = table_reader.read_table_answer(tmp_path / name)
    assert "39" in json.loads(last)["reason"]
    assert "values" in json.loads(last)["reason"]
    monkeypatch.setattr(table_reader, "MAX_CELLS", 40 * 3)
    [*_, last] = table_reader.read_table_answer(tmp_path / name)
    assert "values" not in str(json.loads(last))
