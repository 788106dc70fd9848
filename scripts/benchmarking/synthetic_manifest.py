"""Synthetic manifests of any size: valid fragments, as a driver writes them, without images.

Rows come from arrays instead of Python objects, and fragments are not synced one by one. Everything else is
as in a run: the schema, the encoding, the chain of hashes, and rows that follow from a plan, slot after slot
and attempt after attempt, behind those of real images in three splits. The same sizes give the same rows.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.dataset.splits import TEST, TRAIN, VALIDATION
from balancer.manifest import ManifestLog, RunInfo, create_run
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.layout import DOES_NOT_APPLY, IMAGES_DIR, fragment_path
from balancer.manifest.log.fragment import encode
from balancer.manifest.log.reader import load_fragment
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC
from balancer.planning.plan import make_plan
from balancer.runs.resume import cells_of_plan, describe_run
from balancer.storage import open_storage

CLASSES = 10
WITH_BURN_LEVEL = ("class8", "class9")
LIGHTINGS = ("dim", "warm", "daylight", "harsh")
BURN_LEVELS = ("slight", "moderate", "severe")
TABLES = ("on a wooden table", "on a slate board", "on a marble counter")

PASS_RATE = 0.7
ATTEMPTS = 4
REAL_SHARE = 0.01
"""Of the rows; of ten real images one is for validation and one for testing."""

BLOCK_ROWS = 65_536
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

Columns = dict[str, pa.Array]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def make_run(folder: Path, rows: int, embedding_dim: int) -> RunInfo:
    """A run folder without rows; the run is not done yet when it has that many."""
    config = _config(rows)
    models: dict[str, dict[str, Any]] = {
        "generator": {"model": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "4" * 40},
        "verifier": {"model": "open_clip:ViT-B-32", "revision": "5" * 40, "embedding_dim": embedding_dim},
    }
    info = describe_run(config, make_plan(config, {}), models)
    info = dataclasses.replace(info, run_id=f"{rows:032x}", created_at=NOON.isoformat())
    return create_run(open_storage(folder, create=True), info)


def write_manifest(folder: Path, rows: int, fragment_rows: int, embedding_dim: int) -> RunInfo:
    """A run folder with a log of this many rows, in fragments of this size."""
    info = make_run(folder, rows, embedding_dim)
    storage = open_storage(folder, create=False)
    ManifestLog.open(storage, info.schema(), info.run_id, now=lambda: NOON)
    last = load_fragment(storage, 1, info.schema())
    stamp, sha256 = last.stamp, last.known_as
    for block in blocks(info, rows):
        for start in range(0, block.num_rows, fragment_rows):
            stamp = dataclasses.replace(
                stamp, seq=stamp.seq + 1, event="rows", commit=uuid.uuid4().hex, prev_sha256=sha256
            )
            data = encode(block.slice(start, fragment_rows), stamp)
            sha256 = hashlib.sha256(data).hexdigest()
            (folder / fragment_path(stamp.seq)).write_bytes(data)
    return info


def blocks(info: RunInfo, rows: int) -> Iterator[pa.Table]:
    """The rows of a run, in parts; the real images come first."""
    chance = np.random.default_rng(0)
    filler = _Filler(chance, info.embedding_dim)
    real = int(rows * REAL_SHARE)
    for first in range(0, real, BLOCK_ROWS):
        yield _table(info, _real(np.arange(first, min(first + BLOCK_ROWS, real)), filler))
    plan = _Plan(info)
    of_row, attempts, accepted = _attempts(plan.slots, rows - real, chance)
    for first in range(0, rows - real, BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        yield _table(info, _candidates(plan, of_row[part], attempts[part], accepted[part], filler))


def _config(rows: int) -> Config:
    slots = 1.1 * rows * PASS_RATE
    burns = {name: {"prompts": [f"with {name} burns"]} for name in BURN_LEVELS}
    return Config.model_validate(
        {
            "dataset": {"path": "none"},
            "classes": {
                f"class{number}": {"prompts": [f"a picture of kind {number}", f"one of kind {number}"]}
                for number in range(CLASSES)
            },
            "facets": {
                "lighting": {"values": {name: {"prompts": [f"in {name} light"]} for name in LIGHTINGS}},
                "burn_level": {"classes": list(WITH_BURN_LEVEL), "values": burns},
            },
            "target": {"per_class": int(slots / CLASSES) + 1},
            "attempts": {"max": ATTEMPTS - 1, "fallback": {}},
        }
    )


class _Plan:
    """The slots of a run in a mixed order: the cell of each, and its number in the cell."""

    def __init__(self, info: RunInfo) -> None:
        self.cells = list(cells_of_plan(info).values())
        self.slots = np.repeat(np.arange(len(self.cells)), [int(item["quota"]) for item in info.plan])
        np.random.default_rng(1).shuffle(self.slots)
        order = np.argsort(self.slots, kind="stable")
        starts = np.searchsorted(self.slots[order], np.arange(len(self.cells)))
        self.numbers = np.empty_like(order)
        self.numbers[order] = np.arange(1, len(order) + 1) - starts[self.slots[order]]
        self.keys = _texts([cell.key for cell in self.cells])
        self.folders = _texts([_folder(cell, info.facets) for cell in self.cells])
        self.prompts = _texts([_prompt(cell, table) for cell in self.cells for table in TABLES])
        self.values = {name: [cell.value(name) for cell in self.cells] for name in info.facets}
        self.values["class"] = [cell.class_name for cell in self.cells]


def _folder(cell: Cell, facets: Sequence[str]) -> str:
    return "/".join([IMAGES_DIR, cell.class_name, *(cell.value(name) or DOES_NOT_APPLY for name in facets)])


def _prompt(cell: Cell, table: str) -> str:
    return f"a picture of {cell.class_name}, {', '.join(value for _, value in cell.facets)}, {table}, photo"


def _attempts(slots: Numbers, rows: int, chance: np.random.Generator) -> tuple[Numbers, Numbers, Flags]:
    """For each candidate its slot, which attempt it is, and whether it passes."""
    needed = chance.geometric(PASS_RATE, len(slots))
    made = np.minimum(needed, ATTEMPTS)
    of_row = np.repeat(np.arange(len(slots)), made)[:rows]
    if len(of_row) < rows:
        raise ValueError(f"a plan of {len(slots)} slots gives {len(of_row)} candidates, not {rows}")
    attempts = np.arange(1, rows + 1) - (np.cumsum(made) - made)[of_row]
    return of_row, attempts, attempts == needed[of_row]


# ---- columns ---------------------------------------------------------------------------------------


class _Filler:
    """Random values with the size and variety of real ones."""

    def __init__(self, chance: np.random.Generator, embedding_dim: int) -> None:
        self.chance = chance
        self._dim = embedding_dim
        self._noise = chance.standard_normal(2 * BLOCK_ROWS * embedding_dim, np.float32).astype("<f2")

    def hex(self, rows: int, digits: int) -> pa.Array:
        text = self.chance.bytes(rows * digits // 2).hex().encode()
        offsets = np.arange(0, len(text) + 1, digits, dtype=np.int32)
        return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text))

    def embeddings(self, rows: int) -> pa.Array:
        start = int(self.chance.integers(len(self._noise) - rows * self._dim))
        noise = pa.array(self._noise[start : start + rows * self._dim])
        return pa.FixedSizeListArray.from_arrays(noise, self._dim)

    def uniform(self, rows: int, low: float = 0.0, high: float = 1.0) -> pa.Array:
        return pa.array(self.chance.uniform(low, high, rows))

    def probabilities(self, rows: int, values: int) -> pa.Array:
        scores = self.chance.random((rows, values), np.float32)
        scores /= scores.sum(axis=1, keepdims=True)
        return pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), values)

    def image(self, rows: int) -> Columns:
        """The columns of every image."""
        return {
            "pixel_sha256": self.hex(rows, 64),
            "phash": self.hex(rows, 16),
            EMBEDDING: self.embeddings(rows),
            "width": _constant(1024, rows, pa.int32()),
            "height": _constant(1024, rows, pa.int32()),
        }

    def file(self, rows: int) -> Columns:
        num_bytes = pa.array(self.chance.integers(900_000, 1_900_000, rows))
        return {"sha256": self.hex(rows, 64), "num_bytes": num_bytes}


def _real(numbers: Numbers, filler: _Filler) -> Columns:
    rows = len(numbers)
    names = pc.binary_join_element_wise(
        _texts([f"class{number}/photo" for number in range(CLASSES)]).take(pa.array(numbers % CLASSES)),
        _padded(numbers, 7),
        "-",
    )
    splits = np.zeros(10, np.int64)
    splits[-2:] = 1, 2
    return (
        filler.image(rows)
        | filler.file(rows)
        | {
            "id": pc.binary_join_element_wise("real", names, "/"),
            "file_name": pc.binary_join_element_wise("real/", names, ".jpg", ""),
            "class": _named([f"class{number}" for number in range(CLASSES)], numbers % CLASSES),
            "source": _constant(REAL, rows),
            "status": _constant(ACCEPTED, rows),
            "review": _constant(False, rows),
            "split": _texts([TRAIN, VALIDATION, TEST]).take(pa.array(splits[(numbers + numbers // 10) % 10])),
        }
    )


def _candidates(plan: _Plan, of_row: Numbers, attempts: Numbers, accepted: Flags, filler: _Filler) -> Columns:
    rows = len(of_row)
    cells, numbers = plan.slots[of_row], _padded(plan.numbers[of_row], 4)
    slots = pc.binary_join_element_wise(plan.keys.take(pa.array(cells)), numbers, "/")
    tries = pa.array(attempts).cast(pa.string())
    files = pc.binary_join_element_wise(
        plan.folders.take(pa.array(cells)),
        pc.binary_join_element_wise(numbers, tries, filler.hex(rows, 12), "-"),
        "/",
    )
    passed = pa.array(accepted)
    columns = filler.image(rows) | _judged(plan, cells, accepted, filler)
    columns |= {
        name: pc.if_else(passed, of, pa.scalar(None, of.type)) for name, of in filler.file(rows).items()
    }
    wording = (plan.numbers[of_row] + attempts) % len(TABLES)
    return columns | {
        "id": pc.binary_join_element_wise(slots, tries, "-"),
        "file_name": pc.if_else(passed, pc.binary_join_element_wise(files, "png", "."), None),
        "cell": plan.keys.take(pa.array(cells)),
        "slot": slots,
        "attempt": pa.array(attempts, pa.int32()),
        "source": _constant(SYNTHETIC, rows),
        "fallback": pa.array(attempts == ATTEMPTS),
        "threshold": pa.array(np.where(attempts == ATTEMPTS, 0.5, 0.6)),
        "prompt": plan.prompts.take(pa.array(cells * len(TABLES) + wording)),
        "negative_prompt": _constant("text, watermark, blurred, drawing", rows),
        "wording": pa.array(wording, pa.int32()),
        "changes": _empty_lists(rows),
        "unjudged": _empty_lists(rows),
        "seed": pa.array(filler.chance.integers(2**64, size=rows, dtype=np.uint64)),
        "model": _constant("stabilityai/stable-diffusion-xl-base-1.0", rows),
        "model_revision": _constant("4" * 40, rows),
        "verifier": _constant("open_clip:ViT-B-32", rows),
        "verifier_revision": _constant("5" * 40, rows),
        "steps": _constant(30, rows, pa.int32()),
        "guidance": _constant(7.5, rows),
        "split": _constant(TRAIN, rows),
        "device": _constant("cuda:0", rows),
        "batch_size": _constant(8, rows, pa.int32()),
        "generated_at": pa.array(
            np.datetime64("2026-03-01T12:00", "us") + 250_000 * of_row.astype("timedelta64[us]")
        ).cast(pa.timestamp("us", "UTC")),
    }


def _judged(plan: _Plan, cells: Numbers, accepted: Flags, filler: _Filler) -> Columns:
    """The wanted values of candidates, and the verifier's scores."""
    rows, passed = len(cells), pa.array(accepted)
    scores = pc.if_else(passed, filler.uniform(rows, 0.6, 1.0), filler.uniform(rows, 0.0, 0.6))
    values = {"class": CLASSES, "lighting": len(LIGHTINGS), "burn_level": len(BURN_LEVELS)}
    columns = {name: _named(*_coded(plan.values[name], cells)) for name in values}
    return columns | {
        "status": pc.if_else(passed, ACCEPTED, REJECTED),
        "reason": pc.if_else(passed, None, "lighting"),
        "review": pa.array(filler.chance.random(rows) < 0.02),
        "score": scores,
        "scores": pa.StructArray.from_arrays(
            [pc.if_else(columns[name].is_valid(), scores, None) for name in values], list(values)
        ),
        "probabilities": pa.StructArray.from_arrays(
            [filler.probabilities(rows, count) for count in values.values()], list(values)
        ),
        "brightness": filler.uniform(rows),
        "deviation": filler.uniform(rows),
        "nonfinite": _constant(0, rows, pa.int32()),
        "nearest_id": pc.binary_join_element_wise(
            "real/class0/photo", pa.array(filler.chance.integers(10**6, size=rows)).cast(pa.string()), "-"
        ),
        "nearest_distance": pa.array(filler.chance.integers(10, 30, rows), pa.int32()),
        "nearest_similarity": filler.uniform(rows),
    }


def _table(info: RunInfo, columns: Columns) -> pa.Table:
    rows = len(columns["id"])
    columns = columns | {"run_id": _constant(info.run_id, rows)}
    schema = info.schema()
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    if unknown := columns.keys() - set(schema.names):
        raise ValueError(f"a manifest has no column {', '.join(sorted(unknown))}")
    return pa.Table.from_arrays(arrays, schema=schema)


def _coded(values: Sequence[str | None], numbers: Numbers) -> tuple[list[str], Any]:
    """Distinct values, and the index of each number's value, masked if it has none."""
    names = list(dict.fromkeys(value for value in values if value is not None))
    codes = np.array([-1 if value is None else names.index(value) for value in values])[numbers]
    return names, np.ma.masked_less(codes, 0)


def _named(names: Sequence[str], codes: Any) -> pa.Array:
    mask = np.ma.getmaskarray(codes)
    return pa.DictionaryArray.from_arrays(
        pa.array(np.ma.getdata(codes), pa.int32(), mask=mask), _texts(names)
    )


def _padded(numbers: Numbers, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def _constant(value: Any, rows: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), rows)


def _empty_lists(rows: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.string()))


def _texts(values: Sequence[str]) -> pa.Array:
    return pa.array(values, pa.string())
