"""Images that crash, stall or starve their decoder: each costs itself and nothing else. Real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from balancer.dataset.audit import audit
from balancer.dataset.decoding import decoders
from balancer.dataset.decoding.decoders import DecoderProcess, read_all_images
from balancer.dataset.decoding.image_info import (
    DecodeLimits,
    ImageInfo,
    info_line,
    parse_answer,
    read_image_info,
)
from balancer.dataset.decoding.spawning import environment

pytestmark = pytest.mark.decoders

LIMITS = DecodeLimits(1_000_000, 1_000_000)
PICTURE = ImageInfo(8, 8, 100, "0" * 64, "0" * 16, "1" * 64, False)

HARMFUL = """
    import ctypes, os, resource, time
    from balancer import images
    from balancer.dataset.decoding import child

    honest = images._open_header

    def open_header(data):
        what, _, _ = data.partition(b":")
        if what == b"crash":
            ctypes.string_at(0)
        if what == b"leave":
            os._exit(7)
        if what == b"memory":
            return [bytearray(1_000_000) for _ in range(100_000)]
        if what == b"write":
            open(data.partition(b":")[2], "wb").write(b"harm")
        if what == b"loop":
            while True:
                pass
        if what == b"wait":
            time.sleep(1000)
        if what == b"lie":
            os.write(1, b"[1, 2, 3]\\n")
        if what == b"chatter":
            os.write(1, b"x" * 50_000)
        if what == b"told":
            raise images.UnreadableImage(repr(sorted(os.environ)))
        return honest(data)

    images._open_header = open_header
    child.CPU_SECONDS = 1
    child.IMAGES_PER_CHILD = 2
    child.serve()
"""


@pytest.fixture
def harmful(monkeypatch):
    """Decoders that do what the file says."""

    def spawn(call, requests):
        code = f"import sys; sys.path[:] = {sys.path!r}\n{textwrap.dedent(HARMFUL)}"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=requests,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            process_group=0,
        )

    monkeypatch.setattr(decoders, "spawn", spawn)


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"crash:", "its decoder crashed (signal 11): the file is damaged or malicious"),
        (b"leave:", "its decoder ended unexpectedly"),
        (b"memory:", "out of memory while decoding it"),
        (
            b"loop:",
            "decoding it takes more than 10 s and 0.2 s per megapixel of dataset.max_image_megapixels",
        ),
        (b"lie:", "its decoder gave an invalid answer"),
        (b"chatter:", "its decoder gave an invalid answer"),
    ],
)
def test_an_image_that_its_decoder_does_not_survive_is_listed_and_the_others_are_read(
    folder, harmful, content, reason
):
    (folder / "1b.png").write_bytes(content)
    before, harmed, after, last = read_all_images(folder, ["0.png", "1b.png", "1.png", "2.png"], LIMITS)
    assert harmed == reason
    assert [before, after, last] == [read_image_info(folder / f"{index}.png", LIMITS) for index in range(3)]


def test_a_decoder_that_does_nothing_at_all_is_given_up(folder, harmful, monkeypatch):
    monkeypatch.setattr(decoders, "MAX_WAIT_S", 10.0)
    (folder / "1b.png").write_bytes(b"wait:")
    began = time.monotonic()
    harmed, after = read_all_images(folder, ["1b.png", "1.png"], LIMITS)
    assert harmed == "its decoder gave an invalid answer"
    assert after == read_image_info(folder / "1.png", LIMITS)
    assert time.monotonic() - began < 500


def test_a_decoder_cannot_write_files(folder, harmful):
    (folder / "1b.png").write_bytes(b"write:" + os.fsencode(folder / "harm"))
    read_all_images(folder, ["1b.png"], LIMITS)
    assert not (folder / "harm").exists() or (folder / "harm").read_bytes() == b""


def test_a_decoder_is_told_no_secrets(folder, harmful, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    (folder / "1b.png").write_bytes(b"told:")
    [names] = read_all_images(folder, ["1b.png"], LIMITS)
    assert isinstance(names, str)
    assert "PATH" in names
    assert "AWS" not in names
    assert "HF_TOKEN" not in names


def test_no_process_is_left_when_the_images_are_read(folder, harmful):
    (folder / "1b.png").write_bytes(b"wait:")
    decoder = DecoderProcess(LIMITS)
    assert list(decoder.read_each(iter([(0, os.fsencode(folder / "0.png"))])))
    group = decoder._process.pid
    decoder.close()
    give_up = time.monotonic() + 60
    while members(group):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def members(group):
    found = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()[1:]]
    return [row for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def test_a_decoder_that_is_replaced_after_some_images_misses_none(folder, harmful):
    names = ["0.png", "1.png", "2.png"] * 3
    seen = read_all_images(folder, names, LIMITS)
    assert seen == [read_image_info(folder / name, LIMITS) for name in names]


def test_a_decoder_has_no_network():
    """Where the system lets a process leave it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = (
            "import socket, sys; from balancer.dataset.decoding.child import leave_network\n"
            "if not leave_network(): sys.exit(77)\n"
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        )
        code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if told.returncode == 77:
        pytest.skip("this system does not let a process leave the network")
    assert told.returncode != 0
    assert "OSError" in told.stderr


def test_an_audit_lists_what_crashed_and_counts_the_rest(folder, harmful):
    (folder / "cat").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "cat" / path.name)
    (folder / "cat" / "9.png").write_bytes(b"crash:")
    found = audit(folder)
    assert found.counts == {"cat": 3}
    assert [name for name, _ in found.unreadable] == ["cat/9.png"]


# ---- answers ---------------------------------------------------------------------------------------


def test_an_answer_is_read_as_it_was_given():
    marked = replace(PICTURE, marked_synthetic=True)
    assert [parse_answer(info_line(info).encode()) for info in (PICTURE, marked)] == [PICTURE, marked]
    assert json.loads(info_line(PICTURE)) == {name: getattr(PICTURE, name) for name in PICTURE.__slots__}
    assert parse_answer(b'{"reason": "the file is empty"}') == "the file is empty"


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": True},
        {"height": 2**63},
        {"num_bytes": "9"},
        {"sha256": "0" * 63},
        {"sha256": "../../../etc/passwd"},
        {"phash": 7},
        {"marked_synthetic": 1},
    ],
)
def test_an_answer_that_is_not_quite_one_is_refused(change):
    fields = json.loads(info_line(PICTURE)) | change
    with pytest.raises(ValueError, match="neither the info"):
        parse_answer(json.dumps(fields).encode())


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_answer_at_all_does_anything_else(line):
    try:
        told = parse_answer(line)
    except ValueError:
        return
    assert isinstance(told, ImageInfo | str)
