"""A writer of a fixed service time, in a module of its own that imports little."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.manifest.rows import ImageFile

if TYPE_CHECKING:
    from actors.models.writer import RejectedItem, WriteItem

WRITE_S = 0.05


@dataclass(frozen=True)
class IdleWriterSpec:
    def load(self) -> IdleWriter:
        return IdleWriter()


class IdleWriter:
    """Takes its time and writes nothing."""

    def write(
        self, pixels: Any, items: Sequence[WriteItem], rejected: Sequence[RejectedItem] = ()
    ) -> list[ImageFile]:
        time.sleep(WRITE_S)
        return [ImageFile(f"{item.stem}.png", "0" * 64, 1) for item in items]
