from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actors.models.verifier import Verifier
from balancer.cells import Cell
from balancer.errors import WeightsError
from balancer.images import luminance_stats, perceptual_hash, pixel_sha256
from balancer.verification.calibration import calibrated
from balancer.verification.challenges import make_challenges
from balancer.verification.head_fitting import fit_head
from balancer.verification.heads import KINDS as HEAD_KINDS
from balancer.verification.heads import Head
from balancer.verification.off_domain import KINDS
from balancer.verification.typicality import fit_typicality
from balancer.verification.verdict import ImageFlags, Measurement

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
CELL = Cell("basic", (("lighting", "dim"),))
MAX_PIXELS = 1_000_000
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
    return verifier.measure(pixels, [ImageFlags()] * len(pixels), [CELL] * len(pixels))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


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
    [measurement] = verifier.measure(pixels, [ImageFlags(nonfinite=3, unsafe=0.75)], [CELL])
    assert measurement.flags == ImageFlags(nonfinite=3, unsafe=0.75)
    assert measurement.unsafe == 0.75
    assert measurement.pixel_sha256 == pixel_sha256(image)
    assert (measurement.brightness, measurement.deviation) == luminance_stats(image)
    assert measurement.phash == perceptual_hash(image)


def test_images_are_taken_from_arrays_that_cannot_be_written_to(verifier):
    frozen = pictures(2)
    frozen.flags.writeable = False  # as they come out of an object store
    assert len(measure(verifier, frozen)) == 2


def test_every_image_needs_its_flags(verifier):
    with pytest.raises(ValueError, match="shorter"):
        verifier.measure(pictures(2), [ImageFlags()], [CELL] * 2)


def test_a_temperature_changes_its_property_and_no_other(verifier, folder):
    hot = Verifier(str(folder), None, PROPERTIES, "cpu", 1, temperatures={"class": 3.0})
    [plain], [scaled] = measure(verifier, pictures(1)), measure(hot, pictures(1))
    assert scaled.probabilities["lighting"] == plain.probabilities["lighting"]
    logs = np.log([[*plain.probabilities["class"].values()]])
    assert [*scaled.probabilities["class"].values()] == pytest.approx(calibrated(logs, 3.0)[0], abs=1e-9)
    assert scaled.embedding == plain.embedding


def test_files_are_measured_as_their_pixels_are(verifier):
    pixels = pictures(6)
    assert verifier.measure_files([png(image) for image in pixels], MAX_PIXELS) == measure(verifier, pixels)


def test_files_of_different_sizes_are_measured_as_each_is_alone(verifier):
    mixed = [pictures(1, *size)[0] for size in ((64, 64), (40, 90), (24, 24), (64, 64), (33, 200))]
    together = verifier.measure_files([png(image) for image in mixed], MAX_PIXELS)
    assert together == [measure(verifier, image[None])[0] for image in mixed]


def test_files_are_measured_before_calibration(verifier, folder):
    hot = Verifier(str(folder), None, PROPERTIES, "cpu", 1, temperatures={"class": 3.0, "lighting": 0.1})
    files = [png(image) for image in pictures(2)]
    assert hot.measure_files(files, MAX_PIXELS) == verifier.measure_files(files, MAX_PIXELS)


def test_what_cannot_be_read_has_its_reason_in_its_place(verifier):
    good, large = pictures(1)[0], pictures(1, 200, 200)[0]
    files = [png(good)[:40], png(good), png(large), b"not a picture"]
    first, second, third, fourth = verifier.measure_files(files, 64 * 64)
    assert second == measure(verifier, good[None])[0]
    assert "truncated" in first or "damaged" in first
    assert "over the limit" in third
    assert "not a PNG" in fourth
    assert verifier.measure_files(files[-1:], MAX_PIXELS) == [fourth]


def test_weights_that_do_not_fit_their_config_are_a_weights_error(tmp_path):
    save_model(tmp_path)
    config = {"model_cfg": MODEL | {"embed_dim": 12}, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="does not load") as caught:
        Verifier(str(tmp_path), None, PROPERTIES, device="cpu")
    assert "\n" not in caught.value.message


def test_what_a_model_lacks_is_not_fetched_from_elsewhere(tmp_path, monkeypatch):
    save_model(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/words"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *asking, **_: asked.append(asking) or [])
    with contextlib.suppress(WeightsError):
        Verifier(str(tmp_path), None, {})
    assert asked == []


def test_the_embedded_verifier_measures_images():
    embedded = Verifier("embedded", None, PROPERTIES, device="cpu", threads=1)
    [measurement] = measure(embedded, pictures(1, 128, 128))
    assert len(measurement.embedding) == 2 * embedded.embedding_dim
    assert embedded.describe()["model"] == "embedded"
    assert len(embedded.describe()["revision"]) == 40


# ---- images of none of the classes -------------------------------------------------------------


@pytest.fixture(scope="module")
def typicality(verifier):
    seen = [verifier.study_files([png(image)], MAX_PIXELS, 0, 1)[0] for image in pictures(30)]
    kinds = ["block1.moments", "sharpness"]
    features = {kind: np.concatenate([each.features[kind] for each in seen]) for kind in kinds}
    return fit_typicality(features, np.arange(30), kinds)


def test_images_are_compared_with_the_real_ones_if_a_run_does(verifier, typicality):
    pixels = np.concatenate(
        [pictures(5), np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)]
    )
    plain = measure(verifier, pixels)
    compared = verifier.measure(pixels, [ImageFlags()] * 6, [CELL] * 6, typicality)
    assert [replace(each, typicality=None) for each in compared] == plain
    *usual, odd = [each.typicality for each in compared]
    assert odd == pytest.approx(1 / 31)
    assert min(usual) > odd


def test_typicality_does_not_depend_on_how_many_images_came(verifier, typicality):
    pixels = pictures(7)
    together = verifier.measure(pixels, [ImageFlags()] * 7, [CELL] * 7, typicality)
    alone = verifier.measure(pixels[5:6], [ImageFlags()], [CELL], typicality)
    assert alone == together[5:6]


def test_a_domain_score_is_the_share_of_the_classes_among_classes_and_negatives(folder, verifier):
    pixels = pictures(3)
    negatives = ("lighting", "a dim lighting")
    asked = Verifier(str(folder), None, PROPERTIES, device="cpu", threads=1, negatives=negatives)
    together = Verifier(
        str(folder),
        None,
        {"class": PROPERTIES["class"] | {name: (name,) for name in negatives}},
        device="cpu",
        threads=1,
    )
    for one, other in zip(measure(asked, pixels), measure(together, pixels), strict=True):
        likely = other.probabilities["class"]
        assert one.domain_score == pytest.approx(likely["basic"] + likely["burnt"], abs=1e-6)
    assert {each.domain_score for each in measure(verifier, pixels)} == {None}


def test_a_studied_file_has_features_of_the_image_and_of_its_variations(verifier):
    [image] = pictures(1)
    [seen, problem] = verifier.study_files([png(image), b"no image"], MAX_PIXELS, 3, 1)
    assert isinstance(problem, str)
    assert {len(rows) for rows in seen.features.values()} == {4}
    [alone] = verifier.study_files([png(image)], MAX_PIXELS, 0, 1)
    for kind, rows in alone.features.items():
        assert rows[0] == pytest.approx(seen.features[kind][0], abs=1e-5), kind


def test_large_files_are_studied_as_the_model_sees_them(verifier):
    [image] = pictures(1, 64, 96)
    large = np.asarray(Image.fromarray(image).resize((960, 640), Image.Resampling.NEAREST))
    [seen] = verifier.study_files([png(large)], MAX_PIXELS, 2, 1)
    assert {len(rows) for rows in seen.features.values()} == {3}


@pytest.mark.parametrize("kind", ["white_noise", "shuffled"])
def test_challenge_images_are_measured_as_others_are(folder, verifier, kind):
    hot = Verifier(str(folder), None, PROPERTIES, device="cpu", threads=1, temperatures={"class": 5.0})
    files, labels = [png(image) for image in pictures(3)], ["basic", "burnt", "basic"]
    seen = hot.challenge(kind, 6, 1, files, labels, MAX_PIXELS)
    images = make_challenges(kind, 6, 1, (32, 32), [small(image) for image in pictures(3)], labels)
    for index, each in enumerate(measure(verifier, images)):
        assert seen.probabilities["class"][index] == pytest.approx([*each.probabilities["class"].values()])
        assert (seen.brightness[index], seen.deviation[index]) == (each.brightness, each.deviation)
    assert seen.domain_scores.tolist() == [1.0] * 6  # there are no negatives


def small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))


# ---- heads -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(verifier) -> Head:
    """It calls an image basic if it is dark."""
    seen = verifier.study_files([png(image) for image in pictures(24)], MAX_PIXELS, 0, 1, HEAD_KINDS)
    features = {kind: np.stack([each.head_features[kind] for each in seen]) for kind in seen[0].head_features}
    dark = features["thumbnail"].mean(axis=1)
    words = np.log([[*each.probabilities["class"].values()] for each in measure(verifier, pictures(24))])
    labels = (dark > np.median(dark)).astype(np.intp)
    return fit_head(features, labels, np.arange(24), words, tuple(PROPERTIES["class"]), 5).head


def judged(verifier, pixels, heads):
    count = len(pixels)
    return verifier.measure(pixels, [ImageFlags()] * count, [CELL] * count, None, heads)


def test_a_head_judges_its_property_from_what_the_words_say(verifier, head):
    pixels = pictures(6)
    plain, by_head = measure(verifier, pixels), judged(verifier, pixels, {"class": head})
    _, features = verifier.look(pixels, head.kinds)
    words = np.log([[*each.probabilities["class"].values()] for each in plain])
    expected = np.exp(head.log_probabilities(features, words))
    for one, own, row in zip(plain, by_head, expected, strict=True):
        assert [*own.probabilities["class"].values()] == pytest.approx(row.tolist(), abs=1e-5)
        assert own.probabilities["lighting"] == pytest.approx(one.probabilities["lighting"])
        assert (own.embedding, own.typicality) == (one.embedding, None)


def test_a_temperature_is_not_applied_to_what_a_head_says(folder, verifier, head):
    temperatures = {"class": 5.0, "lighting": 5.0}
    hot = Verifier(str(folder), None, PROPERTIES, device="cpu", threads=1, temperatures=temperatures)
    [plain], [scaled] = (judged(each, pictures(1), {"class": head}) for each in (verifier, hot))
    assert plain.probabilities["class"] == scaled.probabilities["class"]
    assert plain.probabilities["lighting"] != scaled.probabilities["lighting"]


def test_what_a_head_says_does_not_depend_on_how_many_images_came(verifier, head):
    pixels = pictures(7)
    assert judged(verifier, pixels[5:6], {"class": head}) == judged(verifier, pixels, {"class": head})[5:6]


def test_challenge_images_are_judged_by_heads(verifier, head):
    seen = verifier.challenge("white_noise", 6, 1, [], [], MAX_PIXELS, {"class": head})
    images = make_challenges("white_noise", 6, 1, (32, 32), [], [])
    for index, each in enumerate(judged(verifier, images, {"class": head})):
        assert seen.probabilities["class"][index] == pytest.approx(
            [*each.probabilities["class"].values()], abs=1e-5
        )
    assert seen.features.keys() <= set(KINDS)


def test_features_of_heads_are_those_of_the_image_itself(verifier):
    [image] = pictures(1)
    [alone] = verifier.study_files([png(image)], MAX_PIXELS, 0, 1, HEAD_KINDS)
    [varied] = verifier.study_files([png(image)], MAX_PIXELS, 3, 1, HEAD_KINDS)
    assert alone.head_features.keys() == {"final", "thumbnail", "edges", "block1.moments", "block1.grid"}
    for kind, numbers in alone.head_features.items():
        assert numbers == pytest.approx(varied.head_features[kind], abs=1e-5)
    [without] = verifier.study_files([png(image)], MAX_PIXELS, 3, 1)
    assert without.head_features == {}


def test_files_are_studied_together_as_alone(verifier):
    files = [png(image) for image in pictures(6)]
    together = verifier.study_files([files[0], b"no image", *files[1:]], MAX_PIXELS, 0, 1, HEAD_KINDS)
    assert isinstance(together.pop(1), str)
    for file, seen in zip(files, together, strict=True):
        [alone] = verifier.study_files([file], MAX_PIXELS, 0, 1, HEAD_KINDS)
        for kind, numbers in alone.head_features.items():
            assert numbers == pytest.approx(seen.head_features[kind], abs=1e-5)
        for kind, rows in alone.features.items():
            assert rows == pytest.approx(seen.features[kind], abs=1e-5)
