"""The cache, and the part of it that nobody else may enter."""

from __future__ import annotations

import os
import stat

import pytest

from balancer.errors import UnavailableError
from balancer.storage.cache import cache_folder, private_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))


def test_a_private_folder_is_the_users_alone_whatever_the_umask():
    before = os.umask(0)
    try:
        folder = private_folder("locks")
    finally:
        os.umask(before)
    for path in (folder, folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert folder.is_relative_to(cache_folder())
    assert private_folder("locks") == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755, 0o777])
def test_a_private_folder_that_others_can_enter_is_refused(mode):
    private_folder("locks").chmod(mode)
    with pytest.raises(UnavailableError, match="is not a folder that this user alone can enter") as caught:
        private_folder("locks")
    assert "BALANCER_CACHE" in caught.value.hint


@pytest.mark.parametrize("level", ["folder", "parent"])
def test_a_link_or_a_file_in_the_place_of_a_private_folder_is_refused(level, tmp_path):
    folder = private_folder("locks")
    folder.rmdir()
    if level == "parent":
        folder = folder.parent
        folder.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(UnavailableError, match="alone can enter"):
        private_folder("locks")
    folder.unlink()
    folder.touch()
    with pytest.raises(UnavailableError, match="alone can enter"):
        private_folder("locks")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_private_folder_of_another_user_is_refused():
    os.chown(private_folder("locks"), 65534, 65534)
    with pytest.raises(UnavailableError, match="alone can enter"):
        private_folder("locks")


def test_a_cache_in_which_others_can_exchange_files_has_no_private_folder():
    cache_folder().mkdir()
    cache_folder().chmod(0o777)
    with pytest.raises(UnavailableError, match="others can exchange"):
        private_folder("locks")
    cache_folder().chmod(0o1777)
    private_folder("locks")


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(UnavailableError) as caught:
        private_folder("locks")
    assert "\n" not in caught.value.message
