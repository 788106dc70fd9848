"""Decode images and read tables in the process of the test; the processes with limits have other tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from balancer.dataset.decoding import decoders, members
from balancer.dataset.decoding.cutting import read_crop
from balancer.dataset.decoding.image_info import answer, parse_answer
from balancer.dataset.table_reader import OWN_NAMES, read_table_answer


def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def images(root, names, limits, count=lambda done: None):
        found = []
        for name in names:
            found.append(parse_answer(answer(root / name, limits).encode()))
            count(len(found))
        return found

    def tables(paths, columns=OWN_NAMES, packed=False) -> Iterator[bytes]:
        for path in paths:
            yield from read_table_answer(path, columns, packed)

    monkeypatch.setattr(members, "_in_child", True)
    monkeypatch.setattr(members, "_read_crop", read_crop)
    monkeypatch.setattr(decoders, "read_all_images", images)
    monkeypatch.setattr(decoders, "read_table_lines", tables)
