"""The one door to files that somebody else wrote."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from balancer.storage.regular_files import (
    NotRegularError,
    TooLargeError,
    append_regular,
    check_regular,
    open_regular,
    read_regular,
)


def test_a_regular_file_is_read_whole_up_to_its_limit(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, max_bytes=5, follow_links=False) == b"12345"
    with pytest.raises(TooLargeError, match="megabytes, over the limit of") as caught:
        read_regular(file, max_bytes=4, follow_links=False)
    assert (caught.value.num_bytes, caught.value.max_bytes) == (5, 4)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("through_link", [False, True])
def test_nothing_but_a_regular_file_is_opened_and_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, through_link: bool
):
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo("it")
        elif kind == "socket":
            listening.bind("it")
        elif kind == "device":
            os.symlink("/dev/zero", "it")
        else:
            os.mkdir("it")
        os.symlink("it", "link")
        path = "link" if through_link else "it"
        with pytest.raises(NotRegularError):
            open_regular(path, follow_links=True)
        with pytest.raises(NotRegularError):
            check_regular(path)
        with pytest.raises((NotRegularError, IsADirectoryError)):
            append_regular(path)


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"1")
    link = tmp_path / "link"
    link.symlink_to("file")
    assert read_regular(link, max_bytes=1, follow_links=True) == b"1"
    with pytest.raises(NotRegularError, match="a symbolic link, which is not followed"):
        read_regular(link, max_bytes=1, follow_links=False)


def test_nothing_is_written_through_a_link(tmp_path: Path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to("file")
    with pytest.raises(NotRegularError, match="a symbolic link, which is not followed"):
        append_regular(link)
    for _ in range(2):
        with append_regular(file) as opened:
            opened.write(b"1")
    assert file.read_bytes() == b"11"


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none", follow_links=True)


def test_a_name_that_no_file_can_have_is_refused_like_a_file_that_cannot_be_opened():
    with pytest.raises(NotRegularError, match="no name that a file can have"):
        open_regular("a\0b", follow_links=True)


def test_a_file_that_claims_less_than_it_gives_is_held_to_the_limit():
    with pytest.raises(TooLargeError):
        read_regular("/proc/self/maps", max_bytes=10, follow_links=False)  # its size is 0


@pytest.mark.parametrize("follow_links", [True, False])
def test_a_circle_of_links_above_a_file_is_told_from_a_link(tmp_path, follow_links):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(NotRegularError, match="symbolic links that lead in a circle"):
        open_regular(loop / "file", follow_links=follow_links)
    with pytest.raises(NotRegularError, match="in a circle" if follow_links else "which is not followed"):
        open_regular(loop, follow_links=follow_links)
