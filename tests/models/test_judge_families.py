"""Verifiers and second judges of several families say what their own libraries say."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from actors.models.verifier import Verifier
from actors.models.vision.wordings import check_wordings, find_cut
from actors.models.vlm_judge import VlmJudge
from actors.weights.vocabulary import refuse_empty_vocabulary
from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.errors import WeightsError
from tests.models.test_verifier import pictures, save_model
from tiny_judges import ANSWERS, save_judge
from tiny_verifiers import save_verifier

# PaliGemma's processor passes tensors to numpy the way of numpy 1.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

VALUES = {"burnt": ("a burnt pizza",), "basic": ("a basic pizza",)}
QUESTION = "Does this show {}?"


@pytest.mark.parametrize("kind", ["CLIP ViT", "SigLIP", "CoCa", "CLIPA"])
def test_a_verifier_sees_and_judges_as_open_clip_does(kind, tmp_path):
    save_verifier(kind, tmp_path)
    verifier = Verifier(str(tmp_path), None, {"class": VALUES}, "cpu", 1)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([words for [words] in VALUES.values()])
    [image] = pixels = pictures(1, 200, 150)
    with torch.no_grad():
        own = model.eval().encode_image(transform(Image.fromarray(image))[None], normalize=True)
        logits = (model.logit_scale.exp() * own @ model.encode_text(tokens, normalize=True).T)[0]
    seen, _ = verifier.look(pixels, ())
    assert (seen - own).abs().max() < 1e-4
    likely = verifier._words.likely(seen, {}, {}, {})[0]["class"]
    assert [*likely.values()] == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)


def test_a_sigmoid_head_says_how_likely_one_value_is_if_exactly_one_is_true(tmp_path):
    save_verifier("SigLIP", tmp_path)
    three = VALUES | {"raw": ("raw dough",)}
    verifier = Verifier(str(tmp_path), None, {"class": three}, "cpu", 1)
    assert verifier._encoder.bias == -10
    seen, _ = verifier.look(pictures(1), ())
    each = verifier._encoder.logits(seen, verifier._words.texts["class"])[0].sigmoid()
    alone = [
        each[place] * torch.cat([1 - each[:place], 1 - each[place + 1 :]]).prod()
        for place in range(len(three))
    ]
    likely = verifier._words.likely(seen, {}, {}, {})[0]["class"]
    assert [*likely.values()] == pytest.approx([float(one / sum(alone)) for one in alone], abs=1e-9)


def test_a_verifier_that_sees_no_numbers_is_refused_when_it_loads(tmp_path):
    save_model(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    weights = load_file(path)
    weights["visual.proj"].fill_(float("nan"))
    save_file(weights, path)
    with pytest.raises(WeightsError, match="gives no numbers for a grey image"):
        Verifier(str(tmp_path), None, {"class": VALUES}, "cpu", 1)


def test_a_tokenizer_that_loads_without_words_is_refused(tmp_path):
    save_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {
        word: number for word, number in tokenizer["model"]["vocab"].items() if word.startswith("<")
    }
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(WeightsError, match="has no vocabulary"):
        Verifier(str(tmp_path), None, {"class": VALUES}, "cpu", 1)


# ---- wordings ----------------------------------------------------------------------------------


def wordings(folder, *texts):
    return check_wordings(
        Config.model_validate(
            {
                "classes": {f"c{place}": {"prompts": [text]} for place, text in enumerate(texts)},
                "target": {"per_class": 1},
                "verification": {"model": str(folder)},
            }
        )
    )


def test_words_that_the_verifier_does_not_read_are_named(tmp_path):
    save_model(tmp_path)  # reads eight tokens
    found = wordings(tmp_path, "a basic pizza", "a basic burnt pizza dim backlit lighting a dim one")
    [cut] = [cut for cut in found.cut if cut.wording.startswith("a basic")]
    assert (found.limit, cut.lost, cut.tokens) == (8, "lighting a dim one", 12)
    assert "are cut after the verifier's 8 tokens" in str(found)
    assert found.as_dict()["cut"]


def test_the_built_in_tokenizer_is_counted_as_it_cuts(tmp_path):
    save_verifier("PE-Core", tmp_path)
    text = "a burnt pizza on a steel plate in dim light seen from above " * 3
    [cut] = wordings(tmp_path, "a basic pizza", text.strip()).cut
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([cut.wording.removesuffix(cut.lost)])[0]
    assert tokens.count_nonzero() == 32  # with begin and end
    assert cut.tokens > 32


def test_a_text_of_which_nothing_fits_is_lost_whole():
    [cut] = find_cut(lambda text: 5 * len(text.split()), 4, ["one two"])
    assert cut.lost == "one two"


def test_a_verifier_that_is_elsewhere_is_not_counted(tmp_path):
    assert wordings(tmp_path / "nowhere", "a pizza") is None


# ---- second judges -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["PaliGemma", "Qwen2-VL", "InternVL"])
def test_a_second_judge_says_yes_as_often_as_a_plain_call_of_its_model(family, tmp_path):
    save_judge(family, tmp_path)
    judge = VlmJudge(str(tmp_path), None, QUESTION, {"class": VALUES}, "cpu")
    [image] = pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    asked = QUESTION.replace("{}", "a burnt pizza")
    prompt = f"<image>{asked}"
    if processor.chat_template:
        parts = [{"type": "image"}, {"type": "text", "text": asked}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
    once = {"add_special_tokens": False} if prompt.startswith("<bos>") else {}
    inputs = processor(text=[prompt], images=[[Image.fromarray(image)]], return_tensors="pt", **once)
    inputs.pop("labels", None)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1, processor.tokenizer.convert_tokens_to_ids([*ANSWERS])]
    expected = float(logits.softmax(0)[[0, 2]].sum())  # Yes and yes
    assert judge.scores(pixels, [Cell("burnt")])[0]["class"] == pytest.approx(expected, abs=1e-4)


def test_a_second_judge_that_answers_no_numbers_is_refused_when_it_loads(tmp_path):
    save_judge("LLaVA", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    next(value for name, value in weights.items() if "lm_head" in name).fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="gives no numbers for a grey image"):
        VlmJudge(str(tmp_path), None, QUESTION, {"class": VALUES}, "cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("context_length", "long", "says that it reads 'long' tokens"),
        ("context_length", -5, "says that it reads -5 tokens"),
        ("tokenizer_kwargs", {"clean": "nothing"}, "Invalid clean function"),
        ("tokenizer_kwargs", {"language": "en"}, "language"),
    ],
)
def test_a_tokenizer_with_impossible_settings_is_named(tmp_path, key, value, message):
    save_verifier("CLIP ViT", tmp_path)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        wordings(tmp_path, "a basic pizza", "a pizza " * 40)


def test_signs_that_the_verifier_leaves_out_are_not_counted(tmp_path):
    save_verifier("SigLIP", tmp_path)  # canonicalize: without punctuation
    assert not wordings(tmp_path, "a basic pizza", "a pizza" + "!?" * 60).cut


def test_of_a_text_without_spaces_only_the_end_is_lost():
    [cut] = find_cut(len, 4, ["焼きたてのパン"])
    assert cut.lost == "のパン"


def test_a_vocabulary_of_added_words_is_a_vocabulary():
    tokens = Tokenizer(BPE())
    tokens.add_tokens(["yes", "no", "pizza"])
    refuse_empty_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokens), "model")
    tokens = Tokenizer(BPE())
    tokens.add_special_tokens(["<s>", "</s>", "<pad>"])
    with pytest.raises(WeightsError, match="has no vocabulary"):
        refuse_empty_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokens), "model")
