"""The spec of a trainer: plain values that an actor loads it from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.config.adaptation import AdaptationConfig

if TYPE_CHECKING:
    from actors.models.adaptation.trainer import AdapterTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """See `AdapterTrainer`."""

    model: str
    width: int
    height: int
    settings: AdaptationConfig
    text_encoders: bool
    revision: str | None = None
    variant: str | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    device: str = "auto"
    threads: int | None = None

    def load(self) -> AdapterTrainer:
        from actors.models.adaptation.trainer import AdapterTrainer
        from actors.models.scheduler import SchedulerChoice

        return AdapterTrainer(
            self.model,
            self.revision,
            self.variant,
            self.width,
            self.height,
            self.settings,
            self.text_encoders,
            None if self.scheduler is None else SchedulerChoice(*self.scheduler),
            self.device,
            self.threads,
        )
