"""A damaged log is made whole with what can be proven, and never without saying what was lost."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from actors.run import run
from balancer.cli import main
from balancer.errors import ManifestError, StorageError, UsageError
from balancer.manifest import check_run, read_log
from balancer.manifest.layout import DAMAGED_DIR, INDEX_FILE, fragment_path
from balancer.manifest.maintenance.repair import apply, look
from balancer.manifest.rows import revoked
from balancer.manifest.snapshot.build import compact
from balancer.run_manifest import manifest_in, open_manifest
from balancer.runs.resume import effective_config, restore_schedule
from balancer.storage import open_storage
from tests.manifest_samples import (
    NOON,
    MemoryStorage,
    at,
    image_bytes,
    rejected,
    row,
    run_info,
    start,
    void,
)
from tests.whole import test_run

dataset, make_config = test_run.dataset, test_run.make_config  # fixtures
accepted_ids = test_run.accepted_ids

ONE, TWO, THREE = (f"basic/dim/{index:04d}" for index in range(3))
FOUR = "burnt/dim/severe/0000"


def later() -> datetime.datetime:
    return at(60)


@pytest.fixture
def storage() -> MemoryStorage:
    """1 open, 2 one and two, 3 three is rejected, 4 close, 5 open, 6 three and four, 7 close"""
    made = MemoryStorage()
    for slot in (ONE, TWO, FOUR):
        made.files[f"images/{slot}-1.png"] = image_bytes(f"{slot}-1")
    made.files[f"images/{THREE}-2.png"] = image_bytes(f"{THREE}-2")
    log = start(made)
    log.commit([row(ONE), row(TWO)])
    log.commit([rejected(THREE)])
    log.close("interrupted")
    log = start(made)
    log.commit([row(THREE, 2), row(FOUR)])
    log.close("complete")
    return made


def rows_of(storage: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_log(storage).table.to_pylist()
    return found


def ids_of(storage: Any) -> list[str]:
    return [one["id"] for one in rows_of(storage)]


def flip(data: bytes, position: int) -> bytes:
    position %= len(data)
    return data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]


def damage(storage: MemoryStorage, *numbers: int) -> None:
    """A flipped bit among the rows, so that nothing proves what they were."""
    for number in numbers:
        data = storage.files[fragment_path(number)]
        storage.files[fragment_path(number)] = flip(data, data.find(b"basic/dim/000"))


def remove(storage: MemoryStorage, *numbers: int) -> None:
    for number in numbers:
        del storage.files[fragment_path(number)]


def sound(storage: Any) -> bool:
    return check_run(storage).problems == ()


# ---- nothing is damaged --------------------------------------------------------------------------


def test_a_sound_log_is_left_alone(storage):
    before = dict(storage.files)
    assert look(storage).damages == apply(storage, later).damages == ()
    assert storage.files == before


def test_looking_changes_nothing(storage):
    damage(storage, 2)
    before = dict(storage.files)
    look(storage)
    assert storage.files == before


# ---- restored to the byte ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 4, 6, 7])
def test_a_fragment_whose_end_is_gone_is_restored_to_the_byte(storage, number):
    data, before = storage.files[fragment_path(number)], rows_of(storage)
    footer = int.from_bytes(data[-10:-6], "little")
    for length in (len(data) - 1, len(data) - 10, len(data) - 10 - footer):
        storage.files[fragment_path(number)] = data[:length]
        assert not look(storage).lost
        apply(storage, later)
        assert storage.files[fragment_path(number)] == data
        assert rows_of(storage) == before
    assert sound(storage)


def test_a_footer_of_which_any_byte_changed_is_restored(storage):
    data = storage.files[fragment_path(6)]
    footer = int.from_bytes(data[-10:-6], "little")
    for position in range(len(data) - 10 - footer, len(data), 41):
        storage.files[fragment_path(6)] = flip(data, position)
        assert [remains.remains.whole for remains in look(storage).damages] == [data]


def test_only_what_is_proven_is_restored(storage):
    """Whatever byte changes, the fragment is what it was, or lost."""
    data = storage.files[fragment_path(2)]
    fates = set()
    for position in range(0, len(data), 23):
        storage.files[fragment_path(2)] = flip(data, position)
        (found,) = look(storage).damages
        assert found.remains.whole in (None, data)
        fates.add(found.is_lost)
    assert fates == {True, False}


@pytest.mark.parametrize("length", [0, 7, 8, 100, 3000])
def test_a_fragment_cut_off_in_its_middle_is_lost(storage, length):
    storage.files[fragment_path(6)] = storage.files[fragment_path(6)][:length]
    assert [found.seq for found in look(storage).lost] == [6]


# ---- lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [damage, remove])
@pytest.mark.parametrize(
    ("number", "left"),
    [
        (1, [f"{ONE}-1", f"{TWO}-1", f"{THREE}-1", f"{THREE}-2", f"{FOUR}-1"]),
        (2, [f"{THREE}-1", f"{THREE}-2", f"{FOUR}-1"]),
        (3, [f"{ONE}-1", f"{TWO}-1", f"{THREE}-2", f"{FOUR}-1"]),
        (6, [f"{ONE}-1", f"{TWO}-1", f"{THREE}-1"]),
    ],
)
def test_the_rows_of_one_lost_fragment_are_lost_and_no_others(storage, fault, number, left):
    if number == 1 and fault is damage:
        storage.files[fragment_path(1)] = b"ARROW1"
    else:
        fault(storage, number)
    with pytest.raises(ManifestError) as caught:
        read_log(storage)
    assert "`balancer repair RUN`" in caught.value.hint
    apply(storage, later)
    assert ids_of(storage) == left
    assert sound(storage)
    assert look(storage).damages == ()


def empty(storage: MemoryStorage, *numbers: int) -> None:
    storage.files |= {fragment_path(number): b"" for number in numbers}


@pytest.mark.parametrize("numbers", [(2, 3), (3, 4, 5), (1, 2, 3, 4, 5, 6, 7), (6, 7), (1, 7), (4, 5)])
@pytest.mark.parametrize("fault", [empty, remove])
def test_several_lost_fragments_leave_a_log_that_goes_on(storage, fault, numbers):
    fault(storage, *numbers)
    apply(storage, later)
    log = start(storage)
    log.commit([row("basic/dim/0009")])
    assert ids_of(storage)[-1] == "basic/dim/0009-1"


def test_the_damaged_file_is_put_aside_and_the_log_says_what_happened(storage):
    damage(storage, 2)
    data = storage.files[fragment_path(2)]
    apply(storage, later)
    (aside,) = storage.list(DAMAGED_DIR)
    assert storage.files[aside] == data
    last = read_log(storage).last
    assert last is not None
    assert (last.state, last.detail) == (
        "interrupted",
        {"reason": "repair", "restored": [], "lost": [2], "saved": 0},
    )


def test_lost_candidates_are_made_again_under_their_ids(storage):
    damage(storage, 2)
    apply(storage, later)
    info = run_info()
    schedule = restore_schedule(
        info, effective_config(info, read_log(storage).rules), read_log(storage).table, None
    )
    waiting = [candidate.id for candidate in schedule.next_batch(9)]
    assert {f"{ONE}-1", f"{TWO}-1"} <= set(waiting)
    log = start(storage)
    log.commit([row(ONE), row(TWO)])
    assert sound(storage)


def test_a_repair_that_is_stopped_anywhere_is_completed_by_the_same_call(storage):
    class Killed(BaseException):
        pass

    damage(storage, 2, 6)
    broken, calls = dict(storage.files), 0
    while True:
        storage.files, left = dict(broken), [calls]

        def dying(method: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return method(*arguments)

            return called

        with pytest.MonkeyPatch.context() as patch:
            for name in ("publish", "replace", "create"):
                patch.setattr(storage, name, dying(getattr(storage, name)))
            try:
                apply(storage, later)
            except Killed:
                calls += 1
            else:
                break
        apply(storage, lambda: at(120))
        assert sound(storage)
        assert ids_of(storage) == [f"{THREE}-1"]
        last = read_log(storage).last
        assert last is not None
        assert (last.detail or {})["reason"] == "repair"
    assert calls == 9  # two put aside, two stand-ins, open and close, each with the head, current.parquet


def test_a_log_with_a_stand_in_is_read_like_any_other(storage):
    damage(storage, 2)
    apply(storage, later)
    compact(storage)
    start(storage).commit([row(ONE)])
    assert manifest_in(storage).to_table(["id"], status="all")["id"].to_pylist() == ids_of(storage)
    damage(storage, 3)
    apply(storage, lambda: at(120))  # and damaged again; this row was compacted
    assert sound(storage)
    assert set(ids_of(storage)) == {f"{THREE}-1", f"{THREE}-2", f"{FOUR}-1", f"{ONE}-1"}


# ---- saved from the compacted copy ---------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(2,), (3,), (6,), (2, 6), (2, 3, 6), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("fault", [damage, remove])
def test_rows_that_were_compacted_are_saved(storage, numbers, fault):
    compact(storage)
    before = rows_of(storage)
    if fault is damage:
        numbers = tuple(number for number in numbers if number in (2, 3, 6))
    fault(storage, *numbers)
    assert look(storage).saved.num_rows > 0
    apply(storage, later)
    assert sorted(rows_of(storage), key=str) == sorted(before, key=str)
    assert sound(storage)
    assert manifest_in(storage).to_table(status="all").to_pylist() == rows_of(storage)


def test_a_verdict_that_was_lost_is_saved_with_its_row(storage):
    log = start(storage)
    log.commit_verdicts([revoked(row(ONE), "near_copy"), void(THREE)])
    log.commit([row("basic/dim/0003")])
    log.close("interrupted")
    storage.files["images/basic/dim/0003-1.png"] = image_bytes("basic/dim/0003-1")
    compact(storage)
    before = rows_of(storage)
    remove(storage, 9)
    assert look(storage).saved["id"].to_pylist() == [f"{ONE}-1", f"{THREE}-1"]
    apply(storage, later)
    assert rows_of(storage) == before
    assert sound(storage)


def test_what_came_after_the_compaction_is_kept_where_it_is_sound(storage):
    compact(storage)
    log = start(storage)
    log.commit_verdicts([revoked(row(ONE), "class")])
    log.close("interrupted")
    before = rows_of(storage)
    remove(storage, 2)
    apply(storage, later)
    assert sorted(rows_of(storage), key=str) == sorted(before, key=str)
    assert sound(storage)


def test_the_end_of_the_log_is_not_lost_unnoticed_if_it_was_compacted(storage):
    compact(storage)
    remove(storage, 6, 7)
    with pytest.raises(ManifestError, match=f"{fragment_path(7)}: log without gaps"):
        start(storage)
    assert [found.seq for found in look(storage).damages] == [6, 7]
    apply(storage, later)
    assert f"{FOUR}-1" in ids_of(storage)
    assert sound(storage)


@pytest.mark.parametrize("how", ["damaged", "of another log"])
def test_a_copy_that_cannot_be_trusted_saves_nothing_and_goes(storage, how):
    compact(storage)
    if how == "damaged":
        (file, *_) = (path for path in storage.files if "/data/" in path and path != INDEX_FILE)
        storage.files[file] = flip(storage.files[file], 100)
    else:
        other = MemoryStorage()
        start(other).commit([row("basic/dim/0005")])
        compact(other)
        storage.files |= {path: data for path, data in other.files.items() if "/data/" in path}
    damage(storage, 2)
    found = apply(storage, later)
    assert (found.drops_copy, found.saved.num_rows) == (True, 0)
    assert INDEX_FILE not in storage.files
    assert ids_of(storage) == [f"{THREE}-1", f"{THREE}-2", f"{FOUR}-1"]
    assert sound(storage)


# ---- beyond repair, or not the time for it -------------------------------------------------------


def test_a_verdict_lost_between_two_rows_of_an_id_is_made_up_for(storage):
    log = start(storage)
    log.commit_verdicts([void(THREE)])
    log.commit([rejected(THREE, reason="class")])
    log.close("interrupted")
    remove(storage, 9)
    apply(storage, later)
    assert ids_of(storage).count(f"{THREE}-1") == 1
    assert [one["reason"] for one in rows_of(storage) if one["id"] == f"{THREE}-1"] == ["class"]
    assert sound(storage)


def test_fragments_that_fit_nowhere_are_told_and_left_alone(storage):
    other = MemoryStorage()
    log = start(other)
    for number in range(6):
        log.commit([row(f"basic/dim/{number + 10:04d}")])
    storage.files[fragment_path(7)] = other.files[fragment_path(7)]
    before = dict(storage.files)
    assert any("do not belong together" in problem for problem in look(storage).unsolved)
    with pytest.raises(UsageError, match="cannot be repaired"):
        apply(storage, later)
    assert storage.files == before


def test_a_fragment_of_another_run_is_lost(storage):
    other = MemoryStorage()
    start(other, run_id="run-2").commit([row("basic/dim/0011", run_id="run-2")])
    storage.files[fragment_path(2)] = other.files[fragment_path(2)]
    assert [(found.seq, found.rule) for found in look(storage).damages] == [
        (2, "fragment belongs to the run")
    ]
    apply(storage, later)
    assert sound(storage)


def test_a_fragment_in_the_place_of_another_is_lost(storage):
    other = MemoryStorage()
    start(other).commit([row("basic/dim/0011")])
    storage.files[fragment_path(2)] = other.files[fragment_path(2)]
    apply(storage, later)
    assert ids_of(storage) == [f"{THREE}-1", f"{THREE}-2", f"{FOUR}-1"]
    assert sound(storage)


class Unlisted(MemoryStorage):
    """A store that serves what it does not list."""

    hidden: tuple[str, ...] = ()

    def list(self, prefix: str) -> list[str]:
        return [path for path in super().list(prefix) if path not in self.hidden]


@pytest.mark.parametrize("hidden", [range(1, 8), [7]])
@pytest.mark.parametrize("command", [look, lambda storage: apply(storage, later)])
def test_a_store_whose_listing_lacks_what_it_serves_is_not_repaired_and_not_called_sound(
    storage, hidden, command
):
    lying = Unlisted(files=dict(storage.files))
    lying.hidden = tuple(map(fragment_path, hidden))
    with pytest.raises(StorageError, match=r"0007\.arrow can be read, but is not in the listing"):
        command(lying)
    assert lying.files == storage.files


def test_a_run_that_goes_on_is_not_repaired(storage):
    start(storage, now=lambda: NOON)
    damage(storage, 2)
    before = dict(storage.files)
    with pytest.raises(UsageError, match="the run is in progress"):
        apply(storage, lambda: NOON)
    assert storage.files == before


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_shows_first_and_repairs_when_told_to(tmp_path):
    out = open_storage(tmp_path, create=True)
    log = start(out)
    log.commit([rejected(ONE)])
    log.commit([rejected(TWO)])
    log.close("interrupted")
    data = out.read(fragment_path(2))
    out.replace(fragment_path(2), flip(data, data.find(b"basic/dim/0000")))
    out.replace(fragment_path(4), out.read(fragment_path(4))[:-1])
    shown = CliRunner().invoke(main, ["repair", str(tmp_path)])
    assert shown.exit_code == 1
    assert shown.stdout.splitlines() == [
        f"{fragment_path(2)}: checksum: its bytes are not those that were written: "
        "lost; the fragment held 1 row",
        f"{fragment_path(4)}: fragment is whole: its {len(out.read(fragment_path(4)))} bytes are cut off, "
        "or no fragment: restored byte for byte",
        "1 fragment can be restored, 1 fragment would be lost, 0 rows can be saved from the compacted copy",
    ]
    assert "--apply does" in shown.stderr
    done = CliRunner().invoke(main, ["repair", str(tmp_path), "--apply"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == (
        "1 fragment was restored, 1 fragment was lost, 0 rows were saved from the compacted copy"
    )
    assert CliRunner().invoke(main, ["fsck", str(tmp_path)]).exit_code == 0
    assert CliRunner().invoke(main, ["repair", str(tmp_path)]).stdout == "nothing to repair\n"


def test_the_command_tells_lost_fragments_from_the_rows_saved_of_them(tmp_path):
    out = open_storage(tmp_path, create=True)
    log = start(out)
    log.commit([rejected(ONE), rejected(TWO)])
    log.close("interrupted")
    compact(out)
    data = out.read(fragment_path(2))
    out.replace(fragment_path(2), flip(data, data.find(b"basic/dim/0000")))
    first, shown = CliRunner().invoke(main, ["repair", str(tmp_path)]).stdout.splitlines()
    assert first.endswith(": lost; the fragment held 2 rows")
    assert shown == (
        "0 fragments can be restored, 1 fragment would be lost, 2 rows can be saved from the compacted copy"
    )
    done = CliRunner().invoke(main, ["repair", str(tmp_path), "--apply"])
    assert done.stdout.splitlines()[-1] == (
        "0 fragments were restored, 1 fragment was lost, 2 rows were saved from the compacted copy"
    )


# ---- whole runs, with simulated actors ------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_run_whose_log_was_damaged_is_repaired_and_ends_as_it_would_have(make_config, tmp_path):
    out = tmp_path / "run"
    config = make_config(output={"commit_rows": 4})
    run(config, out)
    wanted = accepted_ids(out)
    number = next(
        n for n in range(2, 99)
        if b"night" in (data := (out / fragment_path(n)).read_bytes()) and b"accepted" in data
    )  # fmt: skip
    path = out / fragment_path(number)
    path.write_bytes(flip(path.read_bytes(), path.read_bytes().find(b"night")))
    with pytest.raises(ManifestError) as caught:
        run(config, out)
    assert "`balancer repair RUN`" in caught.value.hint
    apply(open_storage(out, create=False))
    assert set(accepted_ids(out)) < set(wanted)
    run(config, out)
    assert accepted_ids(out) == wanted
    assert sound(open_storage(out, create=False))
    assert open_manifest(out).count_by("class").num_rows == 2
