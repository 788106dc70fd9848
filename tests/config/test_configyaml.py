from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.yaml_reading import KeyPath, read_document
from balancer.config.yaml_writing import MAX_COLUMNS, check_free, create_file, yaml_text
from balancer.errors import StorageError, UsageError
from balancer.text.names import composed

NAMES = st.text(max_size=100)
KEYS = NAMES.map(composed)
SCALARS = (
    NAMES
    | st.booleans()
    | st.none()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def read(text: str) -> object:
    document = read_document(text, lambda line: f"line {line}")
    assert document is not None
    assert document.problems == []
    return document.value


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_whatever_is_written_reads_back_the_same(value: dict[str, object]):
    assert read(yaml_text(value)) == value


@given(st.dictionaries(KEYS, NAMES, min_size=1, max_size=5))
def test_tools_that_read_yaml_1_1_find_the_same_texts(value: dict[str, str]):
    assert yaml.safe_load(yaml_text(value)) == value


@given(st.text(), st.text(), st.text())
def test_no_comment_changes_what_is_read(heading: str, above: str, beside: str):
    value = {"a": {"b": "c"}, "d": ["e"]}
    places: list[KeyPath] = [("a",), ("a", "b"), ("d",)]
    text = yaml_text(
        value, heading=heading, above=dict.fromkeys(places, above), beside=dict.fromkeys(places, beside)
    )
    assert read(text) == value


@pytest.mark.parametrize(
    "text", ["basic", "a photo of a pizza, half (burnt)", "Crème brûlée", "hf-hub:a/b", "日本"]
)
def test_plain_words_need_no_quotes(text: str):
    assert yaml_text({text: text}) == f"{text}: {text}\n"


@pytest.mark.parametrize(
    "text",
    [
        "yes", "No", "on", "y", "null", "~", "true", "12", "007", "1e5", ".inf", "0x1f", "2026-01-01",
        "-", "- a", "--- a", "? a", "a: b", "a:", "a #b", "#a", "", "'a", '"', "*a", "&a", "!a", "%a", "@a",
        "`a", "{a", "[a", "|", ">", "=", "<<",
    ],
)  # fmt: skip
def test_what_would_read_as_something_else_is_quoted(text: str):
    assert yaml_text({"key": text}).startswith('key: "')


def test_sections_stand_apart_with_their_comments():
    text = yaml_text(
        {"a": 1, "b": 2, "c": {"d": ["u", "v"], "e": {}}, "f": None},
        heading="one\n\n  two",
        above={("c",): "about c", ("c", "d"): "about d"},
        beside={("a",): "about a"},
    )
    assert text == (
        """\
# one
#
#   two

a: 1 # about a
b: 2

# about c
c:
  # about d
  d:
    - u
    - v
  e: {}

f: null
"""
    )


def test_long_comments_are_wrapped_below_where_they_begin():
    text = yaml_text({"a": 1}, heading=f"  key: {'word ' * 60}")
    lines = text.split("\n\n")[0].splitlines()
    assert len(lines) > 2
    assert {line[:7] for line in lines} == {"#   key", "#     w"}
    assert max(map(len, lines)) <= MAX_COLUMNS


# Files


def test_a_file_is_written_whole_into_a_folder_that_is_made(tmp_path: Path):
    create_file(tmp_path / "a/b.yaml", "é: 1\n")
    assert (tmp_path / "a/b.yaml").read_text(encoding="utf-8") == "é: 1\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.yaml"]


def test_a_relative_path_is_one_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    create_file("b.yaml", "a: 1\n")
    assert (tmp_path / "b.yaml").exists()


def test_no_file_is_written_over_another(tmp_path: Path):
    path = tmp_path / "b.yaml"
    path.write_text("mine")
    for refuse in (check_free, lambda path: create_file(path, "other")):
        with pytest.raises(UsageError, match=r"b\.yaml already exists"):
            refuse(path)
    assert path.read_text() == "mine"


def test_a_link_that_leads_nowhere_is_there_already(tmp_path: Path):
    (tmp_path / "b.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="already exists"):
        create_file(tmp_path / "b.yaml", "")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        create_file(tmp_path / "file/b.yaml", "")
