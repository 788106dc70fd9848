"""Specs of workers: what a config makes of them, and that they travel light."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from actors.models.simulated import Fault, SimulatedGenerator, SimulatedVerifier
from actors.specs import (
    SimulatedGeneratorSpec,
    SimulatedVerifierSpec,
    WriterSpec,
    generator_spec,
    verifier_spec,
    workers_for,
)
from balancer.config.schema import Config

JUDGE = {"model": "judge", "question": "Is it {}?"}


def make_config(**sections):
    base = {
        "dataset": {"path": "none"},
        "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
        "target": {"per_class": 3},
    }
    return Config.model_validate(base | sections)


def workers(config):
    return workers_for(config, "runs/1", generators_on_gpu=False, verifiers_on_gpu=False)


def test_settings_of_the_config_are_those_of_the_generator():
    config = make_config(
        generation={"width": 128, "height": 64, "steps": 7, "batch_size": 2, "compile": True}
    )
    spec = generator_spec(config)
    assert (spec.width, spec.height, spec.steps, spec.batch_size) == (128, 64, 7, 2)
    assert (spec.device, spec.compiled) == ("cpu", False)
    assert generator_spec(config, on_gpu=True).compiled


def test_a_model_folder_is_named_by_its_full_path(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert generator_spec(make_config(generation={"model": "model"})).model == str(tmp_path / "model")
    assert generator_spec(make_config()).model == "embedded"


def test_a_second_judge_and_a_safety_checker_go_with_the_verifier():
    assert (verifier_spec(make_config()).second_judge, verifier_spec(make_config()).safety) == (None, None)
    checked = make_config(verification={"second_judge": JUDGE, "safety": {"model": "checker"}})
    spec = verifier_spec(checked)
    assert spec.second_judge is not None
    assert spec.safety is not None
    assert (spec.second_judge.question, tuple(spec.safety.labels)) == ("Is it {}?", ("nsfw",))


def test_simulated_actors_have_simulated_workers_and_write_files():
    simulated = make_config(actors={"kind": "simulated"}, output={"image_format": "webp"})
    made = workers(simulated)
    assert isinstance(made.generator, SimulatedGeneratorSpec)
    assert isinstance(made.verifier, SimulatedVerifierSpec)
    assert made.writer == WriterSpec(storage_uri="runs/1", image_format="webp")


@pytest.mark.parametrize("kind", ["simulated", "models"])
def test_a_spec_travels_to_another_process_as_it_is(kind):
    made = workers(make_config(actors={"kind": kind}))
    for spec in (made.generator, made.verifier, made.writer):
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_simulated_spec_loads_its_worker():
    spec = SimulatedGeneratorSpec(batch_size=4, width=64, height=72, faults=[Fault(1, "raise")])
    assert isinstance(spec.load(), SimulatedGenerator)
    verifier = SimulatedVerifierSpec(
        properties={"class": {"cat": ("cat",)}}, pass_rate=0.5, pass_rates={0: 1.0}
    )
    assert isinstance(verifier.load(), SimulatedVerifier)


def test_specs_are_built_without_ray_and_without_a_model_library():
    code = "import sys, actors.specs; print({'ray', 'torch', 'diffusers', 'open_clip'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
