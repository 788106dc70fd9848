"""Another scheduler than the model's own: it acts, fits, and makes the same image beside any neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.models.generator import Generator
from actors.models.scheduler import SchedulerChoice
from actors.specs import generator_spec
from balancer.config.schema import Config
from balancer.errors import ConfigError
from balancer.scheduling.prompts import Request
from tiny_pipelines import save_pipeline

SIDE = 64
REQUESTS = [Request("a photo of pizza", "", seed) for seed in (1, 2)]

pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers\.schedulers"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("SDXL", tmp_path_factory.mktemp("sdxl"))


def made(folder: Path, scheduler: SchedulerChoice | None, requests: list[Request] = REQUESTS) -> np.ndarray:
    generator = Generator(
        model=str(folder), revision=None, variant=None, width=SIDE, height=SIDE, steps=4, batch_size=2,
        device="cpu", threads=1, scheduler=scheduler,
    )  # fmt: skip
    return generator.generate(requests, 5.0)[0]


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler"]
)
def test_a_scheduler_acts_and_an_image_does_not_depend_on_its_neighbours(folder, name):
    both = made(folder, SchedulerChoice(name))
    assert np.abs(both.astype(int) - made(folder, None)).max() > 2  # more than rounding
    second = made(folder, SchedulerChoice(name), REQUESTS[1:])
    np.testing.assert_array_equal(second[0], both[1])


def test_options_replace_those_of_the_model(folder):
    spaced = SchedulerChoice("EulerDiscreteScheduler", {"timestep_spacing": "trailing"})
    plain = SchedulerChoice("EulerDiscreteScheduler", {"timestep_spacing": "leading"})
    assert (made(folder, spaced) != made(folder, plain)).any()


@pytest.mark.parametrize(
    ("name", "options", "problem", "hint"),
    [
        ("EulerDiscretScheduler", {}, "has no EulerDiscretScheduler", "did you mean EulerDiscreteScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "does not fit StableDiffusionXLPipeline", "DDIMScheduler"),
        ("DPMSolverSDEScheduler", {}, "noise of its own", ""),
        ("EulerDiscreteScheduler", {"spacing": "x"}, "takes no spacing", "timestep_spacing"),
        ("EulerDiscreteScheduler", {"prediction_type": 3, "beta_schedule": "x"}, "refuses them", ""),
        ("DDIMScheduler", {"num_train_timesteps": -1}, "refuses them", ""),
        ("EulerDiscreteScheduler", {"beta_start": 1e308}, "refuses them", ""),
    ],
)
def test_a_scheduler_that_cannot_act_is_one_clear_line(folder, name, options, problem, hint):
    with pytest.raises(ConfigError) as caught:
        made(folder, SchedulerChoice(name, options))
    assert problem in str(caught.value.message)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value.message)


def test_a_config_names_it_alone_or_with_options():
    def of(given: Any) -> Any:
        document = {
            "classes": {"cat": {"prompts": ["a cat"]}},
            "target": {"per_class": 2},
            "generation": {"scheduler": given},
        }
        return generator_spec(Config.model_validate(document)).scheduler

    assert of("LCMScheduler") == ("LCMScheduler", {})
    options = {"timestep_spacing": "trailing", "use_karras_sigmas": True}
    assert of({"name": "EulerDiscreteScheduler", "options": options}) == ("EulerDiscreteScheduler", options)
    assert of(None) is None
    with pytest.raises(ValueError, match="scheduler"):
        of("__import__('os')Scheduler")
