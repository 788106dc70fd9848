"""Tokenizers are programs, too: rules that rewrite text, and regular expressions that may backtrack without
end. Each is tried on some text in a process with limits before it is used.

One that is harmless here can still be slow with other text; the deadlines of calls are for that.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

from actors.weights.chat_template import child_environment, limit
from balancer.errors import WeightsError

CPU_SECONDS = 30
MEMORY_BYTES = 1_600_000_000
"""The largest published tokenizers take 600 MB."""

MAX_TOKENS = 100_000
WAIT_S = 240.0

_LONGEST_REASON = 200
_TOO_MUCH = f"it takes more than {CPU_SECONDS} s, {MEMORY_BYTES / 1e9:g} GB or {MAX_TOKENS:,} tokens"
_TEXTS = (
    "a photo of a badly burnt dosa on a steel plate, in dim light, seen from above; 35 mm, f/1.8!",
    "Does this picture show a piece of bread that isn't burnt? Answer yes or no.",
    "a " * 200 + "a" * 200 + " " * 200 + "!?" * 100 + "0123456789" * 20,
    "Crème brûlée, पका हुआ डोसा, 焦げたパン 🍕\n\t<|endoftext|>",
)


def check_tokenizer(path: Path, name: str, model: str, hint: str) -> None:
    """WeightsError if the `tokenizer.json` at `path` cannot be loaded and used within the limits."""
    found = path.stat()
    if reason := _trial(path, (found.st_ino, found.st_size, found.st_mtime_ns)):
        raise WeightsError(f"{model}: {name}: the tokenizer cannot be used: {reason}", hint=hint)


@functools.lru_cache(maxsize=64)
def _trial(path: Path, state: tuple[int, int, int]) -> str:
    """Why the tokenizer is refused; empty if it is not. Once for each `state` of its file."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=os.fsencode(path),
            capture_output=True,
            env=child_environment() | {"TOKENIZERS_PARALLELISM": "false"},
            timeout=WAIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end in {WAIT_S:g} s"
    if not done.returncode:
        return ""
    ended = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT)
    told = " ".join(done.stderr.decode(errors="replace").rpartition("refused: ")[2].split())
    if ended or told.startswith("MemoryError"):
        return _TOO_MUCH
    return told[:_LONGEST_REASON] or f"its process ended with {done.returncode}"


def serve() -> None:
    """In the child: load the tokenizer whose path is on standard input, and use it."""
    from tokenizers import Tokenizer

    path = os.fsdecode(sys.stdin.buffer.read())
    limit(CPU_SECONDS, MEMORY_BYTES)
    try:
        tokenizer = Tokenizer.from_file(path)
        for text in _TEXTS:
            if len(tokenizer.encode(text).ids) > MAX_TOKENS:
                raise MemoryError
    except BaseException as error:  # a panic of the library is no Exception
        raise SystemExit(f"refused: {type(error).__name__}: {error}"[:_LONGEST_REASON]) from error
