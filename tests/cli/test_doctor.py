from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import actors.run as job
from actors.cluster.sizing import Resources
from balancer.cli import main
from balancer.config.load import load_config
from balancer.dataset.location import SAMPLE_HINT
from balancer.errors import BalancerError


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def examine(*arguments):
        result = CliRunner().invoke(main, ["doctor", *map(str, arguments), "--json"])
        findings = json.loads(result.stdout)["findings"]
        return result, {finding["what"]: finding for finding in findings}

    return examine


def test_it_names_the_versions_that_matter(doctor):
    result, findings = doctor()
    assert result.exit_code == 0
    assert findings["ray"]["state"] == "ok"
    assert findings["ray"]["detail"].count(".") == 2


def test_the_demo_has_all_it_needs_without_gpu_or_download(doctor, project):
    result, findings = doctor(project / "configs/demo.yaml")
    assert result.exit_code == 0
    assert findings["generator weights"]["detail"].startswith("embedded")
    assert findings["dataset"]["detail"].startswith("56 images of 6 classes")


def test_it_looks_at_the_config_as_set_changes_it(doctor, project):
    result, findings = doctor(project / "configs/demo.yaml", "--set", "dataset.path=nowhere")
    assert result.exit_code == 4
    assert "nowhere" in findings["dataset"]["detail"]


def test_settings_without_a_config_are_a_mistake():
    result = CliRunner().invoke(main, ["doctor", "--set", "seed=1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--set needs a config" in result.stderr


def test_what_is_missing_is_named_and_ends_with_exit_code_4(doctor, project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    result, findings = doctor(project / "configs/pizza.yaml")
    assert result.exit_code == 4
    assert "gpus" in result.stderr
    assert findings["generator weights"]["state"] == "missing"


def test_every_model_a_config_names_is_looked_for(doctor, project, tmp_path):
    values = yaml.safe_load((project / "configs/demo.yaml").read_text())
    values["verification"] |= {
        "second_judge": {"model": str(tmp_path / "judge")},
        "safety": {"model": str(tmp_path / "safe")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result, findings = doctor(tmp_path / "config.yaml")
    assert result.exit_code == 4
    assert findings["verifier weights"]["state"] == "ok"
    for kind in ("second judge", "safety checker"):
        assert findings[f"{kind} weights"]["state"] == "missing"
        assert "no such folder" in findings[f"{kind} weights"]["detail"]


def test_a_ray_address_that_does_not_answer_is_missing(doctor, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result, findings = doctor()
    assert result.exit_code == 4
    assert findings["ray address"]["state"] == "missing"


@pytest.mark.parametrize("address", ["foo", ":", " ", "127.0.0.1:-1", "a..b:6379", "127.0.0.1:²", "\udcff:1"])
def test_an_address_where_nothing_was_asked_is_missing(doctor, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    result, findings = doctor()
    assert result.exit_code == 4
    assert findings["ray address"]["state"] == "missing"
    assert "is not the address of a Ray cluster" in findings["ray address"]["detail"]


def test_an_address_takes_connections_if_one_was_made(doctor, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "no Ray is known on this machine" in doctor()[1]["ray address"]["detail"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(head)
        assert doctor()[1]["ray address"]["detail"] == f"auto is {head}, which takes connections"
        monkeypatch.setenv("RAY_ADDRESS", head)
        assert doctor()[1]["ray address"]["detail"] == f"{head}, which takes connections"


def test_an_address_can_say_that_ray_is_started_here(doctor, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert "runs start Ray on this machine" in doctor()[1]["ray address"]["detail"]


def test_a_token_that_others_can_read_is_a_warning_with_the_remedy(doctor, tmp_path):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    result, findings = doctor()
    assert result.exit_code == 0
    assert findings["ray token"]["state"] == "warning"
    assert "chmod 600" in findings["ray token"]["detail"]
    assert "secret" not in result.output


def test_the_actors_of_a_run_on_this_machine_are_worked_out_as_the_run_does(doctor, project, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("actors.cluster.connect.resources_here", lambda: Resources(3, (), ""))
    _, findings = doctor(project / "configs/demo.yaml")
    assert findings["actors"]["detail"] == "3 generators on CPU: one for each of 3 CPU cores"


def test_actors_that_do_not_fit_on_this_machine_are_missing(doctor, project, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("actors.cluster.connect.resources_here", lambda: Resources(1, (), ""))
    values = yaml.safe_load((project / "configs/demo.yaml").read_text()) | {"actors": {"generators": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result, findings = doctor(tmp_path / "config.yaml")
    assert result.exit_code == 4
    assert findings["actors"]["detail"].startswith("cannot place 2 generators: the machine has 1 CPU core")


def dataset(folder: Path, table: str = "", class_name: str = "basic") -> Path:
    """One image, and a metadata table."""
    (folder / class_name).mkdir(parents=True)
    Image.new("RGB", (32, 32), (200, 90, 30)).save(folder / class_name / "a.png")
    if table:
        (folder / "metadata.csv").write_text(f"file_name,{table}\n")
    return folder


def shared(at: Path, path: str, holdout: str) -> list[str]:
    dataset(at / path)
    return [f"dataset.path={at / path}", f"dataset.holdout={at / holdout}"]


SPLIT, LOST = "split\nbasic/a.png,tra1n", "lighting\nbasic/a.png,moonlight"

REFUSED = {
    "no dataset": ("dataset", lambda _: ["dataset.path=nowhere"]),
    "no hold-out": ("hold-out", lambda _: ["dataset.holdout=nowhere"]),
    "a hold-out of another class": (
        "hold-out",
        lambda at: [
            f"dataset.holdout={(dataset(at / 'held') / 'basic').rename(at / 'held' / 'calzone').parent}"
        ],
    ),
    "a hold-out that is the dataset": ("hold-out", lambda at: shared(at, "d", "d")),
    "a hold-out inside the dataset": ("hold-out", lambda at: shared(at, "d", "d/basic")),
    "a hold-out around the dataset": ("hold-out", lambda at: shared(at, "d/train", "d")),
    "no hold-out of a simulated run": (
        "hold-out",
        lambda _: ["actors.kind=simulated", "dataset.holdout=nowhere"],
    ),
    "no calibration of a simulated run": (
        "calibration",
        lambda _: ["actors.kind=simulated", "verification.calibration=nowhere.json"],
    ),
    "no calibration": ("calibration", lambda _: ["verification.calibration=nowhere.json"]),
    "a damaged calibration": ("calibration", lambda at: [f"verification.calibration={at / 'damaged.json'}"]),
    "a split that is none": ("plan", lambda at: [f"dataset.path={dataset(at / 'd', SPLIT)}"]),
    "facets of which no value is known": (
        "plan",
        lambda at: [f"dataset.path={dataset(at / 'd', LOST)}", "target.count_real_facets=known"],
    ),
}


@pytest.mark.parametrize(("what", "settings"), REFUSED.values(), ids=list(REFUSED))
def test_what_a_run_refuses_before_it_starts_ray_is_missing(
    doctor, project, tmp_path, monkeypatch, what, settings
):
    (tmp_path / "damaged.json").write_text("{")
    given, config = settings(tmp_path), project / "configs/demo.yaml"
    monkeypatch.setattr(job, "refuse_silent", lambda address: pytest.fail("the run gets to Ray"))
    with pytest.raises(BalancerError) as refused:
        job.run(load_config(config, given), tmp_path / "run")
    words = [word for setting in given for word in ("--set", setting)]
    if what in ("hold-out", "calibration"):
        planned = CliRunner().invoke(main, ["plan", str(config), "--no-preflight", *words])
        if "calzone" not in refused.value.message:
            assert (planned.exit_code, planned.stdout) == (2, "")
            assert planned.stderr.startswith(f"error: {refused.value.message}\n")
    result, findings = doctor(config, *words)
    assert result.exit_code == 4
    assert [name for name, finding in findings.items() if finding["state"] == "missing"] == [what]
    assert findings[what]["detail"].startswith(refused.value.message)


def test_the_hint_for_a_missing_hold_out_is_about_hold_outs(doctor, project):
    _, findings = doctor(project / "configs/demo.yaml", "--set", "dataset.holdout=nowhere")
    assert SAMPLE_HINT not in findings["hold-out"]["detail"]
    assert "dataset.holdout" in findings["hold-out"]["detail"]


@pytest.mark.parametrize(("free", "state"), [(10**12, "ok"), (10**4, "warning")])
def test_the_disk_has_room_for_the_plan_or_there_is_a_warning(doctor, project, monkeypatch, free, state):
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    result, findings = doctor(project / "configs/demo.yaml")
    assert (result.exit_code, findings["disk"]["state"]) == (0, state)


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", " "), ("RAY_AUTH_MODE", "off")])
def test_a_token_that_a_run_refuses_is_missing(doctor, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    _, findings = doctor()
    assert findings["ray token"]["state"] == "missing"
