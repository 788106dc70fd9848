"""The generator where it starts from images: small pipelines with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines import auto_pipeline
from PIL import Image, ImageOps
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from actors.models.conditioning.support import IMAGE_TO_IMAGE, refuse_without_image_to_image
from actors.models.generator import Generator
from actors.run import run
from actors.specs import generator_for
from actors.weights import hub, resolve
from balancer.config.schema import Config
from balancer.errors import ConfigError, ManifestError, UnavailableError
from balancer.images import pixel_sha256
from balancer.manifest.image_files import ImageFiles
from balancer.scheduling.prompts import ParentImage, Request
from balancer.training.images import Decoder
from tests.models import test_generator

sdxl_folder, sd_folder = test_generator.sdxl_folder, test_generator.sd_folder  # fixtures
pytestmark = test_generator.pytestmark

SIDE = 64
STEPS = 10


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Real images as in a run: two of other shapes than asked, and a small one."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "images").mkdir()
    for name, shape in {"wide": (80, 160, 3), "tall": (90, 70, 3), "small": (16, 16, 3)}.items():
        noise = np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{name}.png")
    return folder


def parent(folder: Path, name: str) -> ParentImage:
    pixels = np.asarray(Image.open(folder / "images" / f"{name}.png"))
    return ParentImage(f"real/{name}.png", f"images/{name}.png", pixel_sha256(pixels))


TEXT = CLIPTextConfig(**test_generator.SMALL_TEXT | {"hidden_size": 32, "projection_dim": 32})
T5 = T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, pad_token_id=2)


def small_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=1.5,
    )


def flux() -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=small_autoencoder(),
        text_encoder=CLIPTextModel(TEXT),
        tokenizer=test_generator.small_tokenizer(),
        text_encoder_2=T5EncoderModel(T5),
        tokenizer_2=test_generator.small_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    tokenizer = test_generator.small_tokenizer()
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=small_autoencoder(),
        text_encoder=CLIPTextModelWithProjection(TEXT),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(TEXT),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(T5),
        tokenizer_3=tokenizer,
        transformer=SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
        ),
    )


MAKERS: dict[str, Callable[[], Any]] = {"flux": flux, "sd3": stable_diffusion_3}


@pytest.fixture(scope="module", params=["sdxl", "sd", *MAKERS])
def generator(request, run_folder, tmp_path_factory) -> Generator:
    if request.param not in MAKERS:
        return load(request.getfixturevalue(f"{request.param}_folder"), run_folder)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param]().save_pretrained(folder, safe_serialization=True)
    return load(folder, run_folder)


def load(folder: Path, run_folder: Path | None, **settings: Any) -> Generator:
    decoder = None if run_folder is None else Decoder(ImageFiles(str(run_folder), False, 10**6), 10**6)
    usual: dict[str, Any] = {
        "width": SIDE,
        "height": SIDE,
        "steps": STEPS,
        "batch_size": 3,
        "device": "cpu",
        "threads": 1,
    }
    return Generator(str(folder), None, None, **(usual | settings), parents=decoder)


def asked(seed: int = 7, **changes: Any) -> Request:
    return replace(Request("a burnt pizza", "broken", seed), **changes)


def make(generator: Generator, *requests: Request) -> np.ndarray:
    return generator.generate(requests, 5.0)[0]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_image_does_not_depend_on_its_neighbours_whatever_they_are_made_from(
    generator, run_folder, position
):
    conditioned = asked(parent=parent(run_folder, "wide"), strength=0.5)
    others = [
        asked(1, parent=parent(run_folder, "tall"), strength=0.5),
        asked(2, parent=parent(run_folder, "small"), strength=0.9),
        asked(3),
    ]
    [alone] = make(generator, conditioned)
    together = make(generator, *others[:position], conditioned, *others[position:])
    np.testing.assert_array_equal(together[position], alone)
    np.testing.assert_array_equal(together[3], make(generator, others[-1])[0])


def test_text_alone_makes_the_same_image_before_and_after_a_conditioned_one(generator, run_folder):
    before = make(generator, asked())
    make(generator, asked(parent=parent(run_folder, "wide"), strength=0.7))
    np.testing.assert_array_equal(make(generator, asked()), before)


def test_parent_strength_and_seed_change_the_image(generator, run_folder):
    wide, tall = parent(run_folder, "wide"), parent(run_folder, "tall")
    images = make(
        generator,
        asked(parent=wide, strength=0.5),
        asked(parent=wide, strength=0.9),
        asked(parent=tall, strength=0.5),
        asked(8, parent=wide, strength=0.5),
        asked(),
    )
    assert len({image.tobytes() for image in images}) == 5
    assert images.shape == (5, SIDE, SIDE, 3)


@pytest.mark.parametrize(("strength", "steps"), [(0.1, 1), (0.5, 5), (0.7, 7), (0.9, 9), (1.0, 10)])
def test_the_steps_that_were_run_are_counted(generator, run_folder, strength, steps):
    conditioned = asked(parent=parent(run_folder, "wide"), strength=strength)
    _, flags = generator.generate([conditioned, asked()], 5.0)
    assert [one.steps for one in flags] == [steps, None]


def test_a_parent_is_scaled_to_cover_the_size_and_its_middle_is_used(sdxl_folder, run_folder, monkeypatch):
    generator = load(sdxl_folder, run_folder, width=96)
    assert generator._conditioned is not None
    fitted = generator._conditioned._fitted(parent(run_folder, "wide"))
    whole = Image.open(run_folder / "images" / "wide.png")
    assert fitted.size == (96, SIDE)
    middle = whole.crop((20, 0, 140, 80)).resize((96, SIDE), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(fitted).astype(int) - np.asarray(middle)).mean() < 1
    assert fitted == ImageOps.fit(whole, (96, SIDE), Image.Resampling.LANCZOS)


def test_a_parent_with_other_pixels_than_its_row_names_is_refused(generator, run_folder):
    wrong = replace(parent(run_folder, "wide"), file_name="images/tall.png")
    with pytest.raises(ManifestError, match="its pixels are not those that its row names"):
        make(generator, asked(parent=wrong, strength=0.5))


def test_a_generator_for_text_alone_refuses_parents(sdxl_folder, run_folder):
    with pytest.raises(UnavailableError, match="no access to real images"):
        make(load(sdxl_folder, None), asked(parent=parent(run_folder, "wide"), strength=0.5))


# ---- which pipelines -----------------------------------------------------------------------------


def test_the_table_of_pipelines_is_that_of_diffusers():
    special = ("ControlNet", "FluxControl", "Kandinsky", "IFPipeline", "LatentConsistencyModel")
    # They have other parts or no callback, or run all steps at any strength.
    known = set()
    for pipeline in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        try:
            other = auto_pipeline._get_task_class(
                auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, pipeline.__name__
            )
        except ValueError:
            continue
        if "strength" in inspect.signature(other.__call__).parameters:
            known.add(pipeline.__name__)
    assert {
        name for name in known if not name.startswith(special) and "ControlNet" not in name
    } == IMAGE_TO_IMAGE


def config(model: str, **generation: Any) -> Config:
    return Config.model_validate(
        {
            "classes": {"cat": {"prompts": ["a cat"]}},
            "target": {"per_class": 5},
            "generation": {"model": model, "conditioning": "image", **generation},
        }
    )


def test_a_pipeline_without_image_to_image_is_refused_with_the_setting_to_change(tmp_path, sdxl_folder):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "SanaPipeline", "_diffusers_version": "0.42.0"}'
    )
    with pytest.raises(ConfigError) as caught:
        refuse_without_image_to_image(config(str(tmp_path)))
    assert caught.value.problems == (
        "generation.conditioning: diffusers has no image-to-image pipeline with a strength for SanaPipeline",
    )
    refuse_without_image_to_image(config(str(tmp_path), conditioning="text"))
    refuse_without_image_to_image(config(str(sdxl_folder)))


def test_a_spec_has_access_to_real_images_only_with_conditioning():
    conditioned, plain = config("embedded"), config("embedded", conditioning="text")
    decoders = [getattr(generator_for(each, False, "/run"), "parents", "") for each in (conditioned, plain)]
    assert decoders[0] is not None
    assert (decoders[0].files.uri, decoders[1]) == ("/run", None)


def test_of_a_model_on_the_hub_only_small_files_are_read_before_it_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "SanaPipeline", "_diffusers_version": "0.42.0"}'
    )
    asked_for: list[list[str]] = []

    def download(model: str, commit: str, kind: str, files: list[str]) -> Path:
        asked_for.append(files)
        return tmp_path

    monkeypatch.setattr(resolve, "check", lambda *of: resolve.Availability("hub", None, 10**10))
    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(ConfigError, match="SanaPipeline"):
        refuse_without_image_to_image(config("some/model", revision="0" * 40))
    assert asked_for == [["model_index.json"]]


def test_a_run_is_refused_before_its_dataset_is_read(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "SanaPipeline", "_diffusers_version": "0.42.0"}'
    )
    monkeypatch.setattr("actors.run.audit_dataset", None)
    with pytest.raises(ConfigError, match="SanaPipeline"):
        run(config(str(tmp_path)), tmp_path / "run")
