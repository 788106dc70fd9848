"""The embedded models load as models from the hub do, without a network, and know their words."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image
from safetensors import safe_open

from balancer.dataset import sample
from balancer.verification.challenges import BLENDED, KINDS, make_challenges
from balancer.verification.negatives import NEGATIVES, domain_score, negatives_for

EMBEDDED = Path(sample.__file__).parents[1] / "embedded"
GENERATOR = EMBEDDED / "generator"
VERIFIER = EMBEDDED / "verifier"
FRESH_SEEDS = 2**43
MAX_BYTES = 16 * 2**20

pytestmark = pytest.mark.filterwarnings(
    # The scheduler hands a tensor to numpy in the way of numpy 1.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _no_network() -> Any:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("the embedded models must load without a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def captions(project: Path) -> Any:
    """The phrases of the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project / "scripts")
        from embedded_training import captions

        return captions


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded = AutoPipelineForText2Image.from_pretrained(
        str(GENERATOR), use_safetensors=True, dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def verifier() -> tuple[Any, Any, Any]:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{VERIFIER}")
    model.eval()
    return model, preprocess, open_clip.get_tokenizer(f"local-dir:{VERIFIER}")


def generate(pipeline: Any, prompts: list[str], seeds: list[int]) -> Any:
    return pipeline(
        prompt=prompts,
        negative_prompt=[""] * len(prompts),
        num_inference_steps=3,
        guidance_scale=3.0,
        height=128,
        width=128,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images


def test_files_are_small_and_safetensors_only() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


def test_weights_are_stored_in_half_precision() -> None:
    for path in EMBEDDED.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "I64"}, path


def test_configs_name_no_path_of_the_machine_they_were_made_on() -> None:
    for path in EMBEDDED.rglob("*.json"):
        text = path.read_text()
        json.loads(text)
        assert "_name_or_path" not in text, path
        assert not re.search(r'"(/|[A-Z]:\\\\)', text.replace('"/"', "")), path


@pytest.mark.parametrize(
    "path",
    [GENERATOR / "tokenizer", GENERATOR / "tokenizer_2", VERIFIER],
    ids=["tokenizer", "tokenizer_2", "verifier"],
)
def test_every_word_of_every_phrase_is_known(path: Path, captions: Any) -> None:
    known = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    wanted = {word for phrase in captions.phrases() for word in captions.words(phrase)}
    assert wanted <= set(known)


def _words(tokenizer: Path) -> list[str]:
    """In the order of their ids."""
    ids: dict[str, int] = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(ids, key=ids.__getitem__)


def test_the_verifier_knows_the_words_of_the_negatives_after_those_of_the_generator(captions: Any) -> None:
    generator, verifier = _words(GENERATOR / "tokenizer"), _words(VERIFIER)
    assert generator == _words(GENERATOR / "tokenizer_2") == list(captions.vocabulary())
    assert verifier[: len(generator)] == generator
    assert set(verifier) == {*generator, *(word for phrase in NEGATIVES for word in captions.words(phrase))}
    weights = safe_open(VERIFIER / "open_clip_model.safetensors", "pt")
    assert weights.get_slice("token_embedding.weight").get_shape()[0] == len(verifier)


def test_no_negative_names_a_class_or_facet_of_the_training(captions: Any) -> None:
    groups = (captions.CLASS_WORDINGS, captions.LIGHTING_WORDINGS, captions.BURN_LEVEL_WORDINGS)
    wordings = [wording for group in groups for values in group.values() for wording in values]
    assert negatives_for(wordings) == NEGATIVES


def test_tokens_ignore_case_and_punctuation(verifier: tuple[Any, Any, Any], captions: Any) -> None:
    tokenizer = verifier[2]
    plain, fancy = tokenizer(["a burnt pizza close up", "A burnt pizza, (close-up)!"])
    assert torch.equal(plain, fancy)
    assert plain.shape == (captions.MAX_TOKENS,)


def test_the_longest_prompt_keeps_all_its_words(pipeline: Any, captions: Any) -> None:
    longest = max(len(words) for words in map(captions.words, captions.STYLE_WORDINGS))
    longest += max(len(captions.words(opening)) for opening in captions.OPENINGS)
    for wordings in (
        captions.LIGHTING_WORDINGS,
        captions.BURN_LEVEL_WORDINGS,
        captions.TABLE_WORDINGS,
        captions.CLASS_WORDINGS,
    ):
        longest += max(len(captions.words(text)) for values in wordings.values() for text in values)
    assert longest + 2 <= pipeline.tokenizer.model_max_length


def test_pipeline_is_an_sdxl_pipeline_in_single_precision(pipeline: Any) -> None:
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}


def test_an_image_does_not_depend_on_its_neighbours(pipeline: Any) -> None:
    prompt = "a segment of pizza, harsh overhead lighting"
    first = generate(pipeline, [prompt, "a burnt pizza, dim ambient lighting"], [7, 8])
    second = generate(pipeline, ["three pizzas from raw to dark, soft low light", prompt], [9, 7])
    assert first.shape == (2, 128, 128, 3)
    assert np.array_equal(first[0], second[1])
    assert not np.array_equal(first[0], first[1])


def test_the_prompt_decides(pipeline: Any) -> None:
    bright, dim = generate(
        pipeline,
        ["a basic pizza, harsh overhead lighting", "a basic pizza, dim ambient lighting"],
        [7, 7],
    )
    assert bright.mean() > 1.5 * dim.mean()


def probabilities(
    verifier: tuple[Any, Any, Any],
    pictures: list[sample.Picture],
    wordings: Mapping[str, tuple[str, ...]],
) -> torch.Tensor:
    return logits(verifier, pictures, wordings).softmax(-1)


@torch.no_grad()
def logits(
    verifier: tuple[Any, Any, Any],
    pictures: Sequence[sample.Picture],
    wordings: Mapping[str, tuple[str, ...]],
) -> torch.Tensor:
    model, preprocess, tokenizer = verifier
    images = model.encode_image(
        torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures]), normalize=True
    )
    values = [
        model.encode_text(tokenizer(list(texts)), normalize=True).mean(0) for texts in wordings.values()
    ]
    texts = torch.nn.functional.normalize(torch.stack(values), dim=-1)
    scaled: torch.Tensor = model.logit_scale.exp() * images @ texts.T
    return scaled


def test_verifier_judges_fresh_renders(verifier: tuple[Any, Any, Any], captions: Any) -> None:
    cells = [
        (class_name, lighting, level)
        for class_name in sample.CLASSES
        for lighting in sample.LIGHTINGS
        for level in (sample.BURN_LEVELS if class_name == "burnt" else (None,))
    ] * 2
    pictures = [sample.render(*cell, FRESH_SEEDS + number) for number, cell in enumerate(cells)]
    asked = (
        captions.CLASS_WORDINGS,
        captions.LIGHTING_WORDINGS,
        captions.BURN_LEVEL_WORDINGS,
    )
    for position, wordings in enumerate(asked):
        known = [number for number, cell in enumerate(cells) if cell[position] is not None]
        found = probabilities(verifier, [pictures[number] for number in known], wordings)
        names = list(wordings)
        right = [
            names[int(answer)] == cells[number][position]
            for answer, number in zip(found.argmax(-1), known, strict=True)
        ]
        assert np.mean(right) >= 0.9, names


def domain_scores(
    verifier: tuple[Any, Any, Any], captions: Any, pictures: Sequence[sample.Picture]
) -> np.ndarray:
    classes = logits(verifier, pictures, captions.CLASS_WORDINGS)
    negatives = logits(verifier, pictures, {wording: (wording,) for wording in NEGATIVES})
    return domain_score(classes.numpy(), negatives.numpy())


def fresh_renders(count: int, first_seed: int) -> tuple[list[sample.Picture], list[str]]:
    names = [sample.CLASSES[number % len(sample.CLASSES)] for number in range(count)]
    return [
        sample.render(
            name,
            sample.LIGHTINGS[number % len(sample.LIGHTINGS)],
            sample.BURN_LEVELS[number % len(sample.BURN_LEVELS)] if name == "burnt" else None,
            first_seed + number,
        )
        for number, name in enumerate(names)
    ], names


def test_fresh_renders_are_of_the_domain(verifier: tuple[Any, Any, Any], captions: Any) -> None:
    pictures, _ = fresh_renders(48, FRESH_SEEDS + 10_000)
    assert (domain_scores(verifier, captions, pictures) >= 0.5).all()


HARD_KINDS = {"shuffled": 0.25, "cut_and_mixed": 0.1, "blurred": 0.1}
"""Typicality rejects most of what is left of these."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != BLENDED])
def test_images_of_none_of_the_classes_are_not_of_the_domain(
    verifier: tuple[Any, Any, Any], captions: Any, kind: str
) -> None:
    sources, labels = fresh_renders(24, FRESH_SEEDS + 20_000)
    pictures = make_challenges(kind, 50, FRESH_SEEDS, (128, 128), sources, labels)
    accepted = np.mean(domain_scores(verifier, captions, list(pictures)) >= 0.5)
    assert accepted <= HARD_KINDS.get(kind, 0.02)


def test_model_card_states_the_figures() -> None:
    card = (EMBEDDED / "README.md").read_text()
    verifier = card.partition("Generator:")[0]
    figures = {
        name: [float(number) for number in re.findall(r"\d+(?:\.\d+)?", row)]
        for name, row in re.findall(r"^\| (class|lighting|burn level) \|( \d.*)\|$", verifier, re.MULTILINE)
    }
    assert set(figures) == {"class", "lighting", "burn level"}
    for renders, top_1, calibration_error in figures.values():
        assert renders >= 2000
        assert top_1 >= 97.0
        assert calibration_error <= 0.05
    passed = re.search(r"(\d+(?:\.\d+)?) % of (\d+) candidates pass", card)
    assert passed is not None
    assert 65.0 <= float(passed[1]) <= 97.0
    assert int(passed[2]) == 640


def test_the_model_card_shows_the_kept_figures(project: Any) -> None:
    kept = json.loads((project / "benchmarks/off_domain.json").read_text())["all labelled images"]["accepted"]
    card = (project / "balancer/embedded/README.md").read_text()
    for kind, accepted in kept.items():
        [row] = [line for line in card.splitlines() if line.startswith(f"| {kind.replace('_', ' ')} |")]
        figures = [float(cell) for cell in row.split("|")[3:-1]]
        assert figures == [accepted["classes"], accepted["words"], accepted["run"]]
