"""What the table says of each family of generators is what its pipelines do."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.models.families import probe, table
from actors.models.families.checks import Asked, find_problems, recognise_folder, refuse
from actors.models.families.table import ALWAYS, FAMILIES, Family, sizes_that_work
from actors.models.generator import Generator
from actors.weights import resolve as weights
from balancer.errors import ConfigError, WeightsError
from balancer.scheduling.prompts import Request
from tiny_pipelines import PIPELINES, VARIANTS, save_pipeline

# The schedulers of diffusers 0.42 pass tensors to numpy the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings(
        r"ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers\.schedulers"
    ),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),  # by Chroma
]
REAL_HIDREAM_SIDE = table.HIDREAM_SIDE

every_family = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    return functools.cache(lambda name: save_pipeline(name, tmp_path_factory.mktemp("family")))


@pytest.fixture(scope="session")
def generator_of(folder_of) -> Callable[[str], Generator]:
    return functools.cache(lambda name: load(folder_of(name)))


@pytest.fixture(autouse=True)
def _small_hidream(monkeypatch) -> None:
    """It scales every size to as many pixels as its latents have: 64 x 64 instead of 1024 x 1024."""
    monkeypatch.setattr(table, "HIDREAM_SIDE", 8)


def load(folder: Path, **settings: Any) -> Generator:
    usual: dict[str, Any] = {
        "revision": None,
        "variant": None,
        "width": 64,
        "height": 64,
        "steps": 2,
        "batch_size": 4,
    }
    generator = Generator(str(folder), **usual | {"device": "cpu", "threads": 1} | settings)
    if generator.family.fixed_pixels:
        assert generator._pipeline.default_sample_size == REAL_HIDREAM_SIDE
        generator._pipeline.default_sample_size = 8
    return generator


def request_(seed: int = 1, prompt: str = "a burnt pizza", negative: str = "") -> Request:
    return Request(prompt, negative, seed)


def changed(generator: Generator, **attributes: int) -> Generator:
    """The same model, loaded once."""
    other = copy.copy(generator)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def image(generator: Generator, guidance: float | None = 5.0, **of_request: Any) -> np.ndarray:
    """In a batch of one, which is not filled up."""
    return changed(generator, batch_size=1).generate([request_(**of_request)], guidance)[0][0]


@pytest.fixture(scope="session")
def image_of(generator_of) -> Callable[..., np.ndarray]:
    """Made once for all tests: the first of them says that it is the same each time."""

    @functools.cache
    def made(name: str, guidance: float, negative: str = "") -> np.ndarray:
        return image(generator_of(name), guidance, negative=negative)

    return made


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def asked(**settings: Any) -> Asked:
    usual: dict[str, Any] = {
        "guidance": (),
        "every_guidance": (5.0,),
        "negatives": (),
        "width": 64,
        "height": 64,
    }
    return Asked(**usual | {"offload": "auto"} | settings)


@every_family
def test_a_family_makes_images_that_follow_seed_and_prompt(name, generator_of, image_of):
    generator = generator_of(name)
    made = image_of(name, 5.0)
    assert made.shape == (generator.height, generator.width, 3)
    np.testing.assert_array_equal(made, image(generator))
    assert levels_apart(made, image(generator, seed=2)) > 1
    assert levels_apart(made, image(generator, prompt="three dogs")) > 1


@every_family
def test_guidance_acts_as_the_table_says_or_is_refused(name, generator_of, image_of):
    generator = generator_of(name)
    family: Family = generator.family
    acts = levels_apart(image_of(name, 5.0), image_of(name, 8.0)) > 1
    assert acts is (family.guidance is not None)
    refused = find_problems(
        family, generator._loaded.recognised.multiple, asked(guidance=(("generation.guidance", 5.0),))
    )
    assert bool(refused) is not acts
    if not acts:
        assert refused == [
            f"generation.guidance: 5 has no effect, because {family.name} takes no guidance; remove it"
        ]


@every_family
def test_guidance_is_off_where_the_table_says(name, generator_of, image_of):
    generator = generator_of(name)
    off_at = generator.family.off_at
    below_one = levels_apart(image_of(name, 0.0), image_of(name, 1.0)) > 1
    assert below_one is (generator.family.guidance is not None and off_at != 1.0)


@every_family
@pytest.mark.parametrize("guidance", [0.0, 1.0, 5.0])
def test_a_negative_prompt_acts_as_the_table_says_or_is_refused(name, guidance, generator_of, image_of):
    generator = generator_of(name)
    acts = levels_apart(image_of(name, guidance), image_of(name, guidance, "a dark table")) > 1
    assert acts is generator.family.uses_negative(guidance)
    wanted = asked(
        every_guidance=(guidance,), negatives=("classes.cat.negative_prompt", "generation.negative_prompt")
    )
    problems = find_problems(generator.family, generator._loaded.recognised.multiple, wanted)
    assert bool(problems) is not acts
    if problems:
        assert problems[0].startswith("classes.cat.negative_prompt and 1 more: no effect, because ")
        assert "set generation.negative_prompt to null" in problems[0]


@every_family
def test_what_went_into_the_call_is_said(name, generator_of):
    generator = generator_of(name)
    for guidance in (0.0, 5.0):
        used = changed(generator, batch_size=1).begin([request_()], guidance)()[1].used
        assert used.guidance == (None if generator.family.guidance is None else guidance)
        assert used.negative is generator.family.uses_negative(guidance)


@every_family
def test_an_image_is_the_same_alone_and_with_any_neighbours(name, generator_of):
    generator = generator_of(name)
    [alone], _ = generator.generate([request_(negative="dark")], 5.0)
    others = [
        request_(7, "a very long prompt of a basic pizza with olives, on a table"),
        request_(8, "a cat", "x"),
        request_(9),
    ]
    for place in range(4):
        batch = [*others[:place], request_(negative="dark"), *others[place:]]
        np.testing.assert_array_equal(generator.generate(batch, 5.0)[0][place], alone)


@every_family
@pytest.mark.parametrize("size", [(72, 64), (80, 96)])
def test_a_size_is_made_or_refused_with_the_nearest_that_work(name, size, folder_of, generator_of):
    known = recognise_folder(folder_of(name), name)
    sizes = sizes_that_work(known.family, known.multiple, *size)
    if size not in sizes:
        with pytest.raises(ConfigError, match="makes no image of"):
            refuse(known.family, known.multiple, asked(width=size[0], height=size[1]))
    for width, height in sizes:
        made = image(changed(generator_of(name), width=width, height=height))
        assert made.shape == (height, width, 3)


@pytest.mark.parametrize("name", [*PIPELINES, *VARIANTS])
def test_trying_a_pipeline_out_finds_what_the_table_says(name, generator_of):
    generator = generator_of(name)
    found = probe.Probe(generator._pipeline, generator.width, generator.height).family("Unknown")
    family = generator.family
    assert (found.guidance, found.takes_negative) == (family.guidance, family.takes_negative)
    assert family.guidance is None or found.off_at == family.off_at
    assert family.alone or not found.alone


def test_a_family_that_pads_to_the_longest_text_is_found_to_depend_on_neighbours(generator_of):
    found = probe.Probe(generator_of("CogView4")._pipeline, 64, 64).family("Unknown")
    assert found.alone == "images depend on their neighbours"
    assert found.note == "Unknown is not known; tried out: guidance_scale acts, negative prompts act"


def test_every_class_of_the_table_is_held_against_a_pipeline(folder_of):
    known = {recognise_folder(folder_of(name), name).class_name for name in (*PIPELINES, *VARIANTS)}
    assert known == FAMILIES.keys()


def test_a_class_that_is_not_in_the_table_is_tried_out_and_held_to_it(folder_of, monkeypatch):
    monkeypatch.delitem(FAMILIES, "FluxPipeline")
    generator = load(folder_of("FLUX.1 schnell"))
    said = "FluxPipeline is not known; tried out: guidance has no effect, negative prompts have no effect"
    assert generator.describe()["placement"] == said
    assert str(recognise_folder(folder_of("FLUX.1 schnell"), "m")).startswith("FluxPipeline is not known")
    with pytest.raises(
        ConfigError, match=r"attempts\.rungs\[1\]\.guidance: 9 has no effect, because FluxPipeline"
    ):
        load(folder_of("FLUX.1 schnell"), asked=asked(guidance=(("attempts.rungs[1].guidance", 9.0),)))


def test_a_size_that_nobody_foresaw_is_an_error_and_no_image(folder_of, monkeypatch):
    monkeypatch.delitem(FAMILIES, "FluxPipeline")
    generator = load(folder_of("FLUX.1 dev"), width=72)
    with pytest.raises(WeightsError, match="asked for 72 x 64 pixels, the pipeline made 64 x 64") as error:
        image(generator)
    assert error.value.hint == "set generation.width to 64 and generation.height to 64"


def test_what_a_pipeline_refuses_ends_a_run_at_once(folder_of, monkeypatch):
    monkeypatch.delitem(FAMILIES, "StableDiffusion3Pipeline")
    with pytest.raises(WeightsError, match="the pipeline refuses the call: ValueError: `height` and `width`"):
        load(folder_of("SD 3.5"), width=72)


def test_a_family_that_makes_images_alone_says_so(generator_of):
    described = generator_of("Qwen-Image").describe()
    assert described["batch_size"] == "1"
    assert described["placement"] == "one image at a time, because it pads texts to the longest of a batch"


def test_prompts_are_never_rewritten(generator_of, monkeypatch):
    generator, seen = generator_of("Sana"), {}
    pipeline = generator._pipeline

    def call(**arguments: Any) -> Any:
        seen.update(arguments)
        return pipeline(**arguments)

    monkeypatch.setattr(generator, "_pipeline", call)
    image(generator)
    assert {name: seen[name] for name in ("clean_caption", "use_resolution_binning")} == dict.fromkeys(
        ("clean_caption", "use_resolution_binning"), False
    )
    assert {"use_pe", "enable_prompt_rewrite"} <= ALWAYS.keys()


def test_guidance_goes_by_the_name_that_the_pipeline_has_for_it(generator_of, monkeypatch):
    generator, seen = generator_of("Qwen-Image"), {}
    pipeline = generator._pipeline
    monkeypatch.setattr(
        generator, "_pipeline", lambda **arguments: seen.update(arguments) or pipeline(**arguments)
    )
    image(generator, 3.5)
    assert seen["true_cfg_scale"] == 3.5
    assert "guidance_scale" not in seen


def test_encoders_stay_on_the_cpu_only_where_prompts_are_encoded_once():
    for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        assert find_problems(FAMILIES[name], 8, asked(offload="text_encoders")) == []
    assert find_problems(FAMILIES["ZImagePipeline"], 16, asked(offload="text_encoders")) == [
        "generation.offload: text_encoders would have Z-Image encode every prompt again on the CPU;"
        " set it to auto or model"
    ]


def test_the_table_and_the_cache_agree_on_whose_prompts_are_encoded_once(generator_of):
    for name in PIPELINES:
        generator = generator_of(name)
        assert generator.family.keeps_embeddings is (generator._loaded.embeddings is not None)


def test_guidance_that_is_off_may_be_asked_for_anywhere():
    """Published examples of models without guidance set it to 0 or 1."""
    for scale in (0.0, 1.0):
        assert (
            find_problems(FAMILIES["FluxPipeline"], 16, asked(guidance=(("generation.guidance", scale),)))
            == []
        )


def test_a_pipeline_that_cannot_work_is_refused_before_it_is_loaded(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "Kandinsky3Pipeline"}')
    with pytest.raises(WeightsError, match="Kandinsky3Pipeline is not supported: it returns pixels"):
        recognise_folder(tmp_path, "a model")


def test_weights_quantised_by_a_missing_package_are_refused_before_they_are_loaded(tmp_path):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}'
    )
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(
        '{"quantization_config": {"quant_method": "bitsandbytes"}}'
    )
    with pytest.raises(WeightsError, match="bitsandbytes, which is not installed: transformer/") as error:
        weights.check(str(tmp_path), None, None, "generator")
    assert error.value.hint == "pip install bitsandbytes"


def test_a_half_precision_model_keeps_an_image_from_its_neighbours(folder_of):
    generator = load(folder_of("Lumina 2"), dtype="bfloat16")
    assert generator._pipeline.transformer.dtype == torch.bfloat16
    batch = [request_(7, "a very long prompt of a basic pizza with olives, on a table"), request_()]
    [alone], _ = generator.generate([request_()], 5.0)
    np.testing.assert_array_equal(generator.generate(batch, 5.0)[0][1], alone)


@pytest.mark.parametrize("name", ["QwenImagePipeline", "ZImagePipeline", "Lumina2Pipeline"])
def test_compiling_a_family_that_cannot_be_compiled_is_refused_with_the_reason(name):
    family = FAMILIES[name]
    asked = Asked((), (5.0,), (), 64, 64, "auto", compiled=True)
    [problem] = find_problems(family, 1, asked)
    assert problem.startswith("generation.compile")
    assert family.compile_fault in problem
    assert find_problems(family, 1, dataclasses.replace(asked, compiled=False)) == []
