"""Limit the size of a model under construction by the size of its weight files.

Libraries build what a config asks for before they look at the weights. So every new tensor is counted before
it takes memory. Results of all other operations are looked at one by one: tables of positions are products of
two short ranges.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from actors.weights.headers import WeightsSize
from balancer.errors import WeightsError

TIMES_THE_WEIGHTS = 3
"""Allowed elements per element in the files. A part may be built twice, in different precisions."""

EXTRA_ELEMENTS = 64_000_000
"""Allowed besides the weights: masks, position tables, noise schedules."""

EXTRA_TENSORS = 20_000

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
def limit_build_size(weights: WeightsSize, model: str, hint: str) -> Iterator[None]:
    """Raise WeightsError if this block builds several times the elements or tensors of `weights`."""
    count = _BuildCounter(weights, model, hint)
    with count, _LargestResult(count):
        yield
    if count.refusal:  # the library may have swallowed the error
        raise count.refusal


class _BuildCounter(TorchFunctionMode):
    def __init__(self, weights: WeightsSize, model: str, hint: str) -> None:
        super().__init__()
        self.weights, self.model, self.hint = weights, model, hint
        self.refusal: WeightsError | None = None
        self._elements = self._tensors = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _makers():
            self._add(_numel(func, args, kwargs))
        return func(*args, **kwargs)

    def _add(self, elements: int) -> None:
        self._elements += elements
        self._tensors += 1
        self.check_elements(self._elements)
        self._check("tensors", self._tensors, self.weights.tensors, EXTRA_TENSORS)

    def check_elements(self, elements: int) -> None:
        self._check("numbers", elements, self.weights.elements, EXTRA_ELEMENTS)

    def _check(self, noun: str, built: int, in_files: int, extra: int) -> None:
        limit = TIMES_THE_WEIGHTS * in_files + extra
        if built > limit:
            reason = f"its configs ask for more than {limit:,} {noun}, its weight files have {in_files:,}"
            self.refusal = WeightsError(f"{self.model}: {reason}", hint=self.hint)
            raise self.refusal


class _LargestResult(TorchDispatchMode):
    """Refuse an operation with a result larger than all that may be built."""

    def __init__(self, count: _BuildCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _takes_memory(func):
            self._count.check_elements(_numel(func, args, kwargs))
        return func(*args, **kwargs)


@functools.cache
def _takes_memory(func: Any) -> bool:
    """Neither a view nor in place."""
    schema = getattr(func, "_schema", None)
    return schema is not None and not any(one.alias_info for one in (*schema.arguments, *schema.returns))


@functools.cache
def _takes_device(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is not None and any(one.name == "device" for one in schema.arguments)


def _numel(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The number of elements of the result, computed on the meta device without memory."""
    try:
        options = {name: _on_meta(value) for name, value in kwargs.items() if name not in _NOT_ON_META}
        if func in _from_sizes() or _takes_device(func):
            options["device"] = "meta"
        else:
            options.pop("device", None)
        return int(func(*map(_on_meta, args), **options).numel())  # no results of many parts are large
    except Exception:  # noqa: BLE001 - the shape depends on values; the real call reports any error
        return max((one.numel() for one in args if isinstance(one, torch.Tensor)), default=0)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, list | tuple) and any(isinstance(one, torch.Tensor) for one in value):
        return [_on_meta(one) for one in value]
    return value
