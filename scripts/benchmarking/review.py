"""How long a reviewer waits after a key, in headless Chromium: until the next image is on the screen.

Two clocks. The page's own: from the moment of the key to the first task after the frame with the next image,
which must be loaded by then. And Chromium's (Event Timing): from the key to the presentation of that frame,
in steps of 8 ms, 16 at least. The server is a process of its own, as it is for a person.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from PIL import Image

from balancer.manifest import read_log
from balancer.storage import open_storage
from benchmarking.record import keep_option, save
from benchmarking.synthetic_manifest import write_manifest
from chromium import browser, served

SIDE = 512
DIFFERENT = 24
"""Images that differ. Each stands under many names, so none is found in the browser's cache."""

PACES_S: Mapping[str, float] = {"a person": 0.3, "as fast as one can": 0.08}

LEAST_MS = 16
"""What Event Timing does not report is faster."""

COLLECTED = """
window.waits = []; window.presented = [];
const shown = () => document.querySelector("#zoom img");
window.addEventListener("keydown", (event) => {
  const before = shown();
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      const image = shown();
      const there = image !== before && image.complete && image.naturalWidth > 0;
      window.waits.push(there ? performance.now() - event.timeStamp : null);
    };
    channel.port2.postMessage(0);
  });
}, true);
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (entry.name === "keydown") window.presented.push(entry.duration);
}).observe({ type: "event", durationThreshold: 16 });
"""


@click.command()
@click.option("--keys", default=100, show_default=True, help="Keys at each pace.")
@keep_option
def command(keys: int) -> None:
    """From a key to the next image, on 512 x 512 images."""
    with TemporaryDirectory() as folder:
        num_bytes = _make_run(Path(folder), 2 * len(PACES_S) * (keys + 10))
        with served("review", folder, "--queue", "correct", "--as", "benchmark") as url:
            paces = _measured(url, keys)
    save("review", {"side": SIDE, "image_bytes": num_bytes, "keys": keys, "paces": paces})


def _make_run(folder: Path, rows: int) -> int:
    """A run whose accepted rows have images; the size of one on average."""
    write_manifest(folder, rows, fragment_rows=256, embedding_dim=4)
    pictures = [_picture(number) for number in range(DIFFERENT)]
    names = read_log(open_storage(folder, create=False), ["file_name"]).table["file_name"].drop_null()
    for number, name in enumerate(names.to_pylist()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % DIFFERENT])
    return round(sum(map(len, pictures)) / DIFFERENT)


def _picture(number: int) -> bytes:
    """A PNG about as large as that of a photograph."""
    chance = np.random.default_rng(number)
    coarse = Image.fromarray(chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    pixels = np.asarray(coarse, np.int16) + chance.integers(-6, 7, (SIDE, SIDE, 3), dtype=np.int16)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _measured(url: str, keys: int) -> dict[str, Any]:
    with browser("--window-size=1280,900") as driver:
        return {name: _pressed(driver, url, keys, pace_s) for name, pace_s in PACES_S.items()}


def _pressed(driver: Any, url: str, keys: int, pace_s: float) -> dict[str, Any]:
    driver.get(url)
    time.sleep(2)  # to read the question, while the next images are loaded
    driver.execute_script(COLLECTED)
    for _ in range(keys):
        due_s = time.monotonic() + pace_s
        for kind in ("rawKeyDown", "keyUp"):
            key = {"type": kind, "key": "p", "code": "KeyP", "windowsVirtualKeyCode": 80}
            driver.execute_cdp_cmd("Input.dispatchKeyEvent", key)
        time.sleep(max(due_s - time.monotonic(), 0))
    load = os.getloadavg()[0]
    time.sleep(1)
    waits, presented = driver.execute_script("return [window.waits, window.presented]")
    loaded = sorted(wait for wait in waits if wait is not None)
    presented = sorted([*[LEAST_MS] * (keys - len(presented)), *presented])
    return {
        "pace_s": pace_s,
        "load_average": round(load, 1),
        "not_loaded": keys - len(loaded),
        "ms_p50": _percentile(loaded, 0.5),
        "ms_p95": _percentile(loaded, 0.95),
        "ms_max": _percentile(loaded, 1),
        "presented_ms_p50": _percentile(presented, 0.5),
        "presented_ms_p95": _percentile(presented, 0.95),
        "presented_ms_max": _percentile(presented, 1),
    }


def _percentile(ordered: list[float], share: float) -> float | None:
    return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 1) if ordered else None
