"""Try each tokenizer in a process with limits before it is used.

Tokenizers are programs: their rewriting rules and regular expressions may never end. A tokenizer that passes
can still be slow on other text; the deadlines of calls cover that.
"""

from __future__ import annotations

import functools
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

from actors.weights.chat_template import child_environment
from actors.weights.text_growth import refuse_growth
from balancer.errors import WeightsError
from balancer.process.child_limits import limit_process
from balancer.text.json_reading import read_json
from balancer.text.quantities import size

CPU_SECONDS = 30
MEMORY_BYTES = 1_600_000_000
"""The largest published tokenizers take 600 MB."""

MAX_TOKENS = 100_000
WAIT_S = 240.0

_LONGEST_REASON = 200
_TOO_MUCH = f"it takes more than {CPU_SECONDS} s, {size(MEMORY_BYTES)} or {MAX_TOKENS:,} tokens"
_TEXTS = (
    "a photo of a badly burnt dosa on a steel plate, in dim light, seen from above; 35 mm, f/1.8!",
    "Does this picture show a piece of bread that isn't burnt? Answer yes or no.",
    "a " * 200 + "a" * 200 + " " * 200 + "!?" * 100 + "0123456789" * 20,
    "Crème brûlée, पका हुआ डोसा, 焦げたパン 🍕\n\t<|endoftext|>",
)


def check_tokenizer(path: Path, name: str, model: str, hint: str) -> None:
    """Raise WeightsError if the `tokenizer.json` at `path` cannot be loaded and used within the limits."""
    stat = path.stat()
    if reason := _reason(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns)):
        raise WeightsError(f"{model}: {name}: the tokenizer cannot be used: {reason}", hint=hint)


_reasons: dict[str, str] = {}
"""By the SHA-256 of the file: the tokenizers of a pipeline are often the same."""


@functools.lru_cache(maxsize=64)
def _reason(path: Path, state: tuple[int, int, int]) -> str:
    """Why the tokenizer is refused; empty if it is not. Cached by the `state` of its file."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 not in _reasons:
        _reasons[sha256] = _trial(content)
    return _reasons[sha256]


def _trial(content: bytes) -> str:
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=content,
            capture_output=True,
            env=child_environment() | {"TOKENIZERS_PARALLELISM": "false"},
            timeout=WAIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end in {WAIT_S:g} s"
    if not done.returncode:
        return ""
    ended = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT)
    message = " ".join(done.stderr.decode(errors="replace").rpartition("refused: ")[2].split())
    if ended or message.startswith("MemoryError"):
        return _TOO_MUCH
    return message[:_LONGEST_REASON] or f"its process ended with {done.returncode}"


def serve() -> None:
    """In the child: load the tokenizer that is on standard input, and use it."""
    from tokenizers import Tokenizer

    content = sys.stdin.buffer.read()
    limit_process(CPU_SECONDS, MEMORY_BYTES)
    try:
        refuse_growth(read_json(content))
        tokenizer = Tokenizer.from_buffer(content)
        for text in _TEXTS:
            if len(tokenizer.encode(text).ids) > MAX_TOKENS:
                raise MemoryError
    except BaseException as error:  # a panic of the library is not an Exception
        raise SystemExit(f"refused: {type(error).__name__}: {error}"[:_LONGEST_REASON]) from error
