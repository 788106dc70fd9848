"""Benchmarks. Each prints one JSON object; `--keep` replaces `benchmarks/NAME.json` by it.

python scripts/bench.py plan
python scripts/bench.py plan --keep
python scripts/bench.py plan --help
"""

from __future__ import annotations

import importlib
import pkgutil

import click

import benchmarking


class _Benchmarks(click.Group):
    """One command per file in `benchmarking/`, imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name in _names() if self.get_command(ctx, name))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _names():
            return None
        command = getattr(importlib.import_module(f"benchmarking.{name}"), "command", None)
        return command if isinstance(command, click.Command) else None


def _names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(benchmarking.__path__)]


@click.command(cls=_Benchmarks)
def main() -> None:
    """Measure a part of the balancer on this machine."""


if __name__ == "__main__":
    main()
