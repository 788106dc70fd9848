"""The benchmark scripts run, and the page of their results is up to date; figures are not judged here."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from bench import main
from benchmarking import page, record
from benchmarking.fleet import _figures
from benchmarking.simulated_job import Job


@pytest.mark.parametrize("name", page.PAGES)
def test_a_page_of_figures_shows_the_results_that_are_kept(name):
    assert page.PAGES[name].read_text() == page.page(name)


def test_every_result_says_where_it_was_measured(project):
    results = [json.loads(path.read_text()) for path in (project / "benchmarks").glob("*.json")]
    assert results
    for result in results:
        assert {"cpu", "cores", "python", "packages", "device"} <= result["machine"].keys()


def test_without_a_gpu_the_benchmark_of_sdxl_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, ["sdxl"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "needs a CUDA GPU" in result.stderr


@pytest.mark.parametrize(
    "benchmark", ["crashes", "driver", "embedded", "encode", "fleet", "ladder", "peers", "plan", "sdxl", "verify"]
)
def test_every_benchmark_can_be_asked_for_help(benchmark):
    assert CliRunner().invoke(main, [benchmark, "--help"]).exit_code == 0


def test_a_benchmark_is_kept_with_the_machine_it_ran_on(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarking.plan._case", lambda classes, repeats: {"classes": classes})
    assert CliRunner().invoke(main, ["plan"]).exit_code == 0
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert (kept["benchmark"], [case["classes"] for case in kept["cases"]]) == ("plan", [6, 100, 1000])


def test_efficiency_is_what_was_made_over_what_was_possible():
    """Two generators, batches of 8 in 2 s; one waits 2 s once."""
    spans = {
        "generator": [[(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)], [(0.0, 2.0), (4.0, 6.0)]],
        "writer": [[(6.0, 6.1)]],
    }
    job = Job(began=-5.0, accepted=30, candidates=38, spans=spans)
    found = _figures(job, generators=2, service_s=2.0)
    assert found["efficiency"] == pytest.approx(5 / 6, abs=1e-4)
    assert (found["start_s"], found["steady_s"]) == (5.0, 6.0)
    assert (found["idle_gap_ms_p50"], found["idle_gap_ms_p99"]) == (0.0, 2000.0)
    assert found["made_ahead_and_not_needed"] == 2
    assert found["last_image_over_bound"] == pytest.approx(6.1 / (3 * 2.0 + 0.1), abs=1e-4)
