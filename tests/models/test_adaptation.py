"""Training of adapters, on small pipelines."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as decode
from safetensors.torch import save as encode

from actors.models.adaptation.sampling import Sampler
from actors.models.adaptation.spec import TrainerSpec
from actors.models.adaptation.support import TRAINABLE, refuse_untrainable
from actors.models.pipeline import Source, load_pipeline
from balancer.adaptation.images import TrainingImage
from balancer.adaptation.plan import Sample, Task
from balancer.config.adaptation import AdaptationConfig
from balancer.config.schema import Config
from balancer.errors import ConfigError
from tiny_pipelines import save_pipeline

pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers\.schedulers"
)

SIDE, IMAGES, STEPS = 64, 5, 4
FAMILIES = {"SD 1.5": True, "SDXL": True, "SD 3.5": False}
"""With their text encoders or without."""


def settings(**changes: Any) -> AdaptationConfig:
    usual = {"rank": 4, "layers": "all", "batch_size": 3, "learning_rate": 0.01}
    return AdaptationConfig.model_validate(usual | changes)


def task(**changes: Any) -> Task:
    words = ("a cat", "a burnt pizza", "a dog in the dark")
    images = tuple(
        TrainingImage(f"{number}.png", "cat", str(number), str(number), words[: number % 3 + 1])
        for number in range(IMAGES)
    )
    made = Task(
        "dataset", ("cat",), images, settings(**changes), STEPS, SIDE, SIDE, prior=(),
        samples=(Sample("cat", "a cat", 3),), inference_steps=2, guidance=2.0,
    )  # fmt: skip
    if changes.get("prior_weight"):
        return dataclasses.replace(made, prior=(Sample("cat", "a cat", 5), Sample("cat", "a dog", 6)))
    return made


def files() -> list[bytes]:
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 6, 3), np.uint8)
    encoded = []
    for pixels in drawn:
        out = io.BytesIO()
        Image.fromarray(pixels).resize((96, 64)).save(out, "PNG")
        encoded.append(out.getvalue())
    return encoded


def load(folder: Any, text_encoders: bool, **changes: Any) -> Any:
    return TrainerSpec(
        model=str(folder), width=SIDE, height=SIDE, settings=settings(**changes), text_encoders=text_encoders,
        device="cpu", threads=1,
    ).load()  # fmt: skip


@pytest.fixture(scope="module", params=[*FAMILIES])
def trained(request, tmp_path_factory):
    """A trainer, its work, and the state after all steps at once."""
    folder = save_pipeline(request.param, tmp_path_factory.mktemp("model"))
    trainer = load(folder, FAMILIES[request.param])
    work = (task(), trainer.encode(files(), 10**6))
    return folder, trainer, work, trainer.train(work, None, STEPS)


def test_a_training_that_goes_on_from_any_step_ends_with_the_same_weights(trained):
    _, trainer, work, whole = trained
    first = trainer.train(work, None, 1)
    trainer.sample(work, None)  # what it remembers is lost
    rest = trainer.train(work, trainer.train(work, first.state, 3).state, STEPS)
    assert (rest.state, rest.losses) == (whole.state, whole.losses)
    assert len(whole.losses) == STEPS


def test_diffusers_loads_every_tensor_and_makes_what_the_trainer_makes(trained):
    folder, trainer, work, whole = trained
    before, after = trainer.sample(work, None), trainer.sample(work, whole.state)
    assert np.abs(before.astype(int) - after).max() > 1
    data = trainer.export(work, whole.state, {"balancer_adapter": "{}"})
    path = folder.parent / "adapter.safetensors"
    path.write_bytes(data)
    source = Source(folder, "tiny", None)
    loaded = load_pipeline(
        source, torch.float32, torch.device("cpu"), pixels=SIDE**2, offload="none", compiled=False
    )
    loaded.pipeline.load_lora_weights(path)
    sampler = Sampler(loaded.pipeline, loaded.recognised.family, "tiny")
    made = sampler.pixels(work[0].samples, work[0])
    assert np.abs(made.astype(int) - after).max() <= 1


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return save_pipeline("SDXL", tmp_path_factory.mktemp("model"))


def test_a_batch_that_is_computed_in_parts_gives_the_same_gradients(xl):
    trainer = load(xl, True)
    work = (task(), trainer.encode(files(), 10**6))
    whole = trainer.train(work, None, 1)
    trainer._part_size = 1
    trainer._training = None
    assert trainer.train(work, None, 1).losses == pytest.approx(whole.losses, rel=1e-4)


def test_the_prior_adds_to_the_loss(xl):
    trainer = load(xl, False)
    latents = trainer.encode(files(), 10**6)
    [plain], [more] = (
        trainer.train((task(**changes), latents), None, 1).losses
        for changes in ({}, {"prior_weight": 1.0, "prior_images": 2})
    )
    assert more > plain


@pytest.mark.parametrize("damage", [b"", b"no weights", "cut", "nan", "others", "negative", "longer"])
def test_a_checkpoint_that_cannot_be_used_is_refused_with_the_reason(xl, damage):
    trainer = load(xl, False)
    work = (task(), trainer.encode(files(), 10**6))
    state = trainer.train(work, None, 1).state
    if damage == "cut":
        damage = state[: len(state) // 2]
    elif damage == "nan":
        damage = state[:-64] + b"\xff" * 64
    elif damage in ("negative", "longer"):
        tensors = decode(state)
        if damage == "negative":
            tensors = {name: -one if "exp_avg_sq" in name else one for name, one in tensors.items()}
        else:
            tensors["losses"] = torch.ones(STEPS + 1, dtype=torch.float64)
        damage = encode(tensors)
    elif damage == "others":
        damage = load(xl, False, rank=2).train(work, None, 1).state
    assert len(state) <= trainer.state_bytes(1)
    assert isinstance(trainer.train(work, damage, 2), str)
    assert trainer.train(work, None, 1).state == state


def test_a_file_that_is_no_image_is_named_by_its_reason(xl):
    seen = load(xl, False).encode([files()[0], b"text"], 10**6)
    assert [type(one) for one in seen] == [np.ndarray, str]


def config(model: str, **adaptation: Any) -> Config:
    document = {
        "classes": {"cat": {"prompts": ["a cat"]}},
        "target": {"per_class": 5},
        "generation": {"model": model},
        "adaptation": adaptation,
    }
    return Config.model_validate(document)


def test_what_cannot_be_trained_is_refused_by_name_before_it_loads(tmp_path):
    folder = str(save_pipeline("Sana", tmp_path / "sana"))
    with pytest.raises(ConfigError, match="no adapter can be trained for SanaPipeline; for StableDiffusion"):
        refuse_untrainable(config(folder))
    folder = str(save_pipeline("SD 3.5", tmp_path / "sd3"))
    with pytest.raises(ConfigError, match="those of StableDiffusion3Pipeline cannot be trained"):
        refuse_untrainable(config(folder, text_encoders=True))
    assert not refuse_untrainable(config(folder))
    assert refuse_untrainable(config("embedded"))
    assert "StableDiffusionXLPipeline" in TRAINABLE
