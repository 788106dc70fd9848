"""Prompts that the generator's tokenizer cuts, and the words that are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.models.families.checks import recognise_folder
from actors.models.families.table import Text
from actors.weights import resolve as weights
from actors.weights.file_rules import MARKER
from actors.weights.view import read_config
from actors.weights.vocabulary import refuse_empty_vocabulary
from balancer.cells import Candidate, Cell, Slot
from balancer.config.schema import Config
from balancer.scheduling.prompts import Rung, ladder, request_for
from balancer.text.quantities import counted, listed

MOST_PROMPTS = 5_000
TURNS = 60
"""Slots of each cell that are looked at; wordings repeat much earlier."""

LISTED = 3
_HINT = "generation.model must name a text-to-image pipeline in diffusers layout"


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt that is longer than `limit` tokens, and what the model does not see of it."""

    prompt: str
    lost: str
    tokens: int
    limit: int


@dataclass(frozen=True, slots=True)
class Lengths:
    prompts: int
    cut: tuple[Cut, ...]

    def __str__(self) -> str:
        if not self.cut:
            return (
                f"{counted(self.prompts, 'prompt')} and negative prompts fit into the generator's tokenizer"
            )
        longest, *_ = ranked = sorted(self.cut, key=lambda cut: -cut.tokens)
        lost = listed([*map(repr, dict.fromkeys(cut.lost for cut in ranked))], LISTED, "; ")
        return (
            f"{len(self.cut)} of {counted(self.prompts, 'prompt')} are cut after {longest.limit} tokens"
            f" (the longest has {longest.tokens}); lost: {lost}"
        )

    def as_dict(self) -> dict[str, Any]:
        cut = [{"prompt": one.prompt, "lost": one.lost, "tokens": one.tokens} for one in self.cut]
        return {"prompts": self.prompts, "cut": cut}


def check_lengths(config: Config, cells: Iterable[Cell]) -> Lengths | None:
    """None if the generator is not on this machine, or its class is not known. WeightsError if its tokenizer
    does not load."""
    wanted = config.generation
    if not weights.is_here(wanted.model, wanted.revision, "generator"):
        return None
    folder = weights.configs_folder(wanted.model, wanted.revision, wanted.variant, ask_hub=False)
    family = None if folder is None else recognise_folder(folder, wanted.model).family
    if folder is None or family is None:
        return None
    texts = list(dict.fromkeys(prompts_of(config, cells)))
    index = read_config(folder, MARKER["generator"], wanted.model)
    text = next((text for text in family.texts if _names_tokenizer(index.get(text.tokenizer))), None)
    if text is None:
        return None
    with (
        _without_warnings(),
        weights.shown_to_loader(folder, wanted.model, wanted.variant, "generator", _HINT) as view,
    ):
        tokenizer = _load(view, index, text, wanted.model)
        return Lengths(len(texts), tuple(find_cut(tokenizer, text, texts)))


def _names_tokenizer(component: Any) -> bool:
    return isinstance(component, list) and len(component) == 2 and "Tokenizer" in str(component[1])


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """transformers warns of long texts, which are what is looked for."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load(view: Path, index: Mapping[str, Any], text: Text, model: str) -> Any:
    import transformers

    kind = getattr(transformers, index[text.tokenizer][1])
    tokenizer = kind.from_pretrained(view / text.tokenizer, local_files_only=True, trust_remote_code=False)
    refuse_empty_vocabulary(tokenizer, model, text.tokenizer)
    return tokenizer


def prompts_of(config: Config, cells: Iterable[Cell]) -> Iterator[str]:
    """The prompts and negative prompts of a run's first slots, on every rung."""
    left = MOST_PROMPTS
    for cell in cells:
        for number, rung in enumerate(ladder(config), start=1):
            for place in range(TURNS):
                if left <= 0:
                    return
                left -= 1
                yield from _texts(Candidate(Slot(cell, place), number), rung, config)


def _texts(candidate: Candidate, rung: Rung, config: Config) -> Iterator[str]:
    weakest = [name for name, _ in candidate.slot.cell.properties] if rung.strengthen else [None]
    for name in weakest:
        request = request_for(candidate, rung, config, weakest=name)
        yield request.prompt
        if request.negative_prompt:
            yield request.negative_prompt


def find_cut(tokenizer: Any, text: Text, prompts: Iterable[str]) -> Iterator[Cut]:
    """Those of the prompts that a tokenizer cuts."""
    limit = text.limit or tokenizer.model_max_length
    before = len(text.template.partition("{}")[0])
    for prompt in prompts:
        whole = text.template.format(prompt)
        tokens = len(tokenizer(whole)["input_ids"])
        if tokens <= limit:
            continue
        kept = tokenizer(whole, truncation=True, max_length=limit, return_offsets_mapping=True)
        end = max(end for _, end in kept["offset_mapping"])
        if lost := _words_from(prompt, max(0, end - before)):
            yield Cut(prompt, lost, tokens, limit)


def _words_from(prompt: str, place: int) -> str:
    """The words from a place on; one that is cut in its middle counts as lost."""
    if prompt[place:].strip(" ,") and prompt[place].isalnum():
        place = prompt.rfind(" ", 0, place) + 1
    return prompt[place:].strip(" ,")
