"""The RayJob that `balancer submit --kubernetes` prints, held against the fields of KubeRay 1.7.0."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from balancer.cli import main
from balancer.submission.kubernetes import script
from tests.submission.here import FOLDER, golden

SCHEMA = json.loads((FOLDER / "kuberay-1.7.0.json").read_text())
"""Types, permitted words, least numbers and required fields of the parts of a RayJob that are used here, from
ray-operator/config/crd/bases/ray.io_rayjobs.yaml of KubeRay 1.7.0."""

JOB = """
name: "a name: with # signs"
classes: {a: {prompts: [an a]}, "no": {prompts: ["1e-3"]}}
target: {per_class: 2}
actors: {generators: 5, gpus_per_generator: 0.45}
verification: {calibration: c.json}
"""


@pytest.fixture
def printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.60.0")
    Path("job.yaml").write_text(JOB)
    Path("c.json").write_text("{}")

    def call(*options):
        words = ["submit", "job.yaml", "--out", "s3://bucket/it's a run", "--kubernetes", *options]
        result = CliRunner().invoke(main, words)
        return result.stdout if result.exit_code == 0 else result.stderr

    return call


ALL = """
--image registry.example/balancer:1 --namespace ml --token-secret ray-token --secret aws --secret hub
--service-account writer --model-cache models --volume data:/mnt/data
--max-workers 9 --retries 4 --limit 8 --yes
""".split()


@pytest.mark.parametrize(
    ("name", "options"), [("rayjob.yaml", ["--image", "balancer:1"]), ("rayjob-all.yaml", ALL)]
)
def test_a_rayjob_is_what_was_read_by_eye(printed, name, options):
    assert printed(*options) == golden(name, printed(*options))


@pytest.mark.parametrize("options", [["--image", "balancer:1"], ALL])
def test_every_field_is_one_of_kuberays(printed, options):
    config_map, job = yaml.safe_load_all(printed(*options))
    assert config_map["metadata"]["name"] == job["metadata"]["name"]
    assert [*faults(job, SCHEMA, "")] == []


def test_a_field_that_kuberay_does_not_know_is_found(printed):
    _, job = yaml.safe_load_all(printed(*ALL))
    spec = job["spec"]
    spec["backOffLimit"] = spec.pop("backoffLimit")
    spec["deletionStrategy"]["deletionRules"][0]["policy"] = "DeleteAll"
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "3"
    assert len([*faults(job, SCHEMA, "")]) == 3


TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list, "any": object}


def faults(value, schema, path):
    if not isinstance(value, TYPES[schema["type"]]) or value not in schema.get("enum", [value]):
        yield f"{path}: {value!r}"
    elif isinstance(value, dict) and "properties" in schema:
        yield from (f"{path}.{key} is missing" for key in schema.get("required", []) if key not in value)
        for key, item in value.items():
            if key in schema["properties"]:
                yield from faults(item, schema["properties"][key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from faults(item, schema["items"], f"{path}.{number}")


def test_what_the_operator_checks_holds(printed):
    _, job = yaml.safe_load_all(printed(*ALL))
    spec = job["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert "shutdownAfterJobFinishes" not in spec  # excludes deletionRules
    assert "DeleteWorkers" not in {rule["policy"] for rule in rules}  # excludes the autoscaler
    conditions = [next(iter(rule["condition"].items())) for rule in rules]
    assert len(set(conditions)) == len(conditions)
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert len(job["metadata"]["name"]) <= 47
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_two_generators_on_a_gpu_take_half_the_nodes(printed):
    _, job = yaml.safe_load_all(printed("--image", "balancer:1"))
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 3  # for five generators
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_without_gpus_none_are_asked_for(printed):
    shown = printed("--image", "balancer:1", "--set", "actors.device=cpu")
    assert "nvidia" not in shown
    assert "groupName: cpu" in shown


@pytest.mark.parametrize(("ended", "code"), [(0, 0), (3, 0), (1, 1), (2, 2), (5, 5), (143, 143)])
def test_a_run_that_ends_short_is_no_failure_to_be_tried_again(ended, code):
    done = subprocess.run(
        ["sh", "-c", script(["sh", "-c", f"exit {ended}"])], capture_output=True, check=False
    )
    assert done.returncode == code


@pytest.mark.parametrize(
    "options",
    [
        ["--image", "a b"],
        ["--image", "$(id)"],
        ["--image", "b:1", "--secret", "KEY=value"],
        ["--image", "b:1", "--namespace", "x\ny"],
        ["--image", "b:1", "--model-cache", "../x"],
        ["--image", "b:1", "--memory", "32"],
        ["--image", "b:1", "--workers", "4", "--max-workers", "3"],
        ["--image", "b:1", "--partition", "gpu"],
        ["--image", "b:1", "--shared", "/mnt"],
        ["--image", "b:1", "--volume", "data"],
        ["--image", "b:1", "--volume", "data:/../etc"],
        ["--image", "b:1", "--volume", "data:/models"],
        ["--image", "b:1", "--follow"],
        [],
    ],
)
def test_a_name_that_kubernetes_does_not_take_is_one_line(printed, options):
    shown = printed(*options)
    assert shown.startswith("error: --")
    assert len([line for line in shown.splitlines() if line.startswith("error:")]) == 1


def test_a_mounted_claim_is_a_folder_that_all_nodes_see(printed):
    options = ["--image", "b:1", "--set", "dataset.path=/mnt/data/pictures"]
    assert "dataset.path" in printed(*options)
    assert "pictures" in printed(*options, "--volume", "data:/mnt/data")
    assert printed(*options, "--volume", "data:/mnt/dat").startswith("error: dataset.path")


def test_kubectl_gets_what_would_be_printed(printed, tmp_path, monkeypatch):
    kubectl = tmp_path / "bin/kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text('#!/bin/sh\necho "$@" > called\n/bin/cat > applied\nexit 0\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(kubectl.parent))
    shown = printed("--image", "balancer:1")
    printed("--image", "balancer:1", "--apply", "--dry-run")
    assert not Path("called").exists()
    printed("--image", "balancer:1", "--apply")
    assert Path("applied").read_text() == shown
    assert Path("called").read_text() == "apply -f -\n"
    kubectl.write_text("#!/bin/sh\nexit 1\n")
    assert printed("--image", "balancer:1", "--apply").startswith("error: kubectl ended with 1")
    kubectl.unlink()
    assert printed("--image", "balancer:1", "--apply").startswith("error: --apply needs kubectl")
