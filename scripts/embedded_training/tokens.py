"""The word-level tokenizers of both models."""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from embedded_training import captions


@cache
def build_tokenizer(vocabulary: tuple[str, ...]) -> PreTrainedTokenizerFast:
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=captions.UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{captions.BEGIN} $A {captions.END}",
        special_tokens=[(token, ids[token]) for token in (captions.BEGIN, captions.END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=captions.PAD,
        bos_token=captions.BEGIN,
        eos_token=captions.END,
        unk_token=captions.UNKNOWN,
        model_max_length=captions.MAX_TOKENS,
    )
