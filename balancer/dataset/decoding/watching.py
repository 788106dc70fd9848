"""How far an audit is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Count = Callable[[int], None]
"""Takes the number of images read."""

Watch = Callable[[int], AbstractContextManager[Count]]
"""Takes the number of all images."""


def ignore_count(done: int) -> None: ...


@contextmanager
def unwatched(total: int) -> Iterator[Count]:
    yield ignore_count
