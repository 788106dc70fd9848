"""The cost of a manifest of millions of rows: commit, resume, compact, query, train.

Each case has its own process, to measure its memory; files are in the page cache.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.dataset.splits import EVALUATION
from balancer.manifest import ManifestLog, read_run
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.layout import DATA_DIR, LOG_DIR
from balancer.manifest.query.rows import Filter, Status
from balancer.manifest.snapshot.build import compact
from balancer.run_manifest import Manifest, open_manifest
from balancer.runs.resume import effective_config, restore_schedule
from balancer.storage import open_storage
from benchmarking.record import keep_option, save
from benchmarking.synthetic_manifest import blocks, make_run, write_manifest

HIGH, HIGH_IN_SQL = pc.field("score") >= 0.8, "score >= 0.8"
FEW = HIGH & pc.field("class").isin(["class1", "class8"])
FEW_IN_SQL = f"{HIGH_IN_SQL} and class in ('class1', 'class8')"
LOOKED_AT = ["id", "file_name", "class", "lighting", "score"]

Figures = dict[str, Any]


@click.command("manifest")
@keep_option
@click.option("--rows", default=1_000_000, show_default=True, help="Of the log that a run goes on from.")
@click.option(
    "--fragment-rows", default=64, show_default=True, help="Of that log; 64 is the default of a run."
)
@click.option("--embedding-dim", default=512, show_default=True, help="Of that log.")
@click.option("--large-rows", default=10_000_000, show_default=True, help="Of the log that is asked.")
@click.option("--large-fragment-rows", default=4096, show_default=True, help="Of that log.")
@click.option("--large-embedding-dim", default=16, show_default=True, help="Of that log.")
@click.option("--commit-rows", default="64,256,1024", show_default=True)
@click.option("--commits", default=200, show_default=True, help="Of each size.")
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False),
    help="Where to write up to 15 GB; a temporary one otherwise.",
)
def command(
    rows: int,
    fragment_rows: int,
    embedding_dim: int,
    large_rows: int,
    large_fragment_rows: int,
    large_embedding_dim: int,
    commit_rows: str,
    commits: int,
    repeats: int,
    folder: str | None,
) -> None:
    """Synthetic manifests: durable commits, resume, compaction, queries of the compacted copy, to_torch."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        figures: Figures = {
            "repeats": repeats,
            "commits": [
                _apart(_commits, f"{name}/commits{size}", int(size), commits, embedding_dim)
                for size in commit_rows.split(",")
            ],
        }
    with tempfile.TemporaryDirectory(dir=folder) as name:
        figures["log"] = _apart(_written, name, rows, fragment_rows, embedding_dim)
        resumed = [_apart(_resumed, name) for _ in range(repeats)]
        figures["resume"] = _median(resumed, "seconds")
        figures["compaction"] = _apart(_compacted, name)
        figures["to_torch"] = _apart(_to_torch, name, repeats)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        figures["large_log"] = _apart(_written, name, large_rows, large_fragment_rows, large_embedding_dim)
        figures["large_compaction"] = _apart(_compacted, name)
        figures["queries"] = [_apart(_asked, name, kind, repeats) for kind in QUERIES]
    save("manifest", figures | {"benchmark_s": round(time.perf_counter() - began)})


def _apart(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    """In a fresh process, whose peak memory is added to the figures."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(_with_memory, (measure, *arguments))
    click.echo(json.dumps(figures), err=True)
    return figures


def _with_memory(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    figures = measure(*arguments)
    return figures | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def _median(cases: Sequence[Figures], by: str) -> Figures:
    return sorted(cases, key=lambda case: case[by])[len(cases) // 2]


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


# ---- cases -----------------------------------------------------------------------------------------


def _commits(folder: str, size: int, commits: int, embedding_dim: int) -> Figures:
    """As the driver commits: rows that are Python objects, each fragment durable before the next begins."""
    info = make_run(Path(folder), size * (commits + 1), embedding_dim)
    log = ManifestLog.open(open_storage(folder, create=False), info.schema(), info.run_id)
    seconds: list[float] = []
    table = pa.concat_tables(list(blocks(info, size * (commits + 1))))
    for start in range(0, size * (commits + 1), size):
        rows = _as_rows(table.slice(start, size))
        with _timed(seconds):
            log.commit(rows)
    p50, p99 = 1000 * np.percentile(seconds[1:], [50, 99])  # the first one makes folders durable
    return {"rows": size, "commits": commits, "ms_p50": round(p50, 2), "ms_p99": round(p99, 2)}


def _as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Embeddings are bytes, as verifiers hand them over."""
    vectors = np.asarray(table[EMBEDDING].combine_chunks().flatten()).reshape(table.num_rows, -1)
    rows = table.drop_columns([EMBEDDING]).to_pylist()
    return [row | {EMBEDDING: vector.tobytes()} for row, vector in zip(rows, vectors, strict=True)]


def _written(folder: str, rows: int, fragment_rows: int, embedding_dim: int) -> Figures:
    seconds: list[float] = []
    with _timed(seconds):
        write_manifest(Path(folder), rows, fragment_rows, embedding_dim)
    return {
        "rows": rows,
        "fragment_rows": fragment_rows,
        "embedding_dim": embedding_dim,
        "seconds": round(seconds[0], 1),
        "megabytes": _megabytes(folder, LOG_DIR),
    }


def _resumed(folder: str) -> Figures:
    """The work of a run on its log before the first batch."""
    storage = open_storage(folder, create=False)
    info = read_run(storage)
    seconds: list[float] = []
    with _timed(seconds):
        log = ManifestLog.open(storage, info.schema(), info.run_id)
    with _timed(seconds):
        schedule = restore_schedule(info, effective_config(info, log.rules), log.kept(), None)
    return {
        "open_s": round(seconds[0], 2),
        "schedule_s": round(seconds[1], 2),
        "seconds": round(sum(seconds), 2),
        "candidates": schedule.candidates,
    }


def _compacted(folder: str) -> Figures:
    seconds: list[float] = []
    with _timed(seconds):
        index = compact(open_storage(folder, create=False))
    return {
        "seconds": round(seconds[0], 1),
        "megabytes": _megabytes(folder, DATA_DIR),
        "files": len(index.files) if index else 0,
        "rows": index.rows if index else 0,
    }


def _to_torch(folder: str, repeats: int) -> Figures:
    """A dataset of training images, including the search for copies of held-out images."""
    import torch.utils.data  # noqa: F401  (its import is no part of the figures)

    repeated: list[Figures] = []
    for _ in range(repeats):
        seconds: list[float] = []
        with _timed(seconds):
            manifest = open_manifest(folder)
        with _timed(seconds):
            dataset = manifest.to_torch(facets=["lighting"])
        repeated.append(
            {"images": len(dataset), "open_s": round(seconds[0], 3), "seconds": round(sum(seconds), 3)}
        )
    held_out = manifest.count_by(filter=pc.field("split").isin(EVALUATION))["count"][0].as_py()
    return _median(repeated, "seconds") | {"held_out": held_out}


def _asked(folder: str, kind: str, repeats: int) -> Figures:
    """The manifest is opened once and queried several times; the first query is reported separately."""
    opened: list[float] = []
    with _timed(opened):
        manifest = open_manifest(folder)
    query = QUERIES[kind]
    seconds: list[float] = []
    for _ in range(repeats + 1):
        with _timed(seconds):
            rows = query(manifest)
    return {
        "query": kind,
        "rows": rows,
        "open_s": round(opened[0], 3),
        "first_s": round(seconds[0], 3),
        "seconds": round(statistics.median(seconds[1:]), 3),
    }


def _count(manifest: Manifest, condition: Filter | None, status: Status = "accepted") -> int:
    counts = manifest.count_by("class", "lighting", filter=condition, status=status)
    return int(pc.sum(counts["count"]).as_py())


def _first_batch(manifest: Manifest) -> int:
    batches = manifest.dataset().scanner(columns=LOOKED_AT, filter=FEW).to_batches()
    return next(batch.num_rows for batch in batches if batch.num_rows)


QUERIES: dict[str, Callable[[Manifest], int]] = {
    "count of all": lambda manifest: _count(manifest, None, "all"),
    "count where score >= 0.8, as an expression": lambda manifest: _count(manifest, HIGH),
    "count where score >= 0.8, in SQL": lambda manifest: _count(manifest, HIGH_IN_SQL),
    "count of the same in two classes, as an expression": lambda manifest: _count(manifest, FEW),
    "count of the same in two classes, in SQL": lambda manifest: _count(manifest, FEW_IN_SQL),
    "first batch of a scan of these": _first_batch,
}
"""By class and lighting; the scan reads five columns."""


def _megabytes(folder: str, part: str) -> int:
    return round(
        sum(path.stat().st_size for path in (Path(folder) / part).rglob("*") if path.is_file()) / 1e6
    )
