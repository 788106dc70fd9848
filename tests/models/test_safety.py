from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from actors.models.safety import SafetyChecker
from actors.run import run
from actors.specs import SafetySpec, VerifierSpec
from actors.weights.resolve import describe
from balancer import open_manifest
from balancer.cells import Cell
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import UsageError, WeightsError
from balancer.verification.verdict import Criteria, ImageFlags, judge
from tests.tiny_models import SIDE, save_image_classifier, save_vision_language_model

LABELS = ("neutral", "nsfw", "gore", "drawing")
UNSAFE = ("nsfw", "gore")
PROPERTIES = {"class": {"burnt": ("a burnt pizza",)}}
CELL = Cell("burnt")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_image_classifier(tmp_path_factory.mktemp("safety"), LABELS)


@pytest.fixture(scope="session")
def checker(folder):
    return SafetyChecker(str(folder), None, UNSAFE, device="cpu")


def pictures(count):
    frozen = np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    frozen.flags.writeable = False
    return frozen


def test_unsafe_is_the_sum_of_the_unsafe_labels(checker, folder):
    pixels = pictures(6)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        inputs = processor([Image.fromarray(image) for image in pixels], return_tensors="pt")
        likely = model(**inputs).logits.softmax(1)
    assert checker.probabilities(pixels) == pytest.approx((likely[:, 1] + likely[:, 2]).tolist(), abs=1e-5)


def test_a_probability_does_not_depend_on_how_many_images_came(checker):
    pixels = pictures(5)
    together = checker.probabilities(pixels)
    assert [checker.probabilities(pixels[i : i + 1])[0] for i in range(5)] == together
    assert len(set(together)) == 5


def test_labels_that_do_not_exclude_each_other_have_probabilities_of_their_own(tmp_path):
    save_image_classifier(tmp_path, LABELS)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": "multi_label_classification"}))
    pixels = pictures(4)
    each = [SafetyChecker(str(tmp_path), None, [label], "cpu").probabilities(pixels) for label in LABELS]
    assert any(sum(of) > 1.001 for of in zip(*each, strict=True))
    together = SafetyChecker(str(tmp_path), None, LABELS, "cpu").probabilities(pixels)
    assert together == pytest.approx([min(1.0, sum(of)) for of in zip(*each, strict=True)], abs=1e-5)


def test_a_label_the_model_lacks_is_refused_with_those_it_has(folder):
    with pytest.raises(WeightsError, match="no label 'porn'; its labels are neutral, nsfw, gore, drawing"):
        SafetyChecker(str(folder), None, ["nsfw", "porn"], "cpu")


@pytest.mark.parametrize("damage", ["numbers", "label"])
def test_a_checker_that_cannot_judge_any_image_is_refused_when_it_loads(tmp_path, damage):
    folder = save_image_classifier(tmp_path, LABELS)
    path, config = folder / "model.safetensors", folder / "config.json"
    if damage == "numbers":
        save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    else:
        names = {"0": "neutral", "1": "gore", "2": "drawing", "99": "nsfw"}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": names, "label2id": {}}))
    with pytest.raises(WeightsError, match=r"gives no numbers for a grey image|cannot be used"):
        SafetyChecker(str(folder), None, ["nsfw"], "cpu")


def refusal(folder):
    with pytest.raises(WeightsError) as caught:
        SafetyChecker(str(folder), None, UNSAFE, "cpu")
    assert "\n" not in caught.value.message
    assert "image classifier" in caught.value.hint
    return caught.value.message


def test_a_model_that_classifies_nothing_is_a_weights_error(tmp_path):
    assert "does not load" in refusal(save_vision_language_model(tmp_path))


def test_a_classifier_without_its_last_layer_is_refused_instead_of_filled_with_noise(tmp_path):
    save_image_classifier(tmp_path, LABELS)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.weight"], tensors["classifier.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lack 2 tensors, such as classifier.bias" in refusal(tmp_path)


def verifier_with(folder):
    safety = SafetySpec(model=str(folder), labels=UNSAFE)
    return VerifierSpec(
        model="embedded", properties=PROPERTIES, device="cpu", threads=1, safety=safety
    ).load()


@pytest.mark.parametrize("flag", [None, 0.0, 1.0])
def test_the_stricter_of_two_checkers_counts(folder, checker, flag):
    pixels = pictures(1)
    [own] = checker.probabilities(pixels)
    [measurement] = verifier_with(folder).measure(pixels, [ImageFlags(unsafe=flag)], [CELL])
    assert measurement.unsafe == max(own, flag or 0.0)


def test_an_unsafe_candidate_is_flagged_whatever_it_shows(folder):
    [measurement] = verifier_with(folder).measure(pictures(1), [ImageFlags()], [CELL])
    assert measurement.unsafe is not None
    assert judge(measurement, CELL, Criteria(0.6, max_unsafe=measurement.unsafe)).accepted
    verdict = judge(measurement, CELL, Criteria(0.6, max_unsafe=measurement.unsafe - 1e-6))
    assert (verdict.accepted, verdict.reason) == (False, "flagged")


@pytest.fixture(scope="module")
def configured(folder, project, tmp_path_factory):
    """The reference case with both further judges; the safety checker lets nothing pass."""
    asked = save_vision_language_model(tmp_path_factory.mktemp("second_judge"))
    values = load_config(project / "configs/demo.yaml").model_dump(mode="json", exclude_unset=True)
    values["verification"] |= {
        "safety": {"model": str(folder), "labels": UNSAFE, "max_unsafe": 0.0},
        "second_judge": {"model": str(asked), "question": "Is this {} ?"},
    }
    values["attempts"] = {"max": 1, "give_up_below": 0}
    values["generation"]["batch_size"] = 2
    values["actors"] = {"generators": 1, "device": "cpu"}
    return Config.model_validate(values)


def test_what_a_run_flags_is_in_its_rows_and_its_judges_are_in_run_json(configured, folder, tmp_path, here):
    result = run(configured, tmp_path / "run", limit=2)
    assert (result.accepted, result.candidates) == (0, 2)
    rows = open_manifest(tmp_path / "run").to_table(status="all", filter="source = 'synthetic'").to_pylist()
    assert [row["reason"] for row in rows] == ["flagged", "flagged"]
    assert all(0 < row["unsafe"] <= 1 for row in rows)
    assert all(0 < row["second_scores"]["class"] < 1 for row in rows)
    told = json.loads((tmp_path / "run/run.json").read_text())["models"]
    assert list(told) == ["generator", "verifier", "second judge", "safety checker"]
    assert told["safety checker"] == describe(str(folder), None, None, "safety checker")
    assert told["safety checker"]["sha256"]
    without = configured.model_copy(
        update={"verification": configured.verification.model_copy(update={"safety": None})}
    )
    with pytest.raises(UsageError, match=r"verification\.safety"):
        run(without, tmp_path / "run", limit=2)
