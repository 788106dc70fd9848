from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from balancer.cli import main
from balancer.errors import UsageError
from balancer.manifest.formats import csv_text, exact
from balancer.manifest.rows import revoked
from balancer.run_manifest import Manifest, open_manifest
from balancer.storage import open_storage
from tests.fake_terminal import use_terminal
from tests.manifest_samples import real, rejected, row, start, void

DIM, SEVERE = "basic/dim/0000", "burnt/dim/severe/0000"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real images, three accepted ones, two rejected."""
    folder = tmp_path_factory.mktemp("run")
    log = start(open_storage(folder, create=True))
    log.commit([real("a.png"), real("b.png", "burnt"), rejected(DIM), row(DIM, 2, score=0.9)])
    log.commit([row(SEVERE, prompt='=cmd("x"), burnt'), rejected("burnt/dim/severe/0001", score=math.nan)])
    log.commit([row("basic/dim/0001", score=0.65)])
    return folder


@pytest.fixture(scope="module")
def manifest(run: Path) -> Manifest:
    return open_manifest(run)


def query(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["query", str(run), *arguments])


def ids(table: pa.Table) -> list[str]:
    found: list[str] = table["id"].to_pylist()
    return found


# ---- from Python -----------------------------------------------------------------------------


def test_the_balanced_set_is_the_real_and_the_accepted_images(manifest):
    table = manifest.to_table()
    assert table["source"].to_pylist() == ["real", "real", "synthetic", "synthetic", "synthetic"]
    assert set(table["status"].to_pylist()) == {"accepted"}


def test_rejected_candidates_are_rows_for_those_who_ask(manifest):
    assert manifest.to_table(status="all").num_rows == 7
    assert ids(manifest.to_table(status="rejected")) == [f"{DIM}-1", "burnt/dim/severe/0001-1"]


def test_verdicts_that_changed_are_seen_as_they_are_now(tmp_path):
    log = start(open_storage(tmp_path, create=True))
    log.commit([row(DIM), row(SEVERE), rejected("burnt/dim/severe/0001")])
    log.commit_verdicts([revoked(row(DIM), "class"), void("burnt/dim/severe/0001")])
    changed = open_manifest(tmp_path)
    assert ids(changed.to_table()) == [f"{SEVERE}-1"]
    assert ids(changed.to_table(status="rejected", filter="reason = 'class'")) == [f"{DIM}-1"]
    assert ids(changed.to_table(status="void")) == ["burnt/dim/severe/0001-1"]
    assert changed.to_table(status="all").num_rows == 3


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("class = 'burnt'", ["real/b.png", f"{SEVERE}-1"]),
        ("class = 'burnt' and source = 'synthetic'", [f"{SEVERE}-1"]),
        ("score >= 0.7", [f"{DIM}-2", f"{SEVERE}-1"]),
        ("threshold = 0.6 and score < 0.7", ["basic/dim/0001-1"]),
        ("scores.lighting = 0.875 and class = 'burnt'", [f"{SEVERE}-1"]),
        ("burn_level is null and source <> 'real'", [f"{DIM}-2", "basic/dim/0001-1"]),
        ("seed = 18446744073709551614", [f"{DIM}-2"]),
        ("true", ["real/a.png", "real/b.png", f"{DIM}-2", f"{SEVERE}-1", "basic/dim/0001-1"]),
        ("false", []),
        (" ", ["real/a.png", "real/b.png", f"{DIM}-2", f"{SEVERE}-1", "basic/dim/0001-1"]),
    ],
)
def test_a_condition_selects_rows_in_the_order_of_their_commits(manifest, condition, found):
    assert ids(manifest.to_table(filter=condition)) == found


def test_a_condition_and_an_expression_select_the_same(manifest):
    by_sql = manifest.to_table(filter="class = 'burnt' and score > 0.5")
    by_expression = manifest.to_table(filter=(pc.field("class") == "burnt") & (pc.field("score") > 0.5))
    assert by_sql.equals(by_expression)


def test_a_condition_looks_at_columns_that_are_not_asked_for(manifest):
    table = manifest.to_table(columns=["file_name", "id"], filter="source = 'real'")
    assert table.column_names == ["file_name", "id"]
    assert manifest.to_table(["id"], filter=pc.field("source") == "real").num_rows == 2


def test_types_survive_a_condition(manifest):
    assert manifest.to_table(filter="true").schema.equals(manifest.schema, check_metadata=True)


def test_counts_are_sorted_and_include_what_has_no_value(manifest):
    counts = manifest.count_by("class", "burn_level").to_pylist()
    assert counts == [
        {"class": "basic", "burn_level": None, "count": 3},
        {"class": "burnt", "burn_level": "severe", "count": 1},
        {"class": "burnt", "burn_level": None, "count": 1},
    ]


def test_counts_obey_filter_and_status(manifest):
    assert manifest.count_by("class", filter="source = 'synthetic'").to_pylist() == [
        {"class": "basic", "count": 2},
        {"class": "burnt", "count": 1},
    ]
    assert manifest.count_by("reason", status="rejected").to_pylist() == [{"reason": "lighting", "count": 2}]
    assert manifest.count_by(filter="false").to_pylist() == [{"count": 0}]


@pytest.mark.parametrize("ask", ["to_table", "count_by", "sql"])
def test_a_status_that_does_not_exist_is_refused(manifest, ask):
    words = ["select 1"] if ask == "sql" else []
    with pytest.raises(UsageError, match="no status 'reject'"):
        getattr(manifest, ask)(*words, status="reject")


def test_sql_sees_a_table_named_manifest(manifest):
    found = manifest.sql("select class, count(*) as n from manifest group by class order by n, class")
    assert found.to_pylist() == [{"class": "burnt", "n": 2}, {"class": "basic", "n": 3}]
    sums = manifest.sql("select sum(list_sum(embedding)) as total from manifest")
    assert sums.to_pylist() == [{"total": 0.0}]


# ---- mistakes --------------------------------------------------------------------------------


def test_an_unknown_column_is_named_with_the_one_that_was_meant(manifest):
    asks: list[Callable[[], pa.Table]] = [
        lambda: manifest.to_table(filter="lightning = 'dim'"),
        lambda: manifest.to_table(columns=["lightning"]),
        lambda: manifest.count_by("lightning"),
    ]
    for ask in asks:
        with pytest.raises(UsageError, match="no column 'lightning', did you mean 'lighting'") as caught:
            ask()
        assert "burn_level" in caught.value.hint


def test_an_unknown_column_of_an_expression_is_named(manifest):
    with pytest.raises(UsageError, match="lightning") as caught:
        manifest.to_table(filter=pc.field("lightning") == "dim")
    assert "burn_level" in caught.value.hint


def test_text_in_double_quotes_is_explained(manifest):
    with pytest.raises(UsageError, match='no column "burnt"') as caught:
        manifest.to_table(filter='class = "burnt"')
    assert caught.value.hint == "text goes in single quotes: 'burnt'"


@pytest.mark.parametrize(
    "condition",
    ["class = ", "class = 'burnt", "1=1) union select (1", "true; drop view manifest", "select 1"],
)
def test_a_syntax_error_is_explained_with_an_example(manifest, condition):
    with pytest.raises(UsageError, match="is not valid SQL") as caught:
        manifest.to_table(filter=condition)
    assert caught.value.hint == "a condition looks like: class = 'burnt' and score >= 0.8"


@pytest.mark.parametrize(
    "condition", ["score > 'high'", "class", "nofunction(class) = 1", "count(*) > 1", "scores.colour > 1"]
)
def test_a_condition_that_makes_no_sense_is_a_usage_error(manifest, condition):
    with pytest.raises(UsageError, match="cannot be evaluated") as caught:
        manifest.to_table(filter=condition)
    assert "\n" not in caught.value.message


def test_counting_by_what_cannot_be_compared_is_a_usage_error(manifest):
    for column in ("scores", "embedding"):
        with pytest.raises(UsageError, match=f"cannot be counted by {column}"):
            manifest.count_by(column)


@pytest.mark.parametrize(
    "attack",
    [
        "id in (select content from read_text('{secret}'))",
        "id in (select column0 from read_csv('{secret}'))",
        "id in (select * from '{secret}')",
        "id in (select name from glob('/*'))",
        "id in (select * from secret_table)",
    ],
)
def test_a_condition_reaches_no_file_and_no_variable(manifest, tmp_path, attack):
    secret_table = pa.table({"x": ["secret"]})
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="cannot be evaluated"):
        manifest.to_table(filter=attack.format(secret=tmp_path / "secret.csv"))
    assert secret_table.num_rows == 1


@pytest.mark.parametrize(
    "statement",
    [
        "copy manifest to '{folder}/stolen.csv'",
        "attach '{folder}/stolen.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
    ],
)
def test_sql_changes_nothing_and_reaches_nothing(manifest, tmp_path, statement):
    with pytest.raises(UsageError):
        manifest.sql(statement.format(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---- from the command line -------------------------------------------------------------------


def test_a_table_shows_the_columns_one_looks_for(run):
    lines = query(run, "class = 'burnt'").stdout.splitlines()
    assert lines[0] == "2 rows, all of them with class burnt, lighting dim, status accepted"
    assert lines[1].split() == "id burn_level source score file_name".split()
    assert [line.split()[0] for line in lines[2:]] == ["real/b.png", f"{SEVERE}-1"]


def test_a_table_of_one_row_has_every_column(run):
    lines = query(run, f"id = '{SEVERE}-1'").stdout.splitlines()
    assert lines[0] == "1 row"
    assert lines[1].split() == "id class lighting burn_level source status reason score file_name".split()


def test_columns_that_were_asked_for_are_shown_even_if_all_rows_have_one_value(run):
    lines = query(run, "--columns", "status,class").stdout.splitlines()
    assert (lines[0], lines[1].split()) == ("5 rows", ["status", "class"])


@pytest.mark.parametrize("arguments", [(), ("--columns", "prompt,id,class")])
def test_a_narrow_terminal_cuts_no_id_and_keeps_a_row_on_one_line(run, monkeypatch, arguments):
    terminal = use_terminal(monkeypatch, columns=40)
    main.main(["query", str(run), *arguments], standalone_mode=False)
    for name in ids(open_manifest(run).to_table()):
        assert sum(name in line for line in terminal.getvalue().splitlines()) == 1
    assert "…" not in terminal.getvalue()


LISTS = ("--columns", "--count-by")


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet", "arrow"])
@pytest.mark.parametrize("option", LISTS)
@pytest.mark.parametrize("filter_", ["", "class = 'burnt'"])
def test_a_column_that_is_named_twice_is_there_once(run, option, filter_, form):
    def asked(columns: str) -> bytes:
        result = query(run, filter_, option, columns, "--format", form)
        assert result.exit_code == 0, result.output
        return result.stdout_bytes

    assert asked("source,class,source,class") == asked("source,class")


def test_values_that_are_counted_apart_look_apart(tmp_path):
    close = [0.99999991, 0.99999992, 0.5]
    log = start(open_storage(tmp_path, create=False))
    log.commit([row(f"basic/dim/{at:04d}", score=score) for at, score in enumerate(close)])
    lines = query(tmp_path, "--count-by", "score").stdout.splitlines()
    assert [float(line.split()[0]) for line in lines[2:]] == sorted(close)


def test_counts_as_json(run):
    found = json.loads(query(run, "--count-by", "class,source", "--format", "json").stdout)
    assert {"class": "basic", "source": "real", "count": 1} in found
    assert sum(line["count"] for line in found) == 5


def test_json_has_every_column_but_the_embedding(run):
    found = json.loads(query(run, "status = 'rejected'", "--all", "--format", "json").stdout)
    (first, second) = found
    assert first["generated_at"] == "2026-03-01T12:00:00+00:00"
    assert second["score"] is None  # NaN, which JSON lacks
    assert "embedding" not in first
    (shown,) = json.loads(query(run, "score = 0.9", "--columns", "id,embedding", "--format", "json").stdout)
    assert shown == {"id": f"{DIM}-2", "embedding": [0, 0, 0, 0]}


def test_csv_has_one_column_a_score_and_no_formula(run):
    rows = list(csv.DictReader(io.StringIO(query(run, "class = 'burnt'", "--format", "csv").stdout)))
    assert [line["id"] for line in rows] == ["real/b.png", f"{SEVERE}-1"]
    assert rows[1]["scores.lighting"] == "0.875"
    assert rows[1]["prompt"] == '\'=cmd("x"), burnt'
    assert rows[0]["score"] == ""


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_text_is_never_a_formula(tmp_path, first):
    start(open_storage(tmp_path, create=False)).commit([row(DIM, prompt=f"{first}1+1")])
    (line,) = csv.DictReader(io.StringIO(query(tmp_path, "--columns", "prompt", "--format", "csv").stdout))
    assert line["prompt"] == f"'{first.replace(chr(13), chr(92) + 'r')}1+1"


STEERING = "\x1b]0;x\x07 \x9b2J \u202e \u2066 \u200b \r \ufeff"


@pytest.mark.parametrize("place", ["pipe", "file"])
@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_no_text_of_a_row_steers_the_terminal_that_a_result_ends_up_on(tmp_path, form, place):
    start(open_storage(tmp_path / "run", create=True)).commit([row(DIM, prompt=f"a\n\t{STEERING}b")])
    file = tmp_path / f"rows.{form}"
    to_file = ["--output", str(file)] if place == "file" and form != "table" else []
    shown = query(tmp_path / "run", "--columns", "prompt", "--format", form, *to_file).stdout
    text = file.read_text() if to_file else shown
    assert "\\u202e" in text
    assert text.replace("\n", "").replace("\t", "").isprintable()


def test_csv_text_keeps_line_ends_and_tabs(tmp_path):
    start(open_storage(tmp_path, create=False)).commit([row(DIM, prompt="a\n\tb, é डोसा 🍕")])
    (line,) = csv.DictReader(io.StringIO(query(tmp_path, "--columns", "prompt", "--format", "csv").stdout))
    assert line["prompt"] == "a\n\tb, é डोसा 🍕"


@pytest.mark.parametrize("name", ["日本\u3000語", "نمی\u200cشود", "👩\u200d🍳"])
def test_csv_text_keeps_names_that_need_joiners_and_wide_spaces(name):
    (line,) = csv.DictReader(io.StringIO(csv_text(pa.table({"class": [name]}))))
    assert line["class"] == name


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_binary_formats_keep_values_and_embeddings(run, manifest, tmp_path, form):
    file = tmp_path / f"rows.{form}"
    result = query(run, "source = 'synthetic'", "--output", str(file))
    assert result.exit_code == 0, result.output
    found = pq.read_table(file) if form == "parquet" else pa.ipc.open_file(file).read_all()
    assert found.to_pylist() == exact(manifest.to_table(filter="source = 'synthetic'")).to_pylist()


def test_binary_formats_go_down_a_pipe(run):
    data = query(run, "--format", "arrow").stdout_bytes
    assert pa.ipc.open_file(pa.py_buffer(data)).read_all().num_rows == 5


def test_binary_formats_do_not_go_to_a_terminal(run, monkeypatch):
    monkeypatch.setattr("balancer.cli.console.is_terminal", lambda: True)
    result = query(run, "--format", "parquet")
    assert result.exit_code == 2
    assert "parquet is binary" in result.stderr
    assert result.stdout == ""


def test_a_terminal_gets_the_first_rows_and_a_note(run, monkeypatch):
    monkeypatch.setattr("balancer.cli.console.is_terminal", lambda: True)
    monkeypatch.setattr("balancer.cli.runs.query.TERMINAL_ROWS", 2)
    result = query(run)
    assert "the first 2 of 5 rows" in result.stderr
    assert len(result.stdout.splitlines()) == 4


def test_output_is_whole_or_not_there(run, tmp_path):
    (tmp_path / "rows.csv").write_text("before")
    query(run, "--output", str(tmp_path / "rows.csv"))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]
    assert (tmp_path / "rows.csv").read_text().count("\n") == 6


@pytest.mark.parametrize("name", ["run.json", "manifest/log/00000000000000000001.arrow", "images/new.json"])
def test_output_never_goes_into_a_run(run, name):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    result = CliRunner().invoke(main, ["query", str(run), "--output", str(run / name)])
    assert result.exit_code == 2
    assert "is inside the run folder" in result.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["class = "], "is not valid SQL"),
        (["lightning = 'x'"], "did you mean 'lighting'"),
        (["--columns", "nothing"], "no column 'nothing'"),
        (["--count-by", "class", "--columns", "id"], "cannot be combined"),
        (["--output", "rows.txt"], "a table cannot be written to rows.txt"),
        (["--format", "csv", "--output", "/no/such/folder/rows.csv"], "no folder /no/such/folder"),
        (["--format", "csv", "--output", "/dev/null"], "is not a file"),
        (["--format", "xml"], "xml"),
        *(([option, empty], f"{option} names no column") for option in LISTS for empty in ("", ",", ' "" ')),
        (
            ["--format", "csv", "--output", "rows.parquet"],
            "--format csv does not match the name rows.parquet",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, message):
    result = query(run, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[0]
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["query", "status", "fsck"])
def test_a_folder_that_is_no_run_is_a_usage_error(tmp_path, command):
    for folder, message in ((tmp_path, "is not a run folder"), (tmp_path / "no", "does not exist")):
        result = CliRunner().invoke(main, [command, str(folder)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr.splitlines()[0]


def test_a_condition_on_status_without_all_gets_a_note(run):
    assert "--all" in query(run, "status = 'rejected'").stderr


def test_a_reader_that_goes_away_is_no_error(run):
    command: list[Any] = [sys.executable, "-m", "balancer", "query", run, "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_process_that_has_read_rows_ends_well(tmp_path, project):
    """Threads of Arrow let go of what they read when they come to it, be it while the interpreter ends."""
    log = start(open_storage(tmp_path / "run", create=True))
    for number in range(12):
        log.commit([row(f"basic/dim/{12 * index + number:04d}") for index in range(12)])
    read = "import sys, balancer; balancer.open_manifest(sys.argv[1]).to_table(['id'], 'score >= 0')"
    command = [sys.executable, "-c", read, str(tmp_path / "run")]
    ended = [subprocess.run(command, cwd=project, capture_output=True, check=False) for _ in range(6)]
    assert {(one.returncode, one.stderr) for one in ended} == {(0, b"")}
