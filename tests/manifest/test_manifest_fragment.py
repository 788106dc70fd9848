from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ManifestError
from balancer.manifest.layout import fragment_path
from balancer.manifest.log.fragment import _MARKED, Fragment, Stamp, _digest, check_successor, decode, encode
from balancer.manifest.schema import rows_to_table
from tests.manifest_samples import NOON, row, run_info

SCHEMA = run_info().schema()
STAMP = Stamp(
    run_id="run-1",
    seq=3,
    epoch=2,
    writer="writer-b",
    commit="commit-1",
    prev_sha256="a" * 64,
    event="rows",
    committed_at=NOON,
    detail={},
)
DATA = encode(rows_to_table([row("basic/dim/0000"), row("basic/dim/0001")], SCHEMA), STAMP)


def stamped(**changes: Any) -> Stamp:
    return dataclasses.replace(STAMP, **changes)


def fragment(**changes: Any) -> Fragment:
    return Fragment(stamped(**changes), SCHEMA.empty_table(), "a" * 64)


def test_a_fragment_says_what_was_written():
    found = decode(DATA, 3, SCHEMA)
    assert found.stamp == STAMP
    assert found.table["id"].to_pylist() == ["basic/dim/0000-1", "basic/dim/0001-1"]


def test_the_same_stamp_and_rows_give_the_same_bytes():
    assert encode(decode(DATA, 3, SCHEMA).table, STAMP) == DATA


def test_a_closing_fragment_keeps_its_state_and_detail():
    closing = stamped(event="close", state="short", detail={"cells": ["日本", '"', "balancer-sha256:"]})
    assert decode(encode(SCHEMA.empty_table(), closing), 3, SCHEMA).stamp == closing


@given(st.text(max_size=200))
def test_rows_may_hold_any_text(prompt):
    alike = f"balancer-sha256:{'0' * 64}"
    rows = [row("basic/dim/0000", prompt=prompt), row("basic/dim/0001", prompt=alike)]
    found = decode(encode(rows_to_table(rows, SCHEMA), STAMP), 3, SCHEMA)
    assert found.table["prompt"].to_pylist() == [one["prompt"] for one in rows]


def test_verdicts_say_why_they_changed():
    changed = stamped(event="verdicts", detail={"overrides": {"verification": {"threshold": 0.7}}})
    assert decode(encode(rows_to_table([row("basic/dim/0000")], SCHEMA), changed), 3, SCHEMA).stamp == changed


def test_a_fragment_cut_off_at_any_byte_is_refused_by_name():
    for length in range(len(DATA)):
        with pytest.raises(ManifestError, match=fragment_path(3)):
            decode(DATA[:length], 3, SCHEMA)


def test_a_flipped_bit_is_noticed_wherever_it_is():
    for position in range(len(DATA)):
        flipped = bytearray(DATA)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ManifestError, match=fragment_path(3)):
            decode(bytes(flipped), 3, SCHEMA)


@pytest.mark.parametrize("start", [0, 1, 1000, len(DATA) - 512])
def test_blocks_that_were_never_written_are_noticed(start):
    zeroed = DATA[:start] + bytes(len(DATA) - start)
    with pytest.raises(ManifestError, match=fragment_path(3)):
        decode(zeroed, 3, SCHEMA)


def test_bytes_after_the_end_are_noticed():
    with pytest.raises(ManifestError, match="checksum"):
        decode(DATA + DATA, 3, SCHEMA)


def test_a_newer_schema_is_refused_and_not_called_damage():
    newer = SCHEMA.with_metadata({"balancer.schema_version": "3"})
    with pytest.raises(ManifestError, match="schema 3 is newer than 2"):
        decode(encode(newer.empty_table(), STAMP), 3, SCHEMA)


def test_an_older_schema_is_refused_and_not_called_damage():
    older = SCHEMA.with_metadata({"balancer.schema_version": "1"})
    with pytest.raises(ManifestError, match="schema 1 is older than 2"):
        decode(encode(older.empty_table(), STAMP), 3, SCHEMA)


def test_an_extension_type_is_refused():
    odd = SCHEMA.set(SCHEMA.names.index("phash"), pa.field("phash", pa.uuid()))
    with pytest.raises(ManifestError, match="declares an extension type"):
        decode(encode(odd.empty_table(), STAMP), 3, SCHEMA)


def test_invalid_arrow_data_under_a_right_checksum_is_refused():
    offsets = pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0]))
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    table = rows_to_table([row("basic/dim/0000")], SCHEMA)
    table = table.set_column(SCHEMA.names.index("prompt"), "prompt", not_utf8)
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: fragment is valid Arrow"):
        decode(encode(table, STAMP), 3, SCHEMA)


def test_names_that_are_no_text_under_a_right_checksum_are_refused():
    data = encode(rows_to_table([row("basic/dim/0000")], SCHEMA), STAMP)
    token = next(token for token in _MARKED.findall(data) if _digest(data, token) == token)
    odd = data.replace(b"wording", b"wordin\x80")
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: fragment is valid Arrow"):
        decode(odd.replace(token, _digest(odd, token)), 3, SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "poem"},
        {"event": "close"},
        {"state": "complete"},
        {"event": "close", "state": "great"},
        {"committed_at": NOON.replace(tzinfo=None)},
        {"detail": ["a list"]},
    ],
)
def test_a_stamp_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ManifestError, match="bad metadata"):
        decode(encode(SCHEMA.empty_table(), stamped(**changes)), 3, SCHEMA)


# ---- what may follow what ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "rows"},
        {"event": "verdicts"},
        {"event": "close"},
        {"event": "open", "epoch": 3, "writer": "writer-c"},
    ],
)
def test_a_fragment_goes_on_or_opens_a_later_epoch(changes):
    check_successor(fragment(**{"seq": 4, **changes}), fragment(), "run-1")


def test_the_first_fragment_opens():
    check_successor(fragment(seq=1, event="open", prev_sha256=""), None, "run-1")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"prev_sha256": "b" * 64}, "hash chain"),
        ({"run_id": "run-2"}, "fragment belongs to the run"),
        ({"writer": "writer-c"}, "one writer an epoch"),
        ({"event": "verdicts", "writer": "writer-c"}, "one writer an epoch"),
        ({"epoch": 1}, "one writer an epoch"),
        ({"epoch": 3}, "one writer an epoch"),
        ({"event": "open"}, "epochs grow"),
        ({"event": "open", "epoch": 1, "writer": "writer-a"}, "epochs grow"),
    ],
)
def test_nothing_else_may_follow(changes, rule):
    with pytest.raises(ManifestError, match=f"{fragment_path(4)}: {rule}"):
        check_successor(fragment(**{"seq": 4, **changes}), fragment(), "run-1")


def test_rows_before_any_opening_are_refused():
    with pytest.raises(ManifestError, match="one writer an epoch"):
        check_successor(fragment(seq=1, prev_sha256=""), None, "run-1")
