"""JSON of somebody else is parsed within limits, by one function."""

from __future__ import annotations

import json
import re

import pytest

from balancer.config.schema import MAX_CELLS
from balancer.text import json_reading
from balancer.text.json_reading import InvalidJSONError, count_values, read_json


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True, "x"]}, [], "é 🍕", {}, {"a": "\\ud800"}, 10**4000], ids=str
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_read_as_it_was_written(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert read_json(text) == read_json(text.encode()) == read_json(b"\xef\xbb\xbf" + text.encode()) == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON: Expecting value"),
        (b"{} x", "not JSON: Extra data"),
        (b'{"a": "' + b"x" * 10, "not JSON: Unterminated"),
        (b"9" * 5000, "not JSON: Exceeds the limit"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (rb'"\ud800"', "not valid Unicode"),
        (rb'{"a": [{"b\uDC80": 1}]}', "not valid Unicode"),
        (rb'"\udc00\ud800"', "not valid Unicode"),
        (b'"\xed\xa0\x80"', "not valid Unicode"),
        (b'"\xff"', "not valid Unicode"),
        ('"\ud800"', "not valid Unicode"),
        ('{"a": 1}'.encode("utf-16"), "not valid Unicode"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_what_is_not_json_in_unicode_is_refused(data, problem):
    with pytest.raises(InvalidJSONError, match=problem):
        read_json(data)


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0,", b'{"":[]},'])
def test_values_are_counted_before_they_take_memory(part, monkeypatch):
    monkeypatch.setattr(json_reading, "MOST_VALUES", 1000)
    parsed = []
    monkeypatch.setattr("json.loads", lambda *arguments, **options: parsed.append(arguments))
    data = b"[" + part * 1001 + b"0]"
    for form in (data, data.decode()):
        with pytest.raises(InvalidJSONError, match="more than 1,000 values"):
            read_json(form)
    assert parsed == []


def test_the_largest_plan_is_within_the_limit():
    names = ["class", *(f"facet {number}" for number in range(30)), "cell", "quota", "priority"]
    cell = json.dumps(dict.fromkeys(names, "x"))
    assert MAX_CELLS * (count_values(cell) + 1) < 0.75 * json_reading.MOST_VALUES


ROUND_TRIPS = {
    "actors/models/adaptation/lora.py": 1,  # what safetensors just wrote
    "actors/weights/chat_template.py": 1,  # in the child, from its parent
    "balancer/dataset/decoding/child.py": 1,  # likewise
    "balancer/dataset/decoding/members.py": 1,  # likewise
    "balancer/dataset/readers/annotation_files.py": 1,  # COCO files, in the child, with its limits
    "balancer/export/folder.py": 1,  # what was just written
    "balancer/text/json_reading.py": 1,
}


def test_every_other_door_reads_through_this_function(project):
    found = {
        str(path.relative_to(project)): len(calls)
        for folder in ("actors", "balancer")
        for path in (project / folder).rglob("*.py")
        if (calls := re.findall(r"\bjson\.loads?\(", path.read_text()))
    }
    assert found == ROUND_TRIPS
