"""Render chat templates in a process with limits: they are programs and may never end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from balancer.errors import WeightsError
from balancer.process.child_limits import limit_process
from balancer.text.json_reading import read_json
from balancer.text.quantities import size

CPU_SECONDS = 3
MEMORY_BYTES = 300_000_000
MAX_CHARACTERS = 100_000
WAIT_S = 120.0
"""The CPU limit ends a template long before; this is for a machine that gives the process no CPU time."""

_LONGEST_REASON = 200

_KEPT = frozenset({"PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "HOME", "TMPDIR"})
_TOO_MUCH = f"it takes more than {CPU_SECONDS} s, {size(MEMORY_BYTES)} or {MAX_CHARACTERS:,} characters"


def render(
    template: str, conversations: Sequence[Any], variables: Mapping[str, Any], model: str, hint: str
) -> list[str]:
    """Render each conversation as transformers does. Raises WeightsError if the template fails."""
    try:
        done = subprocess.run(
            # The same packages as this process, and no secrets.
            [
                sys.executable,
                "-c",
                f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()",
            ],
            input=json.dumps([template, conversations, variables]).encode(),
            capture_output=True,
            env=child_environment(),
            timeout=WAIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"{model}: its chat template did not end in {WAIT_S:g} s", hint=hint) from error
    if done.returncode:
        raise WeightsError(f"{model}: its chat template cannot be used: {_describe_failure(done)}", hint=hint)
    try:
        prompts: list[str] = read_json(done.stdout)
    except ValueError as error:
        raise WeightsError(f"{model}: its chat template cannot be used: {error}", hint=hint) from error
    return prompts


def _describe_failure(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) or done.stderr.startswith(b"MemoryError"):
        return _TOO_MUCH
    message = " ".join(done.stderr.decode(errors="replace").split())
    return message[-_LONGEST_REASON:] or f"its process ended with {done.returncode}"


def child_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("PYTHON")}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def serve() -> None:
    """In the child: render what standard input asks for, and write a list of texts to standard output."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template, conversations, variables = json.load(sys.stdin)
    limit_process(CPU_SECONDS, MEMORY_BYTES)
    try:
        prompts, _ = render_jinja_template(
            conversations=conversations, chat_template=template, add_generation_prompt=True, **variables
        )
        if max(map(len, prompts)) > MAX_CHARACTERS:
            raise MemoryError
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]) from error
    json.dump(prompts, sys.stdout)
