from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.models.verifier import Verifier
from actors.models.vlm_judge import VlmJudge
from actors.specs import VerifierSpec, VlmJudgeSpec
from balancer.cells import Candidate, Cell, Slot
from balancer.config.schema import Config
from balancer.errors import WeightsError
from balancer.manifest.rows import RunFacts, candidate_row
from balancer.scheduling.prompts import Request, Rung
from balancer.verification.verdict import Criteria, ImageFlags, judge
from tests.tiny_models import save_image_classifier, save_vision_language_model

QUESTION = "Is this {} ?"
PROPERTIES = {
    "class": {"basic": ("a basic pizza",), "burnt": ("one very burnt pizza slice", "burnt")},
    "lighting": {"dim": ("dim",), "backlit": ("backlit",)},
}
CELLS = [
    Cell("basic", (("lighting", "dim"),)),
    Cell("burnt", (("lighting", "backlit"),)),
    Cell("burnt"),
    Cell("basic", (("lighting", "backlit"),)),
    Cell("basic"),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_vision_language_model(tmp_path_factory.mktemp("second_judge"))


def made(folder, question=QUESTION):
    return VlmJudge(str(folder), None, question, PROPERTIES, device="cpu")


@pytest.fixture(scope="session")
def second_judge(folder):
    return made(folder)


def pictures(count=5, side=40):
    frozen = np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8)
    frozen.flags.writeable = False  # as they come out of an object store
    return frozen


def test_every_property_of_a_cell_gets_a_probability(second_judge):
    scores = second_judge.scores(pictures(), CELLS)
    assert [list(one) for one in scores] == [[name for name, _ in cell.properties] for cell in CELLS]
    assert all(0 < score < 1 for one in scores for score in one.values())


def test_a_score_is_the_share_of_yes_among_the_yes_and_no_tokens(second_judge, folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    [image] = pixels = pictures(1)
    inputs = processor(
        text=["<bos>USER <image> Is this one very burnt pizza slice ? ASSISTANT"],
        images=[image.copy()],
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.no_grad():
        likely = model(**inputs).logits[0, -1].softmax(0)
    yes, no = (
        sum(float(likely[processor.tokenizer.convert_tokens_to_ids(word)]) for word in words)
        for words in (("Yes", "yes"), ("No", "no"))
    )
    assert second_judge.scores(pixels, CELLS[2:3])[0]["class"] == pytest.approx(yes / (yes + no), abs=1e-4)


def test_scores_depend_on_image_and_wanted_value_and_question(second_judge, folder):
    pixels = pictures()
    [one], [other] = (second_judge.scores(pixels[:1], [cell]) for cell in (CELLS[0], CELLS[1]))
    assert abs(one["class"] - other["class"]) > 1e-3
    assert abs(one["lighting"] - other["lighting"]) > 1e-3
    [elsewhere] = second_judge.scores(pixels[1:2], CELLS[:1])
    assert abs(one["class"] - elsewhere["class"]) > 1e-4
    [asked_otherwise] = made(folder, "burnt {} ?").scores(pixels[:1], CELLS[:1])
    assert abs(one["class"] - asked_otherwise["class"]) > 1e-3


def test_scores_do_not_depend_on_what_else_is_asked(second_judge):
    pixels = pictures()
    together = second_judge.scores(pixels, CELLS)
    alone = [second_judge.scores(pixels[index : index + 1], [cell])[0] for index, cell in enumerate(CELLS)]
    assert alone == together
    backwards = second_judge.scores(pixels[::-1], CELLS[::-1])
    assert backwards[::-1] == together


def test_a_model_without_a_chat_template_is_asked_after_a_bare_image_token(tmp_path):
    plain = made(save_vision_language_model(tmp_path, chat_template=None))
    scores = plain.scores(pictures(), CELLS)
    assert all(0 < score < 1 for one in scores for score in one.values())
    assert len({score for one in scores for score in one.values()}) > 1


def test_images_of_another_size_are_judged_as_well(second_judge):
    [wide] = second_judge.scores(pictures(1, 64), CELLS[:1])
    [narrow] = second_judge.scores(pictures(1, 24), CELLS[:1])
    assert wide.keys() == narrow.keys() == {"class", "lighting"}


@pytest.fixture(scope="session")
def measured(folder):
    """What a verifier with this second judge says of one image."""
    second = VlmJudgeSpec(model=str(folder), question=QUESTION)
    spec = VerifierSpec(model="embedded", properties=PROPERTIES, device="cpu", threads=1, second_judge=second)
    verifier = spec.load()
    [measurement] = verifier.measure(pictures(1), [ImageFlags()], CELLS[:1])
    return measurement


def test_the_second_judge_sees_what_the_verifier_measures(measured, second_judge):
    assert measured.second_scores == second_judge.scores(pictures(1), CELLS[:1])[0]


def test_the_lower_of_two_judges_decides_and_its_score_is_in_the_row(measured):
    second = measured.second_scores["lighting"]
    sure = {"class": {"basic": 1.0, "burnt": 0.0}, "lighting": {"dim": second + 0.1, "backlit": 0.0}}
    measurement = replace(
        measured, probabilities=sure, deviation=0.2, second_scores={"class": 1.0, "lighting": second}
    )
    assert judge(measurement, CELLS[0], Criteria(second - 0.01)).accepted
    verdict = judge(measurement, CELLS[0], Criteria(second + 0.01))
    assert (verdict.accepted, verdict.reason) == (False, "lighting")
    row = candidate_row(
        Candidate(Slot(CELLS[0], 0), 1),
        Rung(threshold=second + 0.01, guidance=3.0),
        Request("a basic pizza, dim", "", 1),
        measurement,
        verdict,
        None,
        device="cpu",
        batch_size=1,
        facts=facts(),
    )
    assert row["second_scores"] == {"class": 1.0, "lighting": second}
    assert row["scores"]["lighting"] == second == row["score"]


def facts():
    values = {value: {"prompts": list(words)} for value, words in PROPERTIES["lighting"].items()}
    config = Config.model_validate(
        {
            "classes": {name: {"prompts": list(words)} for name, words in PROPERTIES["class"].items()},
            "facets": {"lighting": {"values": values}},
            "target": {"per_class": 1},
        }
    )
    return RunFacts("run", ("lighting",), config, None, None, {CELLS[0].key: 0})


def test_a_verifier_alone_leaves_the_second_scores_empty():
    verifier = Verifier("embedded", None, PROPERTIES, device="cpu", threads=1)
    [measurement] = verifier.measure(pictures(1), [ImageFlags()], CELLS[:1])
    assert measurement.second_scores == {}


def refusal(folder):
    with pytest.raises(WeightsError) as caught:
        made(folder)
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message
    assert "vision-language" in caught.value.hint
    return caught.value.message


def test_a_model_that_takes_no_text_is_a_weights_error(tmp_path):
    assert "does not load" in refusal(save_image_classifier(tmp_path, ["a", "b"]))


def test_a_model_that_cannot_say_yes_is_a_weights_error(tmp_path):
    save_vision_language_model(tmp_path, answers=["No"])
    assert "no single token for 'yes'" in refusal(tmp_path)


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_noise(tmp_path):
    save_vision_language_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if "lm_head" in name)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 tensor, such as lm_head.weight" in refusal(tmp_path)


def test_damaged_weights_are_a_weights_error(tmp_path):
    save_vision_language_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(WeightsError, match=r"model\.safetensors: its header has"):
        made(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_never_run(tmp_path, name):
    save_vision_language_model(tmp_path)
    config = json.loads((tmp_path / name).read_text())
    config["auto_map"] = dict.fromkeys(("AutoModelForImageTextToText", "AutoProcessor"), "evil.Evil")
    (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(WeightsError, match=f"{name} has an auto_map"):
        made(tmp_path)
