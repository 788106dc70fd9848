from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from actors.models.device import use_full_float32
from actors.models.families.checks import Asked
from actors.models.generator import Generator, _warm_up_scales
from actors.models.memory.batch_fit import fit_batch, halve_until_it_fits
from actors.models.memory.limits import free_memory, is_out_of_memory, limit_memory
from actors.models.pipeline import place_parts
from actors.models.prompt_embeddings import PromptEmbeddings
from balancer.errors import UnavailableError, WeightsError
from balancer.scheduling.prompts import Request
from balancer.storage.cache import private_folder
from balancer.verification.verdict import ImageFlags

# The schedulers of diffusers 0.42 pass tensors to numpy the way of numpy 1.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers\.schedulers"
)

WORDS = ["<unk>", "<bos>", "<eos>", "a", "burnt", "basic", "pizza", "broken"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SMALL_TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


SMALL_VISION = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


def small_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        model_max_length=12,
    )


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion 1 pipeline with random weights and a safety checker that passes everything."""
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=SMALL_TEXT, vision_config=SMALL_VISION))
    checker.concept_embeds_weights.data.fill_(2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**SMALL_TEXT)),
        tokenizer=small_tokenizer(),
        unet=UNet2DConditionModel(**SMALL_UNET, cross_attention_dim=8),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
    )
    folder = tmp_path_factory.mktemp("sd")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion XL pipeline with random weights."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**SMALL_TEXT)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**SMALL_TEXT)),
        tokenizer=small_tokenizer(),
        tokenizer_2=small_tokenizer(),
        unet=UNet2DConditionModel(
            **SMALL_UNET,
            cross_attention_dim=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def load(folder: Path | str, **settings: Any) -> Generator:
    usual: dict[str, Any] = {
        "revision": None,
        "variant": None,
        "width": 64,
        "height": 64,
        "steps": 2,
        "batch_size": 4,
    }
    return Generator(str(folder), **usual | {"device": "cpu", "threads": 1} | settings)


@pytest.fixture(scope="session")
def sdxl(sdxl_folder) -> Generator:
    return load(sdxl_folder)


@pytest.fixture(scope="session")
def sd(sd_folder) -> Generator:
    return load(sd_folder)


def request_(seed: int = 1, prompt: str = "a burnt pizza", negative_prompt: str = "") -> Request:
    return Request(prompt, negative_prompt, seed)


OTHERS = [request_(seed, "a basic pizza", "burnt") for seed in (11, 12, 13)]


def image(generator: Generator, request: Request, guidance: float = 5.0) -> np.ndarray:
    return generator.generate([request], guidance)[0][0]


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_pipelines_of_both_generations_make_images(name, request):
    generator = request.getfixturevalue(name)
    pixels, flags = generator.generate([request_(1), request_(2)], 5.0)
    assert pixels.shape == (2, 64, 64, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert [flag.nonfinite for flag in flags] == [0, 0]
    assert not np.array_equal(pixels[0], pixels[1])


def test_a_seed_is_a_whole_number_of_64_bits(sdxl):
    assert not np.array_equal(image(sdxl, request_(2**64 - 1)), image(sdxl, request_(2**64 - 2)))


def test_a_request_gives_the_same_image_again(sdxl):
    np.testing.assert_array_equal(image(sdxl, request_()), image(sdxl, request_()))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_an_image_depends_neither_on_its_neighbours_nor_on_its_place(name, position, request):
    generator = request.getfixturevalue(name)
    batch = [*OTHERS[:position], request_(), *OTHERS[position:]]
    np.testing.assert_array_equal(generator.generate(batch, 5.0)[0][position], image(generator, request_()))


def test_more_requests_than_a_batch_holds_are_made_in_several(sdxl):
    requests = [request_(seed) for seed in range(6)]
    pixels, flags = sdxl.generate(requests, 5.0)
    assert len(pixels) == len(flags) == 6
    np.testing.assert_array_equal(pixels[5], image(sdxl, requests[5]))


def test_the_pipeline_always_sees_whole_batches(sdxl, monkeypatch):
    sizes: list[int] = []
    pipeline = sdxl._pipeline

    def seen(**arguments: Any) -> Any:
        sizes.append(len(arguments["generator"]))
        return pipeline(**arguments)

    monkeypatch.setattr(sdxl, "_pipeline", seen)
    sdxl.generate([request_(seed) for seed in range(5)], 5.0)
    assert sizes == [4, 4]


@pytest.mark.parametrize(("guidance", "matters"), [(0.0, False), (1.0, False), (5.0, True)])
def test_a_negative_prompt_matters_only_with_guidance(sdxl, guidance, matters):
    without = image(sdxl, request_(negative_prompt=""), guidance)
    with_one = image(sdxl, request_(negative_prompt="basic pizza"), guidance)
    assert np.array_equal(without, with_one) is not matters


def test_an_image_that_is_not_finite_is_flagged_and_its_neighbours_are_not(sdxl_folder):
    generator = load(sdxl_folder)
    embedding = generator._pipeline.text_encoder.get_input_embeddings()
    embedding.weight.data[WORDS.index("broken")] = float("nan")
    requests = [request_(1), request_(2, "a broken pizza"), request_(3)]
    pixels, flags = generator.generate(requests, 5.0)
    assert [flag.nonfinite > 0 for flag in flags] == [False, True, False]
    assert not pixels[1].any()


def test_latents_that_overflow_are_flagged_though_decoding_hides_it(sdxl_folder):
    generator = load(sdxl_folder)
    generator._pipeline.unet.conv_out.bias.data.fill_(float("inf"))
    generator._pipeline.vae.decode = lambda latents, **_: (torch.zeros(len(latents), 3, 64, 64),)
    latents = 4 * 8 * 8
    assert generator.generate([request_()], 1.0)[1][0].nonfinite == latents


def test_the_verdict_of_a_safety_checker_is_passed_on(sd_folder):
    generator = load(sd_folder)
    assert generator.generate([request_()], 5.0)[1] == [ImageFlags(unsafe=0.0)]
    generator._pipeline.safety_checker.concept_embeds_weights.data.fill_(-2.0)
    pixels, flags = generator.generate([request_()], 5.0)
    assert flags == [ImageFlags(unsafe=1.0)]
    assert not pixels.any()


def test_without_a_safety_checker_nothing_is_known(sdxl):
    assert sdxl.generate([request_()], 5.0)[1] == [ImageFlags(unsafe=None)]


def test_a_model_from_the_hub_cache_is_loaded_at_its_commit(sdxl, sdxl_folder, tmp_path, monkeypatch):
    shutil.copytree(sdxl_folder, tmp_path / "models--org--tiny" / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = load("org/tiny", revision=COMMIT)
    np.testing.assert_array_equal(image(cached, request_()), image(sdxl, request_()))
    assert cached.describe() == {
        "model": "org/tiny",
        "revision": COMMIT,
        "device": "cpu",
        "dtype": "float32 (on a CPU)",
        "placement": "",
        "batch_size": "4",
    }


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_prompts_that_were_encoded_before_give_the_images_that_their_text_gives(name, guidance, request):
    """Up to the low bits: a text that is encoded by itself is not computed in the shape of a batch."""
    generator = request.getfixturevalue(name)
    requests = [request_(1, "a burnt pizza", "basic"), request_(2, "a basic pizza")]
    embedded, _ = generator.generate(requests, guidance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "_loaded", replace(generator._loaded, embeddings=None))
        from_text, _ = generator.generate(requests, guidance)
    np.testing.assert_allclose(embedded.astype(int), from_text, atol=1)


def test_each_text_is_encoded_once(sdxl_folder, monkeypatch):
    generator = load(sdxl_folder)
    encode, texts = generator._pipeline.encode_prompt, []

    def seen(*told: Any, **arguments: Any) -> Any:
        texts.extend(told)  # none in a call of the pipeline itself, which has the embeddings by then
        return encode(*told, **arguments)

    monkeypatch.setattr(generator._loaded.embeddings._pipeline, "encode_prompt", seen)
    for _ in range(2):
        generator.generate([request_(1), request_(2), request_(3, "a basic pizza")], 5.0)
    assert texts == ["a burnt pizza", "a basic pizza", ""]


def test_texts_that_were_not_used_for_long_are_forgotten(sdxl_folder):
    pipeline = load(sdxl_folder)._pipeline
    one = PromptEmbeddings(pipeline, torch.device("cpu"))
    one.arguments(["a basic pizza"], [""], False, torch.device("cpu"))
    few = PromptEmbeddings(pipeline, torch.device("cpu"), max_bytes=2 * one._bytes)
    for text in ("a", "b", "a", "c"):
        few.arguments([text], [""], False, torch.device("cpu"))
    assert list(few._known) == ["a", "c"]
    assert few._bytes == 2 * one._bytes


def test_a_pipeline_of_another_kind_gets_its_prompts_as_text(sdxl):
    class Another(StableDiffusionXLPipeline):
        pass

    assert PromptEmbeddings.supports(sdxl._pipeline)
    assert not PromptEmbeddings.supports(Another(**sdxl._pipeline.components, add_watermarker=False))


def test_on_a_cpu_an_automatic_batch_is_the_usual_one(sdxl_folder):
    assert load(sdxl_folder, batch_size="auto").describe()["batch_size"] == "8"


def test_an_automatic_batch_is_what_fits_into_the_memory_of_the_gpu(sdxl, monkeypatch):
    """Two images were seen to take 3 GB, one 2 GB, and 10 of 16 GB are free, 2.4 of them for others."""
    gigabytes = 10**9
    allocated = {1: 2 * gigabytes, 2: 3 * gigabytes}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * gigabytes, 16 * gigabytes))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocated[sdxl.batch_size])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(sdxl, "batch_size", 1)
    assert fit_batch(sdxl._warm_up, sdxl.device, 0.15) == 4
    assert sdxl.steps == 2  # as configured: a warm-up does not change it


def exhausted(message: str = "CUDA out of memory") -> RuntimeError:
    return torch.OutOfMemoryError(message)


def test_an_automatic_batch_is_one_image_where_two_do_not_fit(monkeypatch):
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))

    def of_one(size: int) -> None:
        if size > 1:
            raise exhausted()

    assert fit_batch(of_one, torch.device("cpu"), 0.15) == 1


def test_the_warm_up_before_compiling_halves_a_batch_that_does_not_fit():
    sizes = []

    def of_two(size: int) -> None:
        sizes.append(size)
        if size > 2:
            raise exhausted()

    assert halve_until_it_fits(of_two, 8) == 2
    assert sizes == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        halve_until_it_fits(lambda size: (_ for _ in ()).throw(exhausted()), 4)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (exhausted(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("The size of tensor a (16) must match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_a_library_without_memory_of_its_own_halves_a_batch_as_well(sdxl, monkeypatch):
    pipeline, sizes = sdxl._pipeline, []

    def of_two(**arguments: Any) -> Any:
        sizes.append(len(arguments["generator"]))
        if sizes[-1] > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return pipeline(**arguments)

    monkeypatch.setattr(sdxl, "_pipeline", of_two)
    monkeypatch.setattr(sdxl, "batch_size", 4)
    sdxl.generate([request_()], 5.0)
    assert sizes == [4, 2]


def test_an_autoencoder_that_was_left_in_float32_is_brought_back_before_the_next_batch(sdxl_folder):
    generator = load(sdxl_folder, dtype="bfloat16")
    pipeline = generator._pipeline
    dtypes = []

    class Upcasting:
        vae = pipeline.vae
        scheduler = pipeline.scheduler

        def __call__(self, **arguments: Any) -> Any:
            dtypes.append(self.vae.dtype)
            if len(arguments["generator"]) > 2:
                self.vae.to(dtype=torch.float32)
                raise exhausted()
            return pipeline(**arguments)

    generator._pipeline = Upcasting()
    generator.generate([request_()], 5.0)
    assert dtypes == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize(
    ("scales", "expected"), [((5.0, 7.0), [True]), ((0.0,), [False]), ((5.0, 1.0), [True, False])]
)
def test_a_warm_up_has_the_shapes_that_a_run_asks_for(sdxl, scales, expected):
    asked = Asked((), scales, (), 64, 64, "auto")
    assert [sdxl.family.guides(scale) for scale in _warm_up_scales(sdxl.family, asked)] == expected


def test_a_generator_beside_a_verifier_is_kept_to_its_share_of_the_memory(monkeypatch):
    limits = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share)
    )
    limit_memory(torch.device("cuda"), 0.9)
    limit_memory(torch.device("cuda"), 1.0)
    limit_memory(torch.device("cpu"), 0.9)
    assert limits == [0.9]


@pytest.mark.parametrize(("free", "expected"), [(16, 12), (5, 5)])
def test_what_a_generator_may_take_is_neither_more_than_is_free_nor_than_its_share(
    monkeypatch, free, expected
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 16))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.75)
    assert free_memory(torch.device("cuda")) == expected


def test_text_encoders_that_stay_off_the_gpu_compute_in_float32_and_give_what_the_pipeline_takes(sdxl_folder):
    pipeline = load(sdxl_folder, dtype="bfloat16")._pipeline
    usual = PromptEmbeddings(pipeline, torch.device("cpu"))._encode("a burnt pizza")
    threads = torch.get_num_threads()
    try:
        place_parts(pipeline, torch.device("meta"), keep_encoders=True)  # in the place of a GPU
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(threads)
    assert pipeline.unet.device.type == pipeline.vae.device.type == "meta"
    assert pipeline.text_encoder.dtype == pipeline.text_encoder_2.dtype == torch.float32
    apart = PromptEmbeddings(pipeline, torch.device("cpu"), dtype=torch.bfloat16)._encode("a burnt pizza")
    for one, other in zip(apart, usual, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_a_verifier_computes_convolutions_in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    use_full_float32(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    use_full_float32(torch.device("cuda"))
    assert not torch.backends.cudnn.allow_tf32


def test_a_model_that_is_compiled_is_warmed_up_before_it_is_ready(sdxl_folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **told: compiled.append((type(module).__name__, told))
    )
    monkeypatch.setattr(
        torch, "compile", lambda function, **told: compiled.append(("decode", told)) or function
    )
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # whatever is set is taken back
        monkeypatch.delenv(name)
    batches = []
    monkeypatch.setattr(Generator, "_warm_up", lambda self, size: batches.append(size))
    load(sdxl_folder, compiled=True)
    whole = {"fullgraph": True, "dynamic": False}
    assert compiled == [("UNet2DConditionModel", whole), ("decode", whole)]
    assert batches == [4]
    # Not the shared temporary folder, where another user may have left something to be run.
    for found in (cache_dir(), triton_cache_dir(0)):
        assert Path(found).is_relative_to(private_folder("compile"))


def test_a_configured_dtype_is_taken(sdxl_folder):
    generator = load(sdxl_folder, dtype="bfloat16")
    assert generator.describe()["dtype"] == "bfloat16 (as configured)"
    assert generator._pipeline.vae.dtype == torch.bfloat16
    assert generator.generate([request_()], 5.0)[1][0].nonfinite == 0


def test_weights_that_do_not_fit_their_config_are_a_weights_error(sdxl_folder, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(sdxl_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match="its header has"):
        load(folder)


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_a_component_that_lacks_a_tensor_is_refused(sdxl_folder, tmp_path, component):
    """It would be random, and another one in each process."""
    folder = shutil.copytree(sdxl_folder, tmp_path / "broken")
    [path] = (folder / component).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if tensors[name].dim() > 1)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"lack 1 tensor, such as .*{name.rpartition('.')[2]}"):
        load(folder)


def test_a_gpu_that_is_not_there_cannot_be_demanded(sdxl_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="no CUDA device"):
        load(sdxl_folder, device="cuda")


def test_a_batch_that_does_not_fit_into_gpu_memory_is_halved_for_good(sdxl, monkeypatch):
    requests = [request_(seed) for seed in range(4)]
    expected, _ = sdxl.generate(requests, 5.0)
    pipeline, sizes = sdxl._pipeline, []

    def of_two(**arguments: Any) -> Any:
        sizes.append(len(arguments["generator"]))
        if sizes[-1] > 2:
            raise torch.cuda.OutOfMemoryError
        return pipeline(**arguments)

    monkeypatch.setattr(sdxl, "_pipeline", of_two)
    monkeypatch.setattr(sdxl, "batch_size", 4)
    pixels, flags = sdxl.generate(requests, 5.0)
    sdxl.generate(requests[:1], 5.0)
    assert sizes == [4, 2, 2, 2]
    assert sdxl.describe()["batch_size"] == "2"
    assert len(flags) == 4
    np.testing.assert_allclose(pixels.astype(int), expected, atol=1)


def test_an_image_that_does_not_fit_into_gpu_memory_alone_is_an_error(sdxl, monkeypatch):
    def none(**arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(sdxl, "_pipeline", none)
    monkeypatch.setattr(sdxl, "batch_size", 4)
    with pytest.raises(UnavailableError, match="one image of 64 x 64 does not fit"):
        sdxl.generate([request_()], 5.0)
