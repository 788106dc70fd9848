"""What `balancer run` says of each mistake: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import shutil
import socket

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.dataset.sample import write_dataset

USAGE, UNAVAILABLE = 2, 4


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad-input") / "sample"
    write_dataset(root, seed=0)
    return root / "train"


@pytest.fixture
def dataset(sample, tmp_path):
    return shutil.copytree(sample, tmp_path / "dataset")


@pytest.fixture
def start(project, tmp_path, monkeypatch):
    """`balancer run` of the demo with overrides; the test fails if an actor is started."""

    def never(pool):
        raise AssertionError("an actor was started")

    monkeypatch.setattr("actors.cluster.pool.Pool.start", never)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*overrides, config=project / "configs/demo.yaml", out=tmp_path / "run", address=None):
        arguments = ["run", str(config), "--out", str(out)]
        arguments += [part for override in overrides for part in ("--set", override)]
        arguments += ["--address", address] if address else []
        return CliRunner().invoke(main, arguments)

    return run


def assert_refused(result, exit_code, *words):
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == exit_code, result.output
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert all(word in result.stderr for word in words), lines
    assert "Traceback" not in result.output


def test_a_config_that_is_not_there(start, tmp_path):
    assert_refused(start(config=tmp_path / "none.yaml"), USAGE, "none.yaml")


def test_a_config_with_a_misspelt_key(start):
    assert_refused(start("generation.stepps=3"), USAGE, "stepps", "did you mean", "steps")


def test_a_config_with_shares_that_do_not_sum_to_one(start):
    override = "facets.burn_level.values.severely_burnt.share=0.5"
    assert_refused(start(override), USAGE, "burn_level", "1.25")


def test_a_dataset_that_is_not_there(start, tmp_path):
    assert_refused(start(f"dataset.path={tmp_path / 'none'}"), USAGE, "none")


def test_a_dataset_without_class_folders(start, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(start(f"dataset.path={tmp_path / 'empty'}"), USAGE, "empty")


def test_a_class_folder_the_config_does_not_know(start, dataset):
    (dataset / "basic").rename(dataset / "basik")
    assert_refused(start(f"dataset.path={dataset}"), USAGE, "basik", "did you mean", "basic")


def test_a_model_folder_that_is_not_there(start, tmp_path):
    result = start(f"generation.model={tmp_path / 'none'}")
    assert_refused(result, UNAVAILABLE, "none")


def test_a_verifier_with_its_weights_in_pickle_form(start, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04")
    result = start(f"verification.model={folder}")
    assert_refused(result, UNAVAILABLE, "pickle", "open_clip_pytorch_model.bin")


def test_the_config_for_photographs_where_there_are_neither_weights_nor_a_gpu(start, project):
    result = start(config=project / "configs/pizza.yaml")
    assert_refused(result, UNAVAILABLE, "stable-diffusion-xl")


def test_more_generators_than_there_are_cores(start, dataset, ray_session):
    result = start(f"dataset.path={dataset}", "actors.device=cpu", "actors.generators=99")
    assert_refused(result, UNAVAILABLE, "99", "actors.generators")


def test_more_gpus_than_there_are(start, dataset, ray_session):
    result = start(f"dataset.path={dataset}", "actors.generators=3")
    assert_refused(result, UNAVAILABLE, "3 generators", "2 GPUs")


def test_a_ray_address_that_does_not_answer(start, dataset, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = start(f"dataset.path={dataset}", address=address)
    assert_refused(result, UNAVAILABLE, address, "does not answer")


def test_an_output_that_cannot_be_made(start, dataset, tmp_path, ray_session):
    (tmp_path / "file").write_text("in the way")
    result = start(f"dataset.path={dataset}", "actors.device=cpu", out=tmp_path / "file" / "run")
    assert_refused(result, UNAVAILABLE, str(tmp_path / "file"))


def test_an_output_that_holds_something_else(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("important")
    assert_refused(start(), USAGE, "thesis.txt")


@pytest.mark.parametrize("kind", ["missing", "weights", "address"])
def test_a_refused_run_leaves_no_folder_behind(start, dataset, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    {
        "missing": lambda: start("dataset.path=/no/such/dataset"),
        "weights": lambda: start(f"generation.model={tmp_path / 'none'}"),
        "address": lambda: start(f"dataset.path={dataset}", address="127.0.0.1:1"),
    }[kind]()
    assert not (tmp_path / "run").exists()
