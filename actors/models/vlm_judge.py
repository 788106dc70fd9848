"""The second judge: a vision-language model is asked, for every property, whether an image shows it.

The score is P(yes) among the tokens for yes and no, from the logits of the answer's first token; no text is
generated. Batches have a fixed size and are padded to the longest question, so a score does not depend on its
neighbours in a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from actors.models.device import pick_device, pick_dtype
from actors.models.pretrained import load_pretrained
from actors.weights import chat_template
from actors.weights.view import wrap_model_errors
from actors.weights.vocabulary import refuse_empty_vocabulary
from balancer.cells import Cell
from balancer.errors import WeightsError

INTERNAL_BATCH = {"cpu": 1, "cuda": 8}
"""Questions, each with its image, per batch. A CPU gains nothing from more, and its last bits would depend on
the position in a batch."""

_HINT = "verification.second_judge.model must name a vision-language model that transformers has built in"
_IMAGE_TOKEN = "<image>"
_ENDS_LINES = (transformers.PaliGemmaProcessor,)
"""Processors that put a new line after the question, as their models were trained, and none before it."""


class VlmJudge:
    """A model on one device, in float32 on a CPU, in half precision on a GPU.

    `{}` in `question` stands for the wording: the first one that `properties` has for the value.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        question: str,
        properties: Mapping[str, Mapping[str, Sequence[str]]],
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.dtype, _ = pick_dtype("auto", self.device)
        self.model = model
        self._model, self._processor, folder, self.revision = load_pretrained(
            transformers.AutoModelForImageTextToText,
            transformers.AutoProcessor,
            model,
            revision,
            "second judge",
            _HINT,
            self.device,
            self.dtype,
        )
        with wrap_model_errors(folder, model, _HINT):
            self._prepare(question, properties)
            self._refuse_unusable()

    def _refuse_unusable(self) -> None:
        """Ask once: what fails now would fail for every image, and be tried again each time."""
        grey = np.full((64, 64, 3), 90, np.uint8)
        [likely] = self._ask([(grey, self._longest)], INTERNAL_BATCH[self.device.type])
        if not 0.0 <= likely <= 1.0:
            raise WeightsError(f"{self.model}: gives no numbers for a grey image", hint=_HINT)

    def _prepare(self, question: str, properties: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        model, tokenizer = self.model, _get_tokenizer(self._processor, self.model)
        self._yes = _find_tokens("yes", tokenizer, model)
        self._no = _find_tokens("no", tokenizer, model)
        questions = {
            (name, value): question.replace("{}", wordings[0])
            for name, values in properties.items()
            for value, wordings in values.items()
        }
        prompts = _prompts(list(questions.values()), self._processor, model)
        self._prompts = dict(zip(questions, prompts, strict=True))
        self._longest = max(self._prompts.values(), key=lambda prompt: len(tokenizer(prompt).input_ids))
        self._lengths: dict[tuple[int, ...], int] = {}
        self._options = _options(self._model, self._longest, tokenizer)

    def scores(self, pixels: np.ndarray, cells: Sequence[Cell]) -> list[dict[str, float]]:
        """P(yes) for the wanted value of each property, per image of uint8 (N, height, width, 3)."""
        asked = [
            (index, name, self._prompts[name, value])
            for index, cell in enumerate(cells)
            for name, value in cell.properties
        ]
        size = INTERNAL_BATCH[self.device.type]
        scores: list[dict[str, float]] = [{} for _ in cells]
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            answers = self._ask([(pixels[index], prompt) for index, _, prompt in part], size)
            for (index, name, _), score in zip(part, answers, strict=True):
                scores[index][name] = score
        return scores

    @torch.inference_mode()
    def _ask(self, asked: Sequence[tuple[np.ndarray, str]], size: int) -> list[float]:
        """P(yes) of each of at most `size` questions."""
        filled = [*asked, *[asked[-1]] * (size - len(asked))]
        inputs = self._inputs(filled, padding="max_length", max_length=self._length(asked[0][0].shape))
        output = self._model(**inputs.to(self.device, self.dtype), **self._options["model"])
        logits = output.logits[: len(asked), -1, [*self._yes, *self._no]].float()
        likely: list[float] = logits.softmax(dim=1)[:, : len(self._yes)].sum(dim=1).tolist()
        return likely

    def _inputs(self, asked: Sequence[tuple[np.ndarray, str]], **padding: Any) -> Any:
        inputs = self._processor(
            text=[prompt for _, prompt in asked],
            images=[[Image.fromarray(image)] for image, _ in asked],
            padding_side="left",  # the answer comes last
            return_tensors="pt",
            **self._options["processor"],
            **padding,
        )
        inputs.pop("labels", None)  # PaliGemma's, for training
        return inputs

    def _length(self, shape: tuple[int, ...]) -> int:
        """Tokens of the longest question with an image of this shape."""
        if shape not in self._lengths:
            blank = np.zeros(shape, np.uint8)
            self._lengths[shape] = self._inputs([(blank, self._longest)]).input_ids.shape[1]
        return self._lengths[shape]


def _get_tokenizer(processor: Any, model: str) -> Any:
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise WeightsError(f"{model}: its processor does not take both images and text", hint=_HINT)
    refuse_empty_vocabulary(tokenizer, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _find_tokens(word: str, tokenizer: Any, model: str) -> list[int]:
    """Single tokens for a word, in any case, with and without a leading space."""
    ids = set()
    for spelling in (word, word.capitalize(), word.upper()):
        encodings = [tokenizer.encode(before + spelling, add_special_tokens=False) for before in ("", " ")]
        ids |= {tokens[0] for tokens in encodings if len(tokens) == 1}
        ids.add(tokenizer.convert_tokens_to_ids(spelling))  # encode() may always add a leading space
    ids -= {None, tokenizer.unk_token_id}
    if not ids:
        raise WeightsError(f"{model}: its tokenizer has no single token for {word!r}", hint=_HINT)
    return sorted(ids)


def _prompts(questions: Sequence[str], processor: Any, model: str) -> list[str]:
    """Questions about one image in the model's chat template, or after an image token if it has none."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        token = getattr(processor, "image_token", _IMAGE_TOKEN)
        after = "" if isinstance(processor, _ENDS_LINES) else "\n"
        return [f"{token}{after}{question}" for question in questions]
    conversations = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    return chat_template.render(template, conversations, processor.tokenizer.special_tokens_map, model, _HINT)


def _options(model: Any, prompt: str, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Arguments that only some models take or need: compute the last logits only, add no second BOS token."""
    begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {
        "model": {"logits_to_keep": 1} if last_only else {},
        "processor": {"add_special_tokens": False} if begun else {},
    }
