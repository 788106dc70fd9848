"""Every kind of verifier and second judge, on small models with random weights: does it load, and does it say
what its own library says?"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
import transformers
from PIL import Image

from actors.models.verifier import Verifier
from actors.models.vision.wordings import check_wordings
from actors.models.vlm_judge import VlmJudge
from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.errors import WeightsError
from benchmarking.record import keep_option, save
from tiny_judges import ANSWERS, JUDGES, save_judge
from tiny_verifiers import KINDS, save_verifier

SIDES = ((200, 300), (64, 64), (512, 512))
VALUES = {"burnt": "a burnt pizza", "basic": "a basic pizza"}
LONG = "a photo of a burnt pizza on a steel plate in dim light seen from above " * 6
QUESTION = "Does this picture show {}? Answer yes or no."


@click.command("judges")
@keep_option
@click.option("--only", "chosen", multiple=True, help="Only these kinds.")
def command(chosen: tuple[str, ...]) -> None:
    """Verifiers against open_clip, second judges against transformers, on the same images."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    save(
        "judges",
        {
            "images": [f"{width} x {height}" for height, width in SIDES],
            "verifiers": [_tried(name, _verifier) for name in KINDS if not chosen or name in chosen],
            "second_judges": [_tried(name, _judge) for name in JUDGES if not chosen or name in chosen],
        },
    )


def _tried(name: str, measure: Callable[[str, Path], Mapping[str, Any]]) -> dict[str, Any]:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = measure(name, Path(folder))
        except (WeightsError, ImportError) as error:
            figures = {"refused": str(error).replace(f"{folder}: ", "").splitlines()[0]}
    return {"kind": name, "seconds": round(time.process_time() - began, 1), **figures}


def _pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8) for height, width in SIDES]
    return [
        np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC))
        for each, (height, width) in zip(small, SIDES, strict=True)
    ]


def _verifier(name: str, folder: Path) -> dict[str, Any]:
    save_verifier(name, folder)
    properties = {"class": {value: (text,) for value, text in VALUES.items()}}
    verifier = Verifier(str(folder), None, properties, "cpu", 1)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    apart, off = [], []
    with torch.no_grad():
        texts = model.eval().encode_text(tokenize([*VALUES.values()]), normalize=True)
        for picture in _pictures():
            seen, _ = verifier.look(picture[None], ())
            own = model.encode_image(transform(Image.fromarray(picture))[None], normalize=True)
            apart.append(float((seen - own).abs().max()))
            logits = (model.logit_scale.exp() * own @ texts.T)[0].double()
            expected = _exactly_one(logits, getattr(model, "logit_bias", None))
            likely = verifier._words.likely(seen, {}, {}, {})[0]["class"]
            off.append(float((torch.tensor([*likely.values()]) - expected).abs().max()))
    checked = check_wordings(_config(folder))
    assert checked is not None
    return {
        "tokenizer": type(tokenize).__name__,
        "context_length": checked.limit,
        "embedding_difference": max(apart),
        "head": "softmax" if getattr(model, "logit_bias", None) is None else "sigmoid",
        "probability_difference": max(off),
        "cut_shown": bool(checked.cut),
    }


def _exactly_one(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Without a bias, the softmax of CLIP. With one, from the sigmoid of each text: that it is true and no
    other is, given that exactly one is."""
    if bias is None:
        return logits.softmax(0)
    each = (logits + bias.double()).sigmoid()
    alone = torch.stack([each[place] * (1 - each).prod() / (1 - each[place]) for place in range(len(each))])
    return alone / alone.sum()


def _config(folder: Path) -> Config:
    return Config.model_validate(
        {
            "classes": {value: {"prompts": [text]} for value, text in (VALUES | {"long": LONG}).items()},
            "target": {"per_class": 1},
            "verification": {"model": str(folder)},
        }
    )


def _judge(name: str, folder: Path) -> dict[str, Any]:
    save_judge(name, folder)
    judge = VlmJudge(
        str(folder), None, QUESTION, {"class": {value: (text,) for value, text in VALUES.items()}}, "cpu"
    )
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    off, said = [], []
    for picture in _pictures():
        for value, text in VALUES.items():
            [scores] = judge.scores(picture[None], [Cell(value)])
            said.append(scores["class"])
            own = _plain(model, processor, QUESTION.replace("{}", text), picture)
            off.append(abs(scores["class"] - own))
    return {
        "template": "its own" if processor.chat_template else "none: image token and question",
        "probability_difference": max(off),
        "spread": max(said) - min(said),
    }


@torch.no_grad()
def _plain(model: Any, processor: Any, question: str, picture: np.ndarray) -> float:
    """P(yes) as transformers' documentation asks such a model."""
    if processor.chat_template:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
    else:
        prompt = f"<image>{question}"
    once = {"add_special_tokens": False} if prompt.startswith(processor.tokenizer.bos_token) else {}
    inputs = processor(text=[prompt], images=[[Image.fromarray(picture)]], return_tensors="pt", **once)
    inputs.pop("labels", None)
    answers = processor.tokenizer.convert_tokens_to_ids([*ANSWERS])
    likely = model(**inputs).logits[0, -1, answers].softmax(0)
    return float(sum(each for each, word in zip(likely, ANSWERS, strict=True) if word.lower() == "yes"))
