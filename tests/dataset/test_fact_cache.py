"""An image that did not change is not decoded again; one that changed always is."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from balancer.dataset.audit import audit
from balancer.dataset.decoding import decoders, fact_cache, file_keys
from balancer.dataset.decoding.image_info import DecodeLimits, answer, parse_answer
from balancer.images import NAMES_OF_FORMATS
from balancer.storage.cache import private_folder

LIMITS = DecodeLimits(1_000_000, 1_000_000)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """Files count as settled at once: tests wait for the clock's tick instead."""
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_keys, "SETTLED_NS", 0)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded."""
    names = []

    def images(root, wanted, limits, count):
        names.extend(wanted)
        return [parse_answer(answer(os.path.join(root, name), limits).encode()) for name in wanted]

    monkeypatch.setattr(decoders, "read_all_images", images)
    return names


@pytest.fixture
def root(tmp_path):
    for place in range(4):
        draw(tmp_path / "photos" / "ab"[place % 2] / f"{place}.bmp", place)
    return tmp_path / "photos"


def draw(path: Path, seed: int) -> None:
    """All pictures have the same size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def read(root: Path, *names: str, limits: DecodeLimits = LIMITS):
    return fact_cache.read_known_images(root, names, limits)


def table() -> Path:
    [path] = private_folder(fact_cache.FOLDER).iterdir()
    return path


def wait_for_tick(path: Path) -> None:
    """Until a file that is written now gets another time than `path` has."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"")
        later = probe.stat().st_ctime_ns > path.stat().st_ctime_ns
        probe.unlink()
        if later:
            return
        time.sleep(0.001)


def test_files_that_did_not_change_are_not_decoded_again(root, decoded):
    first = audit(root)
    assert len(decoded) == 4
    assert audit(root) == first
    assert len(decoded) == 4


def test_an_image_that_is_new_is_the_only_one_decoded(root, decoded):
    audit(root)
    draw(root / "a" / "new.bmp", 9)
    decoded.clear()
    assert audit(root).counts == {"a": 3, "b": 2}
    assert decoded == ["a/new.bmp"]


def test_a_changed_file_of_equal_size_with_its_old_time_is_decoded_again(root, decoded):
    before = {image.file_name: image for image in audit(root).images}
    path = root / "a" / "0.bmp"
    about = path.stat()
    wait_for_tick(path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        about.st_ino,
        about.st_size,
        about.st_mtime_ns,
    )
    decoded.clear()
    [image] = [image for image in audit(root).images if image.file_name == "a/0.bmp"]
    assert decoded == ["a/0.bmp"]
    assert image.sha256 != before["a/0.bmp"].sha256
    assert image.pixel_sha256 != before["a/0.bmp"].pixel_sha256


def test_two_files_that_changed_places_are_decoded_again(root, decoded):
    read(root, "a/0.bmp", "a/2.bmp")
    (root / "a/0.bmp").rename(root / "spare")
    (root / "a/2.bmp").rename(root / "a/0.bmp")
    (root / "spare").rename(root / "a/2.bmp")
    decoded.clear()
    read(root, "a/0.bmp", "a/2.bmp")
    assert decoded == ["a/0.bmp", "a/2.bmp"]


def test_a_file_that_changes_while_it_is_read_is_not_kept(root, decoded, monkeypatch, tmp_path):
    """Here it is another file behind a link for a while."""
    for version in ("one", "two"):
        draw(tmp_path / version / "x.bmp", len(version) + (version == "two"))
    link = tmp_path / "current"
    link.symlink_to("one")
    honest = decoders.read_all_images

    def images(root, names, limits, count):
        link.unlink()
        link.symlink_to("two")
        return honest(root, names, limits, count)

    monkeypatch.setattr(decoders, "read_all_images", images)
    read(link, "x.bmp")
    monkeypatch.setattr(decoders, "read_all_images", honest)
    link.unlink()
    link.symlink_to("one")
    [info] = read(link, "x.bmp")
    assert decoded == ["x.bmp"] * 2
    assert info == parse_answer(answer(tmp_path / "one" / "x.bmp", LIMITS).encode())


def test_a_file_that_changed_just_now_is_not_kept(root, decoded, monkeypatch):
    monkeypatch.setattr(file_keys, "SETTLED_NS", 3_600_000_000_000)
    read(root, "a/0.bmp")
    read(root, "a/0.bmp")
    assert decoded == ["a/0.bmp"] * 2
    assert not list(private_folder(fact_cache.FOLDER).iterdir())


def test_a_file_system_without_times_of_change_is_read_anew(root, decoded, monkeypatch):
    monkeypatch.setattr(file_keys, "_undated_devices", lambda: {root.stat().st_dev})
    read(root, "a/0.bmp")
    read(root, "a/0.bmp")
    assert decoded == ["a/0.bmp"] * 2


def test_reasons_are_not_kept(root, decoded):
    (root / "a" / "0.bmp").write_bytes(b"no picture")
    assert [read(root, "a/0.bmp", "a/2.bmp")[0] for _ in range(2)] == [f"not a {NAMES_OF_FORMATS} image"] * 2
    assert decoded == ["a/0.bmp", "a/2.bmp", "a/0.bmp"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data + data[32:],
    ],
)
def test_a_damaged_table_is_none(root, decoded, damage):
    first = read(root, "a/0.bmp", "a/2.bmp")
    table().write_bytes(damage(table().read_bytes()))
    decoded.clear()
    assert read(root, "a/0.bmp", "a/2.bmp") == first
    assert decoded == ["a/0.bmp", "a/2.bmp"]
    decoded.clear()
    assert read(root, "a/0.bmp", "a/2.bmp") == first
    assert not decoded


def test_a_link_in_place_of_the_table_is_not_followed(root, decoded, tmp_path):
    read(root, "a/0.bmp")
    path = table()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    read(root, "a/0.bmp")
    assert decoded == ["a/0.bmp"] * 2
    assert not path.is_symlink()


def test_a_cache_that_others_can_enter_is_not_used(root, decoded):
    read(root, "a/0.bmp")
    table().parent.chmod(0o755)
    read(root, "a/0.bmp")
    assert decoded == ["a/0.bmp"] * 2


def test_a_cache_of_another_user_is_not_used(root, decoded, monkeypatch):
    read(root, "a/0.bmp")
    folder = private_folder(fact_cache.FOLDER)
    uid = os.getuid()
    folder.parent.rename(folder.parent.with_name(f"user-{uid + 1}"))
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    read(root, "a/0.bmp")
    assert decoded == ["a/0.bmp"] * 2


def test_a_cache_that_cannot_be_written_is_no_error(root, decoded, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "file" / "below"))
    assert audit(root).counts == {"a": 2, "b": 2}


def test_nobody_else_can_read_the_cache(root, decoded):
    read(root, "a/0.bmp")
    assert stat.S_IMODE(table().stat().st_mode) == 0o600
    assert stat.S_IMODE(table().parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("change", ["decoder", "format", "limits"])
def test_what_the_facts_depend_on_makes_another_table(root, decoded, monkeypatch, change):
    read(root, "a/0.bmp")
    limits = LIMITS
    if change == "decoder":
        monkeypatch.setattr(fact_cache, "_decoder_version", lambda: "another")
    elif change == "format":
        monkeypatch.setattr(fact_cache, "FORMAT", fact_cache.FORMAT + 1)
    else:
        limits = DecodeLimits(LIMITS.max_bytes, LIMITS.max_pixels - 1)
    read(root, "a/0.bmp", limits=limits)
    assert decoded == ["a/0.bmp"] * 2


def test_a_lower_limit_holds_for_what_was_read_under_a_higher_one(root, decoded):
    read(root, "a/0.bmp")
    [reason] = read(root, "a/0.bmp", limits=DecodeLimits(100, 1_000_000))
    assert "max_image_megabytes" in reason


def test_images_that_were_left_out_once_are_still_known(root, decoded):
    names = ["a/0.bmp", "a/2.bmp", "b/1.bmp"]
    read(root, *names)
    draw(root / "a" / "new.bmp", 9)
    read(root, "a/new.bmp")
    decoded.clear()
    read(root, *names)
    assert not decoded


def test_the_table_does_not_outgrow_the_dataset(root, decoded, monkeypatch):
    monkeypatch.setattr(fact_cache, "SPARE_ROWS", 1)
    for seed in range(5):
        wait_for_tick(root / "a" / "0.bmp")
        draw(root / "a" / "0.bmp", seed)
        read(root, "a/0.bmp")
    assert table().stat().st_size == fact_cache.DIGEST_BYTES + 2 * fact_cache.ROW.itemsize


def test_the_tables_used_longest_ago_make_room(root, decoded, monkeypatch, tmp_path):
    roots = [shutil.copytree(root, tmp_path / name) for name in "xyz"]
    one = fact_cache.DIGEST_BYTES + fact_cache.ROW.itemsize
    monkeypatch.setattr(fact_cache, "MAX_CACHE_BYTES", 2 * one)
    for place, each in enumerate(roots):
        read(each, "a/0.bmp")
        for path in private_folder(fact_cache.FOLDER).iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100 + place))
    decoded.clear()
    for each in reversed(roots):
        read(each, "a/0.bmp")
    assert len(decoded) == 1


def test_what_a_killed_process_left_is_deleted(root, decoded):
    left = private_folder(fact_cache.FOLDER) / "x.tmp"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    read(root, "a/0.bmp")
    assert not left.exists()


def test_an_audit_that_is_interrupted_goes_on_where_it_was(root, decoded, monkeypatch):
    monkeypatch.setattr(fact_cache, "PORTION", 1)
    seen = []

    def stop(done):
        raise KeyboardInterrupt

    honest = decoders.read_all_images

    def images(root, names, limits, count):
        if len(seen) == 2:
            count(0)
        seen.extend(names)
        return honest(root, names, limits, count)

    monkeypatch.setattr(decoders, "read_all_images", images)
    names = ["a/0.bmp", "a/2.bmp", "b/1.bmp"]
    with pytest.raises(KeyboardInterrupt):
        fact_cache.read_known_images(root, names, LIMITS, stop)
    decoded.clear()
    seen.clear()
    read(root, *names)
    assert decoded == ["b/1.bmp"]


def test_progress_counts_what_is_known(root, decoded, monkeypatch):
    read(root, "a/0.bmp")
    monkeypatch.setattr(
        decoders,
        "read_all_images",
        lambda root, names, limits, count: (count(len(names)), ["no"] * len(names))[1],
    )
    counted = []
    fact_cache.read_known_images(root, ["a/0.bmp", "a/2.bmp", "b/1.bmp"], LIMITS, counted.append)
    assert counted == [3]


def read_often(root: Path, names: list[str]) -> None:
    for start in range(len(names)):
        infos = read(root, *names[start:])
        assert infos == [parse_answer(answer(root / name, LIMITS).encode()) for name in names[start:]]


def test_two_processes_may_use_it_at_once(root):
    names = ["a/0.bmp", "a/2.bmp", "b/1.bmp", "b/3.bmp"]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read_often, args=(root, names)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(private_folder(fact_cache.FOLDER).iterdir())) == 1


# ---- images inside files ----------------------------------------------------------------------------


def pack(path: Path, seeds: list[int]) -> None:
    images = []
    for seed in seeds:
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "bmp")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images, "class": ["cat"] * len(seeds)}), path)


def test_images_of_a_shard_that_did_not_change_are_not_decoded_again(tmp_path, decoded):
    shards = tmp_path / "shards"
    shards.mkdir()
    pack(shards / "a.parquet", [0, 1])
    pack(shards / "b.parquet", [2, 3])
    first = audit(shards)
    assert len(decoded) == 4
    assert audit(shards) == first
    assert len(decoded) == 4


def test_images_of_a_changed_shard_are_decoded_again(tmp_path, decoded):
    shards = tmp_path / "shards"
    shards.mkdir()
    pack(shards / "a.parquet", [0, 1])
    pack(shards / "b.parquet", [2, 3])
    audit(shards)
    wait_for_tick(shards / "b.parquet")
    pack(shards / "b.parquet", [4, 3])
    decoded.clear()
    after = audit(shards)
    assert sorted(decoded) == ["b.parquet/0", "b.parquet/1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fact_cache, "_table_path", lambda root, limits: None)
        assert audit(shards) == after


# ---- random edits -----------------------------------------------------------------------------------

NAMES = ("a/0.bmp", "a/1.bmp", "b/0.bmp")
EDITS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("overwrite"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("damage"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("audit"), st.just(""), st.just(0)),
)


def edit(root: Path, what: str, name: str, number: int) -> None:
    """The time of a file's last modification is always the same."""
    path = root / name
    if what == "write":
        path.unlink(missing_ok=True)
        draw(path, number)
    elif what == "overwrite" and path.exists():
        draw(path, number)
    elif what == "delete":
        path.unlink(missing_ok=True)
    elif what == "rename" and path.exists():
        path.replace(root / NAMES[number])
    elif what == "damage" and path.exists():
        path.write_bytes(path.read_bytes()[:60].ljust(path.stat().st_size, b"\0"))
    for file in root.rglob("*.bmp"):
        if file.stat().st_mtime_ns:
            os.utime(file, ns=(0, 0))


@settings(max_examples=40)
@given(st.lists(EDITS, max_size=8))
def test_after_any_edits_an_audit_says_the_same_with_the_cache_as_without(tmp_path_factory, edits):
    root = tmp_path_factory.mktemp("edited")
    draw(root / "c" / "constant.bmp", 7)
    for name in NAMES:
        draw(root / name, 0)
    clock = root / "clock.txt"
    for what, name, number in [*edits, ("audit", "", 0)]:
        clock.write_bytes(b"")
        wait_for_tick(clock)
        if what != "audit":
            edit(root, what, name, number)
            continue
        cached = audit(root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fact_cache, "_table_path", lambda root, limits: None)
            assert audit(root) == cached
