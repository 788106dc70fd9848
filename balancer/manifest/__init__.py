"""The manifest: what a run has made, as an append-only log of Arrow fragments, and how to read it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.manifest.log.view import LogView, read_log
    from balancer.manifest.log.writer import ManifestLog
    from balancer.manifest.maintenance.fsck import Findings, Problem, check_run, fsck
    from balancer.manifest.runfile import RunInfo, create_run, read_run
    from balancer.manifest.schema import SCHEMA_VERSION, manifest_schema
    from balancer.manifest.status import read_status

_HOMES = {
    "Findings": "maintenance.fsck",
    "Problem": "maintenance.fsck",
    "check_run": "maintenance.fsck",
    "fsck": "maintenance.fsck",
    "LogView": "log.view",
    "ManifestLog": "log.writer",
    "read_log": "log.view",
    "RunInfo": "runfile",
    "create_run": "runfile",
    "read_run": "runfile",
    "SCHEMA_VERSION": "schema",
    "manifest_schema": "schema",
    "read_status": "status",
}

__all__ = [
    "SCHEMA_VERSION",
    "Findings",
    "LogView",
    "ManifestLog",
    "Problem",
    "RunInfo",
    "check_run",
    "create_run",
    "fsck",
    "manifest_schema",
    "read_log",
    "read_run",
    "read_status",
]


def __getattr__(name: str) -> object:
    """Imported on use, so that `balancer.manifest.layout` costs no pyarrow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
