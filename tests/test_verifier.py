from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actors.verifier import Verifier, batched
from balancer.errors import WeightsError
from balancer.images import luminance_stats, perceptual_hash
from balancer.verdict import ImageFlags, Measurement

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "basic", "burnt", "pizza", "dim", "backlit", "lighting"]
MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {
        "context_length": 8,
        "vocab_size": len(WORDS),
        "width": 16,
        "heads": 2,
        "layers": 1,
        "pool_type": "last",
        "hf_tokenizer_name": "word-level",
    },
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
PROPERTIES: dict[str, dict[str, tuple[str, ...]]] = {
    "class": {"basic": ("a basic pizza", "basic"), "burnt": ("a burnt pizza", "burnt pizza", "burnt")},
    "lighting": {"dim": ("dim lighting",), "backlit": ("backlit",), "both": ("dim backlit lighting",)},
}


def save_model(folder: Path) -> Path:
    """An open_clip model with random weights, in a folder."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    model.logit_scale.data.fill_(2.0)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS | {"resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)]
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def verifier(folder) -> Verifier:
    return Verifier(str(folder), None, PROPERTIES, device="cpu", threads=1)


def pictures(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth colours with some noise, as photographs have."""
    random = np.random.default_rng(count)
    rough = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    smooth = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in rough]
    noisy = np.stack([np.asarray(one) for one in smooth]) + random.normal(0, 8, (count, height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def measure(verifier: Verifier, pixels: np.ndarray) -> list[Measurement]:
    return verifier.measure(pixels, [ImageFlags()] * len(pixels))


def test_probabilities_of_a_property_sum_to_one(verifier):
    for measurement in measure(verifier, pictures(3)):
        assert {name: list(values) for name, values in measurement.probabilities.items()} == {
            name: list(values) for name, values in PROPERTIES.items()
        }
        for values in measurement.probabilities.values():
            assert sum(values.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80), (24, 24)])
def test_measurements_agree_with_open_clip_step_by_step(verifier, folder, size):
    pixels = pictures(2, *size)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        images = torch.stack([transform(Image.fromarray(image)) for image in pixels])
        seen = model.eval().encode_image(images, normalize=True)
        for name, values in PROPERTIES.items():
            texts = [model.encode_text(tokenize(list(labels)), normalize=True) for labels in values.values()]
            centres = torch.stack([text.mean(0) / text.mean(0).norm() for text in texts])
            expected = (model.logit_scale.exp() * seen @ centres.T).softmax(1)
            for measurement, row in zip(measure(verifier, pixels), expected, strict=True):
                assert list(measurement.probabilities[name].values()) == pytest.approx(row.tolist(), abs=2e-3)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 90), (20, 28)])
def test_batched_preprocessing_is_that_of_open_clip(mode, interpolation, size):
    config = open_clip.transform.PreprocessCfg(
        size=32,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        resize_mode=mode,
        interpolation=interpolation,
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    pixels = pictures(3, *size)
    expected = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    made = batched(transform)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert made.shape == (3, 3, 32, 32)
    # Both round to bytes between and after the two passes of a resize, not always the same way.
    levels = (made - expected).abs() * torch.tensor(config.std).reshape(3, 1, 1) * 255
    assert levels.max() < 2.01
    assert levels.mean() < 0.3


def test_a_measurement_does_not_depend_on_how_many_images_came(verifier):
    pixels = pictures(5)
    assert measure(verifier, pixels[3:4]) == measure(verifier, pixels)[3:4]


def test_wordings_of_a_value_count_alike_in_any_order(verifier, folder):
    turned = {
        name: {value: labels[::-1] for value, labels in values.items()} for name, values in PROPERTIES.items()
    }
    again = Verifier(str(folder), None, turned, device="cpu", threads=1)
    pixels = pictures(1)
    [one], [other] = measure(verifier, pixels), measure(again, pixels)
    assert one.probabilities["class"] == pytest.approx(other.probabilities["class"], abs=1e-5)


def test_an_embedding_is_a_unit_vector_in_half_precision(verifier):
    [measurement] = measure(verifier, pictures(1))
    vector = np.frombuffer(measurement.embedding, "<f2")
    assert len(vector) == verifier.embedding_dim == int(verifier.describe()["embedding_dim"]) == 8
    assert np.linalg.norm(vector.astype(float)) == pytest.approx(1, abs=1e-3)


def test_statistics_and_flags_come_along(verifier):
    [image] = pixels = pictures(1)
    [measurement] = verifier.measure(pixels, [ImageFlags(finite=False, flagged=True)])
    assert measurement.flags == ImageFlags(finite=False, flagged=True)
    assert (measurement.brightness, measurement.deviation) == luminance_stats(image)
    assert measurement.phash == perceptual_hash(image)


def test_images_are_taken_from_arrays_that_cannot_be_written_to(verifier):
    frozen = pictures(2)
    frozen.flags.writeable = False  # as they come out of an object store
    assert len(measure(verifier, frozen)) == 2


def test_every_image_needs_its_flags(verifier):
    with pytest.raises(ValueError, match="shorter"):
        verifier.measure(pictures(2), [ImageFlags()])


def test_weights_that_do_not_fit_their_config_are_a_weights_error(tmp_path):
    save_model(tmp_path)
    config = {"model_cfg": MODEL | {"embed_dim": 12}, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="does not load") as caught:
        Verifier(str(tmp_path), None, PROPERTIES, device="cpu")
    assert "\n" not in caught.value.message


def test_the_embedded_verifier_measures_images():
    embedded = Verifier("embedded", None, PROPERTIES, device="cpu", threads=1)
    [measurement] = measure(embedded, pictures(1, 128, 128))
    assert len(measurement.embedding) == 2 * embedded.embedding_dim
    assert embedded.describe()["model"] == "embedded"
    assert len(embedded.describe()["revision"]) == 40
