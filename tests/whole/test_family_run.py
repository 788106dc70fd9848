"""Runs with generators of families that take half of what a Stable Diffusion takes."""

from __future__ import annotations

import hashlib

import pytest
import yaml

from actors.reproduce import reproduce, rows_to_reproduce
from actors.run import run
from actors.weights.loras import USUAL_FILE
from balancer.config.schema import Config
from balancer.errors import ConfigError, UsageError
from balancer.run_manifest import open_manifest
from balancer.runs.reproduction import Outcome
from tiny_loras import save_lora
from tiny_pipelines import PIPELINES, save_pipeline

pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers\.schedulers"
)

CANDIDATES = 8


@pytest.fixture
def make_config(project, tmp_path):
    def make(family, **generation):
        values = yaml.safe_load((project / "configs" / "demo.yaml").read_text())
        model = str(save_pipeline(family, tmp_path / "model"))
        values["generation"] = {
            "model": model,
            "width": 64,
            "height": 64,
            "steps": 2,
            "batch_size": 4,
            **generation,
        }
        return Config.model_validate(values | {"budget": {"max_candidates": CANDIDATES}})

    return make


@pytest.mark.parametrize(
    ("family", "settings", "guidance", "has_negative", "batch_size"),
    [
        ("FLUX.1 schnell", {"negative_prompt": None}, None, False, 4),
        ("Qwen-Image", {"guidance": 4.0, "negative_prompt": "dark"}, 4.0, True, 1),
    ],
)
def test_rows_say_what_went_into_the_call_and_are_enough_to_make_the_images_again(
    family, settings, guidance, has_negative, batch_size, make_config, tmp_path, here
):
    run(make_config(family, **settings), tmp_path / "run")
    manifest = open_manifest(tmp_path / "run")
    rows = manifest.to_table(status="all", filter="source = 'synthetic'").to_pylist()
    assert len(rows) >= CANDIDATES
    for row in rows:
        assert (row["guidance"], bool(row["negative_prompt"])) == (guidance, has_negative)
        assert row["batch_size"] == batch_size
    again = list(reproduce(manifest, rows_to_reproduce(manifest, [row["id"] for row in rows[:3]])))
    assert {one.outcome for one in again} == {Outcome.IDENTICAL}


def test_a_setting_without_effect_ends_a_run_before_anything_is_read(make_config, tmp_path):
    config = make_config("FLUX.1 schnell", guidance=3.5)
    with pytest.raises(ConfigError) as error:
        run(config, tmp_path / "run")
    assert error.value.problems == (
        "generation.guidance: 3.5 has no effect, because FLUX.1 schnell takes no guidance; remove it",
        "classes.basic.negative_prompt: no effect, because FLUX.1 schnell takes no negative prompt; set"
        " generation.negative_prompt to null, which leaves all negative prompts out",
    )
    assert not (tmp_path / "run" / "run.json").exists()


def test_rows_say_which_loras_made_them_and_another_one_is_refused(make_config, tmp_path, ray_session):
    lora = save_lora(PIPELINES["SDXL"](), tmp_path / "lora", ("unet", "text_encoder"))
    named = {"model": str(lora), "weight": 0.5}
    config = make_config("SDXL", loras=[named])
    run(config, tmp_path / "run")
    manifest = open_manifest(tmp_path / "run")
    sha256 = hashlib.sha256((lora / USUAL_FILE).read_bytes()).hexdigest()
    assert manifest.run.models["LoRA 1"] == {**named, "revision": None, "sha256": sha256}
    rows = manifest.to_table(status="all", filter="source = 'synthetic'").to_pylist()
    assert {tuple(row["loras"]) for row in rows} == {(f"{sha256}=0.5",)}
    some = rows_to_reproduce(manifest, [row["id"] for row in rows[:3]])
    assert {one.outcome for one in reproduce(manifest, some)} == {Outcome.IDENTICAL}

    save_lora(PIPELINES["SDXL"](), lora, ("unet",))
    again = list(reproduce(manifest, some))
    assert {one.outcome for one in again} == {Outcome.INCOMPARABLE}
    assert f"the LoRAs were {sha256}=0.5, and are " in again[0].detail
    with pytest.raises(UsageError, match="changed: weights of the LoRA 1"):
        run(config, tmp_path / "run")
