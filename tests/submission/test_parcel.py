"""What travels with a submitted run, and what is refused because the cluster could not see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from balancer.config.load import load_config
from balancer.errors import BalancerError, ConfigError, UsageError
from balancer.submission.parcel import CONFIG_MAP, CONFIG_NAME, JOB_API, NOTHING, pack
from balancer.submission.pins import copy_code, pinned
from balancer.submission.places import run_place, shared_folders

SHARED = shared_folders(["/mnt/data"])
NONE = shared_folders([])


def config(tmp_path, **sections):
    document = {
        "classes": {"a": {"prompts": ["1e-3"]}, "no": {"prompts": ["on"]}},
        "target": {"per_class": 2},
    }
    (tmp_path / "base.json").write_text(json.dumps(document))
    (tmp_path / "job.json").write_text(json.dumps({"extends": "base.json"} | sections))
    return load_config(tmp_path / "job.json")


def read_again(parcel, folder):
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(parcel.text)
    return load_config(folder / CONFIG_NAME)


def test_the_config_arrives_as_it_was_read_with_all_that_it_extends(tmp_path):
    given = config(tmp_path, generation={"scheduler": "EulerDiscreteScheduler", "batch_size": "auto"})
    arrived = read_again(pack(given, NONE, JOB_API), tmp_path / "there")
    assert arrived == given
    assert arrived.fingerprint() == given.fingerprint()


def test_the_configs_of_the_project_arrive_as_they_are(project, tmp_path):
    for path in (project / "configs").glob("*.yaml"):
        given = load_config(path, ["dataset.path=sample", "dataset.holdout=sample"])
        assert read_again(pack(given, NONE, JOB_API), tmp_path / path.stem) == given


def test_small_files_travel_under_names_of_ours(tmp_path):
    (tmp_path / "my calibration.json").write_text("{}")
    (tmp_path / "Ünser LoRA.safetensors").write_bytes(b"weights")
    (tmp_path / "t.csv").write_text("file_name,class\ns3://bucket/1.png,a\n")
    given = config(
        tmp_path,
        dataset={"path": "t.csv"},
        verification={"calibration": "my calibration.json"},
        generation={"loras": [{"model": str(tmp_path / "Ünser LoRA.safetensors")}]},
    )
    parcel = pack(given, NONE, JOB_API, "/etc/balancer")
    [lora] = [name for name in parcel.files if name.startswith("lora-0-")]
    assert parcel.files == {
        "calibration.json": b"{}",
        lora: b"weights",
        "path.csv": (tmp_path / "t.csv").read_bytes(),
    }
    assert parcel.document["generation"]["loras"][0]["model"] == f"/etc/balancer/{lora}"
    assert parcel.document["dataset"]["path"] == "/etc/balancer/path.csv"
    assert lora.isascii()


def test_another_file_under_the_same_name_is_another_run(tmp_path):
    calibration = tmp_path / "c.json"
    given = config(tmp_path, verification={"calibration": "c.json"})
    prints = set()
    for text in ("{}", "[]"):
        calibration.write_text(text)
        prints.add(pack(given, NONE, JOB_API).fingerprint())
    assert len(prints) == 2


def test_paths_below_a_shared_folder_stay_as_they_are_and_need_not_be_here(tmp_path):
    given = config(
        tmp_path,
        dataset={"path": "/mnt/data/pictures", "holdout": "/mnt/data/x/../held"},
        verification={"calibration": "/mnt/data/c.json"},
        generation={"model": "/mnt/data/sd", "loras": [{"model": "/mnt/data/l.safetensors"}]},
    )
    parcel = pack(given, SHARED, NOTHING)
    assert parcel.files == {}
    assert parcel.config.dataset.path == "/mnt/data/pictures"
    assert parcel.config.dataset.holdout == "/mnt/data/held"
    assert parcel.config.verification.calibration == "/mnt/data/c.json"
    assert parcel.config.generation.model == "/mnt/data/sd"


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"dataset": {"path": "pictures"}}, "dataset.path"),
        ({"dataset": {"path": "/mnt/database/pictures"}}, "dataset.path"),
        ({"dataset": {"path": "/mnt/data/../pictures"}}, "dataset.path"),
        ({"dataset": {"path": "sample", "holdout": "pictures"}}, "dataset.holdout"),
        ({"dataset": {"path": "local.csv"}}, "dataset.path"),
        ({"dataset": {"path": "s3://bucket/pictures"}}, "s3://bucket/pictures"),
        ({"target": {"rule": "recommended", "evaluation": "run", "per_class": None}}, "target.evaluation"),
        ({"verification": {"calibration": "missing.json"}}, "verification.calibration"),
        ({"verification": {"calibration": "pictures"}}, "verification.calibration"),
        ({"generation": {"loras": [{"model": "./missing.safetensors"}]}}, "generation.loras.0.model"),
        ({"generation": {"model": "./sd"}}, "generation.model"),
        ({"verification": {"second_judge": {"model": "~/vlm"}}}, "verification.second_judge.model"),
    ],
)
def test_what_the_cluster_cannot_see_is_refused_by_the_name_of_its_setting(
    sections, setting, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "local.csv").write_text("file_name,class\n1.png,a\n")
    with pytest.raises(BalancerError) as caught:
        pack(config(tmp_path, **sections), SHARED, JOB_API)
    assert caught.value.message.startswith(setting)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("limits", [CONFIG_MAP, NOTHING])
def test_what_is_too_large_to_be_carried_is_refused(limits, tmp_path):
    (tmp_path / "l.safetensors").write_bytes(bytes(800_000))
    given = config(tmp_path, generation={"loras": [{"model": str(tmp_path / "l.safetensors")}]})
    with pytest.raises(ConfigError, match=r"generation\.loras\.0\.model: .*l\.safetensors"):
        pack(given, NONE, limits)


def test_a_pipe_in_the_place_of_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        pack(config(tmp_path, verification={"calibration": "c.json"}), NONE, JOB_API)


@pytest.mark.parametrize("out", ["runs/r", "/mnt/database/r", "/mnt/data/../r", "~/r", "file:///tmp/r"])
def test_a_run_folder_that_only_this_machine_sees_is_refused(out):
    with pytest.raises(UsageError, match="on this machine"):
        run_place(out, SHARED)


def test_a_run_folder_that_all_nodes_see_is_written_in_one_way():
    assert run_place("S3://bucket/r/", NONE) == "s3://bucket/r"
    assert run_place("/mnt/data//r/.", SHARED) == run_place("file:///mnt/data/r", SHARED) == "/mnt/data/r"
    with pytest.raises(UsageError, match="not an absolute path"):
        shared_folders(["data"])


def test_versions_are_those_installed_here_without_ray_and_ourselves():
    pins = dict(pin.split("==") for pin in pinned())
    assert {"torch", "diffusers", "transformers", "open-clip-torch"} <= pins.keys()
    assert not pins.keys() & {"ray", "balancer", "triton", "pytest", "sphinx"}
    assert not [version for version in pins.values() if "+" in version]


def test_the_code_that_is_sent_runs_from_its_folder(tmp_path):
    copy_code(tmp_path)
    code = "import balancer, actors; print(balancer.__file__, balancer.__version__)"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith(str(tmp_path))
    assert (tmp_path / "balancer/embedded/generator").is_dir()
