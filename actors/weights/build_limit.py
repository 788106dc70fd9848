"""A model that is being built gets no larger than its weight files.

Libraries build whatever a config asks for and look at the weights afterwards. So every tensor that is made
meanwhile is counted before it takes memory, whichever numbers of a config ask for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from actors.weights.headers import Weights
from balancer.errors import WeightsError

TIMES_THE_WEIGHTS = 3
"""For each number in the files. A part may be built, and built again in another precision."""

ROOM_NUMBERS = 64_000_000
"""Beside the weights: masks, tables of positions, schedules of noise."""

ROOM_TENSORS = 20_000

_FROM_SIZES = (
    "empty zeros ones full rand randn randint randperm arange range linspace logspace eye empty_strided"
    " empty_permuted tril_indices triu_indices"
).split()
_FROM_TENSORS = "empty_like zeros_like ones_like full_like rand_like randn_like cat stack tile".split()
_OF_TENSORS = "new_empty new_zeros new_ones new_full repeat tile".split()
_NOT_ON_META = frozenset({"generator", "pin_memory", "out", "layout"})


@functools.cache
def _from_sizes() -> frozenset[Callable[..., Any]]:
    return frozenset(getattr(torch, name) for name in _FROM_SIZES)


@functools.cache
def _makers() -> frozenset[Callable[..., Any]]:
    from_tensors = [getattr(torch, name) for name in _FROM_TENSORS]
    return _from_sizes().union(from_tensors, [getattr(torch.Tensor, name) for name in _OF_TENSORS])


@contextlib.contextmanager
def no_larger_than(weights: Weights, model: str, hint: str) -> Iterator[None]:
    """WeightsError if what is built in this block has several times the numbers or tensors of `weights`."""
    count = _Count(weights, model, hint)
    with count:
        yield
    if count.refusal:  # a library may have gone on
        raise count.refusal


class _Count(TorchFunctionMode):
    def __init__(self, weights: Weights, model: str, hint: str) -> None:
        super().__init__()
        self.weights, self.model, self.hint = weights, model, hint
        self.refusal: WeightsError | None = None
        self._numbers = self._tensors = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _makers():
            self._take(_numel(func, args, kwargs))
        return func(*args, **kwargs)

    def _take(self, numbers: int) -> None:
        self._numbers += numbers
        self._tensors += 1
        self._check("numbers", self._numbers, self.weights.numbers, ROOM_NUMBERS)
        self._check("tensors", self._tensors, self.weights.tensors, ROOM_TENSORS)

    def _check(self, what: str, wanted: int, there: int, room: int) -> None:
        most = TIMES_THE_WEIGHTS * there + room
        if wanted > most:
            told = f"its configs ask for over {most:,} {what}, and its weight files have {there:,}"
            self.refusal = WeightsError(f"{self.model}: {told}", hint=self.hint)
            raise self.refusal


def _numel(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many numbers the result has, found where none takes memory."""
    options = {name: _on_meta(value) for name, value in kwargs.items() if name not in _NOT_ON_META}
    if func in _from_sizes():
        options["device"] = "meta"
    else:
        options.pop("device", None)
    try:
        return int(func(*map(_on_meta, args), **options).numel())
    except Exception:  # noqa: BLE001 - what depends on values; the call itself says what is wrong
        return 0


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, list | tuple) and any(isinstance(one, torch.Tensor) for one in value):
        return [_on_meta(one) for one in value]
    return value
