from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from actors.cluster import Resources
from balancer.cli import main


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
    assert "none is given" in result.stderr


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
    monkeypatch.setattr("actors.cluster.resources_here", lambda: Resources(cpus=3, gpus=(), driver_node=""))
    _, findings = doctor(project / "configs/demo.yaml")
    assert findings["actors"]["detail"] == "3 generators on CPU: one for each of 3 CPU cores"


def test_actors_that_do_not_fit_on_this_machine_are_missing(doctor, project, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("actors.cluster.resources_here", lambda: Resources(cpus=1, gpus=(), driver_node=""))
    values = yaml.safe_load((project / "configs/demo.yaml").read_text()) | {"actors": {"generators": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result, findings = doctor(tmp_path / "config.yaml")
    assert result.exit_code == 4
    assert findings["actors"]["detail"].startswith("no room for 2 generators: the machine has 1 CPU core")
