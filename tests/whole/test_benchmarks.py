"""The benchmark scripts run, and the page of their results is up to date; figures are not judged here."""

from __future__ import annotations

import functools
import json
import shutil

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from balancer import open_manifest
from balancer.manifest import ManifestLog, read_log, read_run
from balancer.manifest.layout import fragment_path
from balancer.manifest.log.fragment import decode
from balancer.runs.resume import effective_config, restore_schedule
from balancer.storage import open_storage
from bench import main
from benchmarking import page, record
from benchmarking import synthetic_manifest as synthetic
from benchmarking.driver import _whole_driver
from benchmarking.families import LEAST_LEVELS
from benchmarking.fleet import _figures
from benchmarking.manifest import QUERIES, _with_memory
from benchmarking.plan import _whole_command
from benchmarking.simulated_job import Job
from tiny_pipelines import PIPELINES


@pytest.mark.parametrize("name", page.PAGES)
def test_a_page_of_figures_shows_the_results_that_are_kept(name):
    assert page.PAGES[name].read_text() == page.page(name)


def test_every_result_says_where_it_was_measured(project):
    results = [json.loads(path.read_text()) for path in (project / "benchmarks").glob("*.json")]
    assert results
    for result in results:
        assert {"cpu", "cores", "python", "packages", "device"} <= result["machine"].keys()


def test_no_family_ignores_a_setting_in_silence(project):
    measured = json.loads((project / "benchmarks" / "families.json").read_text())["families"]
    assert [one["family"] for one in measured] == list(PIPELINES)
    for one in measured:
        for setting in (one["guidance"], one["negative"]):
            assert (setting["levels"] >= LEAST_LEVELS) is not setting["refused"]
        assert one["neighbours"]["levels"] == 0
        assert one["neighbours"]["alone"] or not any(one["neighbours"]["levels_in_a_batch"].values())
        assert all(result == "made" or result.startswith("refused: ") for result in one["sizes"].values())


def test_without_a_gpu_the_benchmark_of_sdxl_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, ["sdxl"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "needs a CUDA GPU" in result.stderr


@pytest.mark.parametrize(
    "benchmark",
    [
        "audit",
        "crashes",
        "driver",
        "embedded",
        "encode",
        "endings",
        "families",
        "fleet",
        "gate",
        "gate_product",
        "ladder",
        "manifest",
        "peers",
        "plan",
        "review",
        "sdxl",
        "verify",
    ],
)
def test_every_benchmark_can_be_asked_for_help(benchmark):
    assert CliRunner().invoke(main, [benchmark, "--help"]).exit_code == 0


@pytest.mark.parametrize("keep", [True, False])
def test_a_benchmark_is_kept_if_asked_with_the_machine_it_ran_on(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarking.plan._case", lambda classes, repeats: {"classes": classes})
    whole_command = functools.partial(_whole_command, 2)
    monkeypatch.setattr("benchmarking.plan._whole_command", lambda classes, repeats: whole_command(1))
    result = CliRunner().invoke(main, ["plan", *["--keep"] * keep])
    assert result.exit_code == 0
    if not keep:
        assert list(tmp_path.iterdir()) == []
        return
    assert (tmp_path / "plan.json").read_text() == result.stdout
    kept = json.loads(result.stdout)
    assert (kept["benchmark"], [case["classes"] for case in kept["cases"]]) == ("plan", [6, 100, 1000, 2000])
    assert kept["command"]["cells"] == 120
    assert kept["command"]["seconds"] > 0


def test_the_whole_driver_is_measured_in_virtual_time():
    found = _whole_driver(generators=4, images=40)
    assert found["candidates"] >= found["images"] == 40
    assert found["ms_per_candidate"] > 0


def test_efficiency_is_what_was_made_over_what_was_possible():
    """Two generators that are ready at once, batches of 8 in 2 s; one waits 2 s once."""
    spans = {
        "generator": [[(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)], [(0.0, 2.0), (4.0, 6.0)]],
        "writer": [[(6.0, 6.1)]],
    }
    job = Job(began=-5.0, accepted=30, candidates=38, ready=[0.0, 0.0], spans=spans)
    found = _figures(job, generators=2, service_s=2.0)
    assert found["efficiency"] == pytest.approx(5 / 6, abs=1e-4)
    assert (found["start_s"], found["steady_s"]) == (5.0, 6.0)
    assert (found["idle_gap_ms_p50"], found["idle_gap_ms_p99"]) == (0.0, 2000.0)
    assert found["made_ahead_and_not_needed"] == 2
    assert found["last_image_over_bound"] == pytest.approx(6.1 / (3 * 2.0 + 0.1), abs=1e-4)


def test_the_bound_takes_generators_from_when_they_were_ready():
    """One is ready 3 s late: four batches of 2 s end at 6 s if the other makes three, not at 4 s."""
    spans = {"generator": [[(0.5, 2.5), (2.5, 4.5), (4.5, 6.5)], [(3.0, 5.0)]], "writer": [[(6.6, 6.7)]]}
    job = Job(began=-5.0, accepted=30, candidates=32, ready=[0.0, 3.0], spans=spans)
    found = _figures(job, generators=2, service_s=2.0)
    assert found["last_image_over_bound"] == pytest.approx(6.7 / 6.1, abs=1e-4)


def test_the_benchmark_of_manifests_measures_every_case_on_whatever_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarking.manifest._apart", _with_memory)  # twelve processes take their time
    sizes = {"--rows": 2000, "--embedding-dim": 4, "--large-rows": 3000, "--large-fragment-rows": 500}
    sizes |= {"--commit-rows": "2,8", "--commits": 3, "--repeats": 1, "--folder": tmp_path}
    arguments = [str(part) for option in sizes.items() for part in option]
    result = CliRunner().invoke(main, ["manifest", "--keep", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    kept = json.loads((tmp_path / "manifest.json").read_text())
    assert [case["rows"] for case in kept["commits"]] == [2, 8]
    assert all(0 < case["ms_p50"] <= case["ms_p99"] for case in kept["commits"])
    assert kept["resume"]["candidates"] == 1980  # the rows less those of real images
    assert (kept["compaction"]["rows"], kept["large_compaction"]["rows"]) == (2000, 3000)
    assert 0 < kept["to_torch"]["held_out"] < kept["to_torch"]["images"] < 2000
    rows = {case["query"]: case["rows"] for case in kept["queries"]}
    everything, high, high_in_sql, few, few_in_sql, first_batch = (rows[kind] for kind in QUERIES)
    assert 0 < first_batch <= few == few_in_sql < high == high_in_sql < everything == 3000
    assert not list(tmp_path.glob("tmp*"))


@pytest.fixture(scope="module")
def synthetic_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    info = synthetic.write_manifest(folder, rows=1500, fragment_rows=64, embedding_dim=4)
    return folder, info


def test_a_synthetic_manifest_is_one_that_a_driver_goes_on_with(synthetic_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(synthetic_run[0], folder)
    storage = open_storage(folder, create=False)
    info = read_run(storage)
    log = ManifestLog.open(storage, info.schema(), info.run_id)
    schedule = restore_schedule(info, effective_config(info, log.rules), log.kept(), None)
    assert schedule.candidates == 1485
    assert 0 < len(schedule.accepted) < info.wanted
    assert not schedule.done
    log.commit([log.table().slice(0, 1).to_pylist()[0] | {"id": "one more"}])
    assert read_log(storage).table.num_rows == 1501


def test_every_fragment_of_a_synthetic_manifest_has_its_checksum_and_its_rows(synthetic_run):
    folder, info = synthetic_run
    sizes = []
    for seq in range(2, read_log(open_storage(folder, create=False)).fragments + 1):
        sizes.append(decode((folder / fragment_path(seq)).read_bytes(), seq, info.schema()).table.num_rows)
    assert sizes == [15, *[64] * 23, 13]  # real images, candidates


def test_rows_of_a_synthetic_manifest_are_told_apart_and_say_what_those_of_a_run_say(synthetic_run):
    folder, info = synthetic_run
    rows = open_manifest(folder).to_table(status="all").to_pylist()
    assert len({row["id"] for row in rows}) == 1500
    made = [row for row in rows if row["source"] == "synthetic"]
    for row in made:
        assert row["id"] == f"{row['slot']}-{row['attempt']}"
        values = [row["class"], *(row[name] for name in info.facets if row[name] is not None)]
        assert row["cell"] == "/".join(values)
        assert (row["status"] == "accepted") == (row["reason"] is None) == (row["file_name"] is not None)
        assert (len(row["embedding"]), len(row["pixel_sha256"]), len(row["phash"])) == (4, 64, 16)
    assert {row["split"] for row in rows if row["source"] == "real"} == {"train", "validation", "test"}
    accepted = [row["slot"] for row in made if row["status"] == "accepted"]
    assert len(accepted) == len(set(accepted))


def test_the_same_sizes_give_the_same_rows(synthetic_run):
    folder, info = synthetic_run
    again = pa.concat_tables(list(synthetic.blocks(info, 1500)))
    assert again.to_pylist() == read_log(open_storage(folder, create=False)).table.to_pylist()
