"""Nothing committed is lost, repeated or left dangling, whatever dies and whenever.

The real storage, log, writer, schedule, compaction and gc run on a simulated disk (file_system_model.py),
under schedules of work, crashes and faults that hypothesis makes up and, if one breaks a rule, cuts down to
the smallest that does. 80 schedules by default; for a long search say how many:

    BALANCER_CRASH_SCHEDULES=3000 python -m pytest -s tests/runs/test_crashes.py -k schedule

That a fault would be seen is tested as well: each of the variants below leaves out or swaps one step of the
protocol, and a short course of events has to catch it. That the search finds them, too, takes minutes: a test
marked `soak`.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import functools
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import actors.models.writer
import balancer.manifest.snapshot.build
from actors.models.writer import WriteItem, Writer
from balancer.cells import Candidate
from balancer.config.schema import Config
from balancer.errors import FencedError, StorageError, UsageError
from balancer.manifest import ManifestLog, create_run, read_log
from balancer.manifest.layout import INDEX_FILE, RUN_FILE, fragment_path, fragment_seq, image_stem
from balancer.manifest.log.head import write_head
from balancer.manifest.maintenance.fsck import check_run
from balancer.manifest.maintenance.gc import IMAGE, Leftover, delete_leftovers, find_leftovers
from balancer.manifest.rows import ImageFile
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.index import encode_index, read_index
from balancer.run_manifest import manifest_in
from balancer.runs.resume import restore_schedule
from balancer.scheduling.ledger import Outcome
from balancer.storage import DiskFullError, LocalStorage
from balancer.storage.system_calls import translated
from tests.file_system_model import Choose, Disk, Event, Folder, Killed, PowerLost, Process
from tests.manifest_samples import FACETS, NOON, MemoryStorage, planned, rejected, row, run_info

SCHEDULES = int(os.environ.get("BALANCER_CRASH_SCHEDULES", "80"))
STEPS = 20
DAY = datetime.timedelta(hours=24)
FOUND_WITHIN = 3000
"""Schedules in which the search must find a fault that is there."""

Calls = tuple[tuple[str, ...], int]
"""How many system calls go by until a fault: of these kinds, or of any."""

CALLS = st.one_of(
    st.tuples(st.just(()), st.integers(0, 30)),
    st.tuples(st.sampled_from([("fsync",), ("link",), ("rename",), ("unlink",)]), st.integers(0, 4)),
)
CHANGES = ("write", "fsync", "link", "rename", "unlink", "mkdir")
"""Calls that change what is there, on the disk or for other processes."""

ROOT = "/simulated/runs/demo"
CONFIG = Config.model_validate(
    {
        "dataset": {"path": "none"},
        "classes": {"basic": {"prompts": ["a pizza"]}, "burnt": {"prompts": ["a burnt pizza"]}},
        "facets": {
            "lighting": {"values": {"dim": {"prompts": ["dim"]}}},
            "burn_level": {"classes": ["burnt"], "values": {"severe": {"prompts": ["severe"]}}},
        },
        "target": {"per_class": 3},
        "attempts": {"max": 2},
    }
)
PLAN = [planned("basic/dim", 3), planned("burnt/dim/severe", 2)]
INFO = run_info(config=CONFIG.model_dump(mode="json"), plan=PLAN)
LOOKS = np.zeros((2, 1, 1, 3), np.uint8)
LOOKS[1] = 255


@dataclass(frozen=True, slots=True)
class Variant:
    """What a run is made of: as it is, or with one part broken."""

    process: type[Process] = Process
    storage: type[LocalStorage] = LocalStorage
    driver: Callable[..., Driver] = field(default_factory=lambda: Driver)
    compact: Callable[[Any], object] = lambda storage: compact(storage, rebuild=True)
    collect: Callable[..., list[Leftover]] = delete_leftovers
    without: frozenset[str] = frozenset()
    """Rules that would only get in the way of what this is about."""


Told = tuple[str, str | None]
"""What a row says: its status, and the sha256 of its image."""


@dataclass(slots=True)
class Ledger:
    """What drivers tried to commit, and what they were told is committed, by id."""

    tried: dict[str, set[Told]] = field(default_factory=dict)
    acknowledged: dict[str, Told] = field(default_factory=dict)


class Driver:
    """What a driver and its writer do with a run: two processes, in one thread."""

    def __init__(self, disk: Disk, variant: Variant, ledger: Ledger) -> None:
        self.disk = disk
        self.variant = variant
        self.ledger = ledger
        self.process = variant.process(disk)
        self.busy = False
        self.rows: list[dict[str, Any]] = []
        self.accepted: list[Candidate] = []

    @property
    def had_a_failed_sync(self) -> bool:
        """That of the log's head may fail in a commit that succeeds: what comes after is refused."""
        return self.storage._durability.broken is not None

    def open(self) -> None:
        self.storage = self.variant.storage.make(ROOT, self.process)
        info = create_run(self.storage, INFO)
        self.log = ManifestLog.open(self.storage, info.schema(), info.run_id, now=lambda: time_on(self.disk))
        self.schedule = restore_schedule(info, CONFIG, self.log.table(), None)
        self.writer = self.start_writer()

    def start_writer(self) -> Writer:
        storage = self.variant.storage(ROOT, self.variant.process(self.disk))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(actors.models.writer, "open_storage", lambda uri, create: storage)
            return Writer(ROOT)

    def accept(self, look: int) -> None:
        for candidate in self.schedule.next_batch(1):
            try:
                file = self.publish(candidate, look)
            except DiskFullError:
                self.schedule.lost([candidate])
                raise
            self.rows.append(
                row(
                    candidate.slot.key,
                    candidate.attempt,
                    file_name=file.file_name,
                    sha256=file.sha256,
                    num_bytes=file.num_bytes,
                )
            )
            self.accepted.append(candidate)

    def publish(self, candidate: Candidate, look: int) -> ImageFile:
        item = WriteItem(look, self.log.free_name(image_stem(candidate, FACETS)), {"id": candidate.id})
        while True:
            try:
                return self.writer.write(LOOKS, [item])[0]
            except Killed:  # the writer, not the driver
                self.writer = self.start_writer()

    def reject(self) -> None:
        for candidate in self.schedule.next_batch(1):
            self.rows.append(rejected(candidate.slot.key, candidate.attempt))
            self.schedule.judged(Outcome(candidate, "lighting"))

    def commit(self) -> None:
        for new in self.rows:
            self.ledger.tried.setdefault(new["id"], set()).add(told(new))
        self.log.commit(self.rows)
        for new in self.rows:
            assert new["id"] not in self.ledger.acknowledged, f"{new['id']} is acknowledged twice"
            self.ledger.acknowledged[new["id"]] = told(new)
        for candidate in self.accepted:
            self.schedule.accept(candidate)
        self.rows, self.accepted = [], []

    def close(self) -> None:
        self.commit()
        self.log.close("interrupted")


def time_on(disk: Disk) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=disk.now_s)


def told(row: dict[str, Any]) -> Told:
    return row["status"], row["sha256"]


class Violation(Exception):
    """A promise was broken."""


class World(RuleBasedStateMachine):
    """Drivers on a disk that fails, others who look after their run, and the promises that must hold."""

    def __init__(self, variant: Variant, happened: Counter[str]) -> None:
        super().__init__()
        self.variant = variant
        self.happened = happened
        self.disk = Disk()
        self.ledger = Ledger()
        self.drivers: list[Driver] = []
        self.newest_epoch = 0
        self.depth = 0
        self.violated = False

    def has(self, name: str) -> bool:
        return name not in self.variant.without

    def after(self, calls: Calls, fault: str, happen: Callable[[Process], object]) -> None:
        def noted(process: Process) -> None:
            self.happened[fault] += 1
            happen(process)

        names, number = calls
        self.disk.events.append(Event(number, noted, names))

    # ---- what drivers do, and what may come of it --------------------------------------------

    def some_driver(self, older: bool) -> Driver | None:
        """A driver at work, a new one if there is none; None if that cannot start."""
        if not self.drivers:
            self.start_driver()
        return self.drivers[0 if older else -1] if self.drivers else None

    def start_driver(self) -> None:
        driver = self.variant.driver(self.disk, self.variant, self.ledger)
        self.perform(driver, lambda: self.open_driver(driver))

    def open_driver(self, driver: Driver) -> None:
        driver.open()
        self.drivers.append(driver)
        self.newest_epoch = max(self.newest_epoch, driver.log.epoch)
        self.happened["opened"] += 1
        if driver.log.epoch == self.newest_epoch:  # nobody took it over while it opened
            self.check_rows(driver.log)

    def close_driver(self, driver: Driver) -> None:
        driver.close()
        self.end(driver)

    def commit_of_idle_drivers(self) -> None:
        for driver in list(self.drivers):
            if not driver.busy and driver in self.drivers:
                self.commit_of(driver)

    def commit_of(self, driver: Driver) -> None:
        overtaken = driver.rows and driver.log.epoch < self.newest_epoch

        def commit() -> None:
            driver.commit()
            assert not overtaken, "a driver that was taken over is not fenced"

        self.perform(driver, commit)

    def perform(self, driver: Driver, action: Callable[[], None]) -> None:
        """Do something as a driver, which may end it. Errors are right only where a fault explains them."""
        refused, crashed = self.disk.refused, False
        driver.busy = True
        self.depth += 1
        try:
            action()
        except (Killed, PowerLost):
            self.end(driver)
            crashed = True
        except FencedError as error:
            self.happened["fenced"] += 1
            self.end(driver)
            last = read_log(self.observed()).last
            if last is None or last.epoch <= driver.log.epoch:
                raise self.violation("fenced by nobody") from error
        except StorageError as error:
            if self.disk.refused == refused and not driver.had_a_failed_sync:
                raise self.violation("an error without a cause") from error
            self.happened["disk full" if isinstance(error, DiskFullError) else "disk error"] += 1
            if not isinstance(error, DiskFullError):
                self.end(driver)
        except Exception as error:
            raise self.violation(str(error)) from error
        finally:
            self.depth -= 1
            driver.busy = False
        if crashed and self.disk.has_power:
            self.check()

    def end(self, driver: Driver) -> None:
        if driver in self.drivers:
            self.drivers.remove(driver)

    def restart(self, choose: Choose) -> None:
        self.disk.restart(choose)
        self.drivers.clear()
        self.check()

    def work_as_a_new_driver(self) -> None:
        before = list(self.drivers)
        if self.depth <= 2:
            self.start_driver()
        for driver in list(self.drivers):
            if driver not in before:
                self.perform(driver, functools.partial(driver.accept, 0))
                if driver in self.drivers:
                    self.commit_of(driver)

    def perform_as_another(self, action: Callable[[LocalStorage], object], what: str) -> None:
        """Do something in a process of its own, which ends with it."""
        refused = self.disk.refused
        self.depth += 1
        try:
            action(self.variant.storage(ROOT, self.variant.process(self.disk)))
            self.happened[what] += 1
        except (Killed, PowerLost):
            pass
        except FencedError:
            self.happened["fenced"] += 1
        except UsageError as error:
            # Full disks may have kept a head from being written; without one gc asks for more.
            if not any(part in error.message for part in ("the run is in progress", "nothing proves")):
                raise self.violation(str(error)) from error
        except StorageError as error:
            if self.disk.refused == refused:
                raise self.violation("an error without a cause") from error
        except Exception as error:
            raise self.violation(str(error)) from error
        finally:
            self.depth -= 1
        if self.disk.has_power:
            last = read_log(self.observed()).last
            self.newest_epoch = max(self.newest_epoch, last.epoch if last else 0)
            self.check()

    # ---- the promises ------------------------------------------------------------------------

    def observed(self) -> LocalStorage:
        return LocalStorage(ROOT, Process(self.disk, observer=True))

    def violation(self, text: str) -> Violation:
        self.violated = True
        return Violation(text)

    def check(self) -> None:
        try:
            self.check_promises()
        except Exception as error:
            raise self.violation(str(error)) from error

    def check_promises(self) -> None:
        storage = self.observed()
        if not storage.exists(RUN_FILE):
            assert not self.newest_epoch, "a run that was opened is lost"
            return
        problems = check_run(storage).problems
        assert not problems, problems
        if storage.exists(INDEX_FILE):
            columns = ["id", "status", "sha256", "embedding"]
            found = manifest_in(storage).to_table(columns, status="all").to_pylist()
            assert found == read_log(storage, columns).table.to_pylist(), "queries differ from the log"

    def check_rows(self, log: ManifestLog) -> None:
        rows = {row["id"]: told(row) for row in log.table().select(["id", "status", "sha256"]).to_pylist()}
        lost = self.ledger.acknowledged.items() - rows.items()
        assert not lost, f"acknowledged rows are lost: {lost}"
        for id_, says in rows.items():
            assert says in self.ledger.tried[id_], f"{id_} was never tried so"

    def teardown(self) -> None:
        self.happened["schedules"] += 1
        if not self.violated:
            try:
                self.run_to_the_end()
            except Exception as error:
                raise self.violation(str(error)) from error

    def run_to_the_end(self) -> None:
        """A driver on a sound machine settles every slot that is open."""
        self.disk.restart(lambda what, options: options[0])
        self.disk.make_room()
        driver = self.variant.driver(self.disk, self.variant, self.ledger)
        driver.open()
        while batch := driver.schedule.next_batch(1):
            driver.schedule.lost(batch)
            if hashlib.sha256(batch[0].id.encode()).digest()[0] % 2:
                driver.accept(0)
                driver.commit()
            else:
                driver.reject()
        driver.close()
        self.check_rows(driver.log)
        self.check_promises()
        assert driver.schedule.done
        assert driver.schedule.open == 0
        self.happened["rows"] += len(self.ledger.acknowledged)


class Schedules(World):
    """Work goes on between faults. A fault is set to happen a number of system calls from now, whoever
    makes them: while a driver opens, a writer publishes, or a commit is half done."""

    # ---- work --------------------------------------------------------------------------------

    @precondition(lambda self: self.disk.works)
    @rule(older=st.booleans(), look=st.integers(0, 1))
    def accept(self, older, look):
        if driver := self.some_driver(older):
            self.perform(driver, lambda: driver.accept(look))

    @precondition(lambda self: self.disk.works and self.has("reject"))
    @rule(older=st.booleans())
    def reject(self, older):
        if driver := self.some_driver(older):
            self.perform(driver, driver.reject)

    @precondition(lambda self: self.disk.works and self.has("commit"))
    @rule(older=st.booleans())
    def commit(self, older):
        if driver := self.some_driver(older):
            self.commit_of(driver)

    @precondition(lambda self: self.disk.works and self.drivers and self.has("close"))
    @rule(older=st.booleans())
    def close(self, older):
        driver = self.drivers[0 if older else -1]
        self.perform(driver, lambda: self.close_driver(driver))

    @precondition(lambda self: self.disk.works and 0 < len(self.drivers) < 3)
    @rule()
    def open_another(self):
        self.start_driver()

    @precondition(lambda self: self.disk.has_power and self.has("collect"))
    @rule()
    def day_passes(self):
        """What lies about is old by now, and drivers that say nothing seem to be gone."""
        self.disk.now_s += 25 * 3600

    # ---- others who look after the run --------------------------------------------------------

    @precondition(lambda self: self.disk.works and self.newest_epoch and self.has("compact"))
    @rule(calls=CALLS, meanwhile=st.sampled_from([None, "kill", "power loss", "drivers commit"]))
    def compact(self, calls, meanwhile):
        self.interrupt(calls, meanwhile)
        self.perform_as_another(lambda storage: self.variant.compact(storage), "compacted")

    @precondition(lambda self: self.disk.works and self.newest_epoch and self.has("collect"))
    @rule(calls=CALLS, meanwhile=st.sampled_from([None, "kill", "drivers commit", "a driver works"]))
    def collect(self, calls, meanwhile):
        self.interrupt(calls, meanwhile)

        def collected(storage: LocalStorage) -> None:
            found = self.variant.collect(storage, DAY, now=lambda: time_on(self.disk))
            self.happened["leftovers deleted"] += len(found)
            self.happened["images deleted"] += sum(leftover.kind == IMAGE for leftover in found)

        self.perform_as_another(collected, "collected")

    def interrupt(self, calls: Calls, meanwhile: str | None) -> None:
        if meanwhile == "kill":
            self.after(calls, meanwhile, Process.kill)
        elif meanwhile == "power loss":
            self.after(calls, meanwhile, self.disk.lose_power)
        elif meanwhile == "drivers commit":
            self.after(calls, meanwhile, lambda process: self.commit_of_idle_drivers())
        elif meanwhile == "a driver works":
            self.after(calls, meanwhile, lambda process: self.work_as_a_new_driver())

    # ---- faults ------------------------------------------------------------------------------

    @precondition(lambda self: self.disk.works and self.has("crash"))
    @rule(calls=CALLS, fault=st.sampled_from(["kill", "power loss"]))
    def crash(self, calls, fault):
        self.after(calls, fault, Process.kill if fault == "kill" else self.disk.lose_power)

    @precondition(lambda self: self.disk.works and self.has("sync_error"))
    @rule(calls=CALLS)
    def sync_error(self, calls):
        self.after(calls, "sync error", lambda process: self.disk.fail_next_sync())

    @precondition(lambda self: self.disk.works and self.has("another_driver_acts"))
    @rule(calls=CALLS, opens=st.booleans())
    def another_driver_acts(self, calls, opens):
        if opens:
            self.after(calls, "another driver opens", lambda process: self.depth > 2 or self.start_driver())
        else:
            self.after(calls, "other drivers commit", lambda process: self.commit_of_idle_drivers())

    @precondition(lambda self: self.disk.read_only and self.disk.has_power)
    @rule()
    def machine_is_switched_off(self):
        self.disk.has_power = False

    @precondition(lambda self: not self.disk.has_power)
    @rule(data=st.data())
    def power_returns(self, data):
        def choose(what, options):
            self.happened[what] += 1
            return data.draw(st.sampled_from(options), label=what)

        self.restart(choose)

    @precondition(lambda self: self.disk.works and not self.disk.is_full and self.has("disk_fills"))
    @rule(
        room=st.sampled_from([None, 0, 100, 5000]),
        calls=st.frozensets(st.sampled_from(["open", "mkdir", "link", "rename", "fsync"]), max_size=2),
        until=st.integers(0, 40),
    )
    def disk_fills(self, room, calls, until):
        self.disk.room, self.disk.full_for = room, calls
        self.disk.events.append(Event(until, lambda process: self.disk.make_room()))


def search(variant: Variant, schedules: int, **options: Any) -> Counter[str]:
    happened: Counter[str] = Counter()
    chosen = settings(
        max_examples=schedules, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck), **options
    )
    run_state_machine_as_test(functools.partial(Schedules, variant, happened), settings=chosen)  # type: ignore[arg-type]
    return happened


def test_no_schedule_of_crashes_and_faults_breaks_a_promise():
    started_s = time.perf_counter()
    happened = search(Variant(), SCHEDULES)
    print(json.dumps(dict(happened) | {"seconds": round(time.perf_counter() - started_s)}))


# ---- what the search finds too seldom ------------------------------------------------------------


@pytest.mark.parametrize("careful", [True, False])
def test_the_copy_of_a_fragment_does_not_outlive_it(careful, monkeypatch):
    """A driver is killed when its fragment can be seen and nobody knows yet whether it is durable."""
    if not careful:
        monkeypatch.setattr(balancer.manifest.snapshot.build, "make_durable", lambda storage, path: None)
    disk = Disk()
    driver = Driver(disk, Variant(), Ledger())
    driver.open()
    driver.accept(0)
    disk.events.append(Event(0, Process.kill, ("unlink",)))
    with pytest.raises(Killed):
        driver.commit()
    assert compact(LocalStorage(ROOT, Process(disk))) is not None
    disk.has_power = False
    disk.restart(lambda what, options: options[0])  # what was not synced is lost
    rules = {problem.rule for problem in check_run(LocalStorage(ROOT, Process(disk, observer=True))).problems}
    assert rules == (set() if careful else {"log without gaps"})


# ---- the search finds what is broken -------------------------------------------------------------


class NoFileSync(Process):
    def fsync(self, fd):
        if isinstance(self.node_of(fd), Folder):
            super().fsync(fd)


class NoFolderSync(Process):
    def fsync(self, fd):
        if not isinstance(self.node_of(fd), Folder):
            super().fsync(fd)


class NamedBeforeSynced(Process):
    """Content is synced after it got its name."""

    def fsync(self, fd):
        if isinstance(self.node_of(fd), Folder):
            super().fsync(fd)
        else:
            self.unsynced = self.node_of(fd)

    def link(self, source, target):
        super().link(source, target)
        self.begin_call("fsync")
        self.unsynced.sync()

    def rename(self, source, target):
        super().rename(source, target)
        self.begin_call("fsync")
        self.unsynced.sync()


class AcknowledgedBeforeDurable(Process):
    """A folder is synced in the background, before the next file is begun."""

    unsynced: Folder | None = None

    def fsync(self, fd):
        if isinstance(node := self.node_of(fd), Folder):
            self.unsynced = node
        else:
            super().fsync(fd)

    def open(self, path, flags, mode=0o777):
        if flags & os.O_CREAT and self.unsynced is not None:
            self.begin_call("fsync")
            self.unsynced.sync()
        return super().open(path, flags, mode)


class Overwrites(Process):
    def link(self, source, target):
        self.rename(source, target)


class LooksBeforeItRenames(Process):
    """Create-only as long as nobody is quick enough."""

    def link(self, source, target):
        try:
            self.lstat(target)
        except FileNotFoundError:
            self.rename(source, target)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)


class SyncsAgain(Process):
    """As if a second fsync could do what the first could not."""

    def fsync(self, fd):
        try:
            super().fsync(fd)
        except OSError:
            super().fsync(fd)


class BelievesWritesAreWhole(Process):
    def write(self, fd, data):
        with suppress(OSError):
            super().write(fd, data)
        return len(data)


class TrustsFoldersItFinds(Process):
    """A folder that is there already is not synced, nor is its name, before something is added to it."""

    trusted: tuple[object, ...] = ()

    def mkdir(self, path):
        self.trusted = ()
        try:
            super().mkdir(path)
        except FileExistsError:
            self.trusted = (self.existing(path), self.existing(os.path.dirname(path)))
            raise

    def fsync(self, fd):
        if self.node_of(fd) in self.trusted:
            self.trusted = tuple(node for node in self.trusted if node is not self.node_of(fd))
        else:
            super().fsync(fd)


class NothingSyncedAboveTheRun(Process):
    def fsync(self, fd):
        if self.node_of(fd) not in (self.disk.root, self.disk.root.entries.get("simulated")):
            super().fsync(fd)


class InPlace(LocalStorage):
    """Under its own name from the first byte."""

    def create(self, path, data):
        target = self._target(path)
        with translated("create", target):
            try:
                self._write_synced(target, data, target)
            except FileExistsError:
                return False
        self._durability.sync_folder(os.path.dirname(target))
        return True


class HeadFirst(LocalStorage):
    """The head names a fragment that is not there yet."""

    def create(self, path, data):
        if seq := fragment_seq(path):
            fragment = SimpleNamespace(
                stamp=SimpleNamespace(seq=seq), known_as=hashlib.sha256(data).hexdigest()
            )
            write_head(self, INFO.run_id, fragment)
        return super().create(path, data)


class RowsBeforeImages(Driver):
    def publish(self, candidate, look):
        scratch = MemoryStorage()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(actors.models.writer, "open_storage", lambda uri, create: scratch)
            item = WriteItem(look, image_stem(candidate, FACETS), {"id": candidate.id})
            [file] = Writer("").write(LOOKS, [item])
        self.unpublished = [*getattr(self, "unpublished", []), (candidate, look)]
        return file

    def commit(self):
        super().commit()
        for image in getattr(self, "unpublished", []):
            super().publish(*image)
        self.unpublished = []


class UnsyncedCopies(LocalStorage):
    """Compacted files are written like any other, but nobody waits until they are on the disk."""

    def publish(self, path, data):
        careful = self._durability.sync
        if path.endswith(".parquet"):
            self._durability.sync = lambda fd, path, full_is_safe=True: None
        try:
            super().publish(path, data)
        finally:
            self._durability.sync = careful


class IndexFirst:
    """The index is published before the files it names."""

    def __init__(self, storage):
        self.storage, self.held = storage, []

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def publish(self, path, data):
        self.held.append((path, data))

    def replace(self, path, data):
        self.storage.replace(path, data)
        for file in reversed(self.held):
            self.storage.publish(*file)


def covering_too_much(storage):
    """The copy is said to cover what was committed while it was made."""
    compact(storage, rebuild=True)
    index, log = read_index(storage, INFO.run_id), read_log(storage)
    last = log.last
    sha256 = hashlib.sha256(storage.read(fragment_path(last.seq))).hexdigest()
    storage.replace(INDEX_FILE, encode_index(dataclasses.replace(index, covers=last.seq, sha256=sha256)))


def collecting_without_the_log(storage, older_than, now):
    """Deletes what was left over when it looked, whatever was committed since."""
    found = find_leftovers(storage, older_than, now)
    for leftover in found:
        storage.delete(leftover.path)
    return found


def collecting_unannounced(storage, older_than, now):
    """Takes the log over, but does not say what it is about to delete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ManifestLog, "doom", lambda log, paths: None)
        return delete_leftovers(storage, older_than, now)


LOST = "acknowledged rows are lost|is acknowledged twice|a run that was opened is lost"
DAMAGED = "fragment is whole|checksum|log without gaps|log is there|hash chain|head of the log|run.json"
DANGLING = "images are there|images have their"
WRONG_COPY = "compacted files|compacted rows|compacted copy|queries differ"

FAULTS = {"crash", "sync_error", "another_driver_acts", "disk_fills"}
WRITING = frozenset({"compact", "collect"})
MAKING_FOLDERS = frozenset({*WRITING, "sync_error", "disk_fills", "another_driver_acts", "reject", "close"})
COMPACTING = frozenset({"collect", "sync_error", "disk_fills", "close"})
COLLECTING = frozenset({*FAULTS, "compact", "close", "reject"})

BROKEN = {
    "the content of files is not synced": (
        Variant(NoFileSync, without=WRITING),
        f"{DAMAGED}|{DANGLING}",
    ),
    "folders are not synced": (Variant(NoFolderSync, without=WRITING), f"{LOST}|{DAMAGED}|{DANGLING}"),
    "files get their name before they are synced": (
        Variant(NamedBeforeSynced, without=WRITING),
        f"{DAMAGED}|{DANGLING}",
    ),
    "acknowledged before durable": (
        Variant(AcknowledgedBeforeDurable, without=WRITING),
        f"{LOST}|{DAMAGED}|{DANGLING}",
    ),
    "overwritten instead of created": (
        Variant(Overwrites, without=WRITING),
        f"{LOST}|{DAMAGED}|not fenced",
    ),
    "looked for, then renamed": (
        Variant(LooksBeforeItRenames, without=WRITING),
        f"{LOST}|{DAMAGED}|not fenced",
    ),
    "a failed sync is tried again": (Variant(SyncsAgain, without=WRITING), f"{DAMAGED}|{DANGLING}"),
    "short writes are taken for whole": (
        Variant(BelievesWritesAreWhole, without=WRITING),
        f"{DAMAGED}|{DANGLING}",
    ),
    "folders that are found count as durable": (
        Variant(TrustsFoldersItFinds, without=MAKING_FOLDERS),
        f"{LOST}|{DAMAGED}|{DANGLING}",
    ),
    "the folders above the run are not synced": (Variant(NothingSyncedAboveTheRun, without=WRITING), LOST),
    "fragments are written in place": (Variant(storage=InPlace, without=WRITING), DAMAGED),
    "the head is written before its fragment": (Variant(storage=HeadFirst, without=WRITING), DAMAGED),
    "rows are committed before their images": (Variant(driver=RowsBeforeImages, without=WRITING), DANGLING),
    "compacted files are not synced": (Variant(storage=UnsyncedCopies, without=COMPACTING), WRONG_COPY),
    "the index is published before its files": (
        Variant(compact=lambda storage: compact(IndexFirst(storage), rebuild=True), without=COMPACTING),
        WRONG_COPY,
    ),
    "the copy covers what was committed meanwhile": (
        Variant(compact=covering_too_much, without=COMPACTING),
        WRONG_COPY,
    ),
    "images are deleted without taking the log over": (
        Variant(collect=collecting_without_the_log, without=COLLECTING),
        DANGLING,
    ),
    "images are deleted without saying which": (
        Variant(collect=collecting_unannounced, without=COLLECTING | {"commit"}),
        DANGLING,
    ),
}


Course = Callable[[Schedules, int], None]
"""What happens to a world; the number says when the event in it comes about."""


def power_fails(world: Schedules, names: int = 0) -> None:
    """And returns; data that was not synced is lost. `names` is which of the entries that an unsynced name
    may have it gets: 0 for that before all changes, -1 for that after them."""
    world.disk.has_power = False
    world.restart(lambda what, options: options[0 if what == "unsynced data" else names])


def commit_one(world: Schedules, look: int = 0) -> None:
    world.accept(older=False, look=look)
    world.commit(older=False)


def all_unsynced_is_lost(world: Schedules, moment: int) -> None:
    commit_one(world)
    power_fails(world)


def unsynced_content_is_lost(world: Schedules, moment: int) -> None:
    commit_one(world)
    if world.has("compact"):
        world.compact(calls=((), 0), meanwhile=None)
    power_fails(world, names=-1)


def power_fails_at_work(world: Schedules, moment: int) -> None:
    world.crash(calls=(CHANGES, moment), fault="power loss")
    commit_one(world)
    power_fails(world, names=-1)


def a_process_dies_at_work(world: Schedules, moment: int) -> None:
    world.crash(calls=(CHANGES, moment), fault="kill")
    commit_one(world)
    commit_one(world)
    power_fails(world)


def a_process_dies_while_it_compacts(world: Schedules, moment: int) -> None:
    commit_one(world)
    world.compact(calls=(CHANGES, moment), meanwhile="kill")


def rows_are_committed_while_one_compacts(world: Schedules, moment: int) -> None:
    commit_one(world)
    world.accept(older=False, look=1)
    world.compact(calls=(CHANGES, moment), meanwhile="drivers commit")


def a_driver_takes_over_in_a_commit(world: Schedules, moment: int) -> None:
    world.accept(older=False, look=0)
    world.another_driver_acts(calls=(CHANGES, moment), opens=True)
    world.commit(older=True)
    commit_one(world)


def a_sync_fails_and_then_the_power(world: Schedules, moment: int) -> None:
    world.sync_error(calls=(("fsync",), moment))
    commit_one(world)
    power_fails(world, names=-1)


def the_disk_fills_up(world: Schedules, moment: int) -> None:
    world.accept(older=False, look=0)
    world.disk_fills(room=250 * moment, calls=frozenset(), until=1000)
    world.commit(older=False)
    world.disk.make_room()
    world.check()


def rows_are_committed_while_one_collects(world: Schedules, moment: int) -> None:
    world.accept(older=False, look=0)
    world.day_passes()
    world.collect(calls=(CHANGES, moment), meanwhile="drivers commit")


def a_driver_works_while_one_collects(world: Schedules, moment: int) -> None:
    world.accept(older=False, look=0)
    world.drivers.clear()
    world.day_passes()
    world.collect(calls=(CHANGES, moment), meanwhile="a driver works")


CAUGHT_BY: dict[str, Course] = {
    "the content of files is not synced": unsynced_content_is_lost,
    "folders are not synced": all_unsynced_is_lost,
    "files get their name before they are synced": power_fails_at_work,
    "acknowledged before durable": all_unsynced_is_lost,
    "overwritten instead of created": a_driver_takes_over_in_a_commit,
    "looked for, then renamed": a_driver_takes_over_in_a_commit,
    "a failed sync is tried again": a_sync_fails_and_then_the_power,
    "short writes are taken for whole": the_disk_fills_up,
    "folders that are found count as durable": a_process_dies_at_work,
    "the folders above the run are not synced": all_unsynced_is_lost,
    "fragments are written in place": a_process_dies_at_work,
    "the head is written before its fragment": a_process_dies_at_work,
    "rows are committed before their images": a_process_dies_at_work,
    "compacted files are not synced": unsynced_content_is_lost,
    "the index is published before its files": a_process_dies_while_it_compacts,
    "the copy covers what was committed meanwhile": rows_are_committed_while_one_compacts,
    "images are deleted without taking the log over": rows_are_committed_while_one_collects,
    "images are deleted without saying which": a_driver_works_while_one_collects,
}


EVENTS = {
    "kill", "power loss", "sync error", "disk full",
    "another driver opens", "drivers commit", "a driver works",
}  # fmt: skip


def play(variant: Variant, course: Course) -> Counter[str]:
    """The course with its event at each moment in turn, until it is over before that. Ends with the first
    violation."""
    happened: Counter[str] = Counter()
    for moment in itertools.count():
        before = sum(happened[event] for event in EVENTS)
        world = Schedules(variant, happened)
        course(world, moment)
        world.start_driver()  # which looks whether all rows are there
        world.check()
        if sum(happened[event] for event in EVENTS) == before:
            break
    return happened


@pytest.fixture
def logs_alone(monkeypatch):
    """A file that can be lost without loss would take most of each schedule."""
    monkeypatch.setattr("balancer.manifest.snapshot.current.write_current", lambda storage: None)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_promise_is_broken_when(fault, logs_alone):
    variant, expected = BROKEN[fault]
    with pytest.raises(Violation, match=expected):
        play(variant, CAUGHT_BY[fault])


@pytest.mark.parametrize("course", dict.fromkeys(CAUGHT_BY.values()), ids=lambda course: course.__name__)
def test_as_it_is_no_promise_is_broken_when(course, logs_alone):
    play(Variant(), course)


@pytest.mark.soak
@pytest.mark.parametrize("fault", BROKEN)
def test_the_search_finds_what_breaks_when(fault, logs_alone):
    variant, expected = BROKEN[fault]
    with pytest.raises(Violation, match=expected):
        search_twice(variant)


def search_twice(variant: Variant) -> None:
    """The same schedules as last time, and if those find nothing, others. What the first are depends on the
    modules that are loaded: hypothesis draws constants from them."""
    for derandomize in (True, False):
        search(
            variant,
            FOUND_WITHIN,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
