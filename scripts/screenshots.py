"""Draw the pictures of docs/browser.md: of a demo run while it goes on, and of its review.

python scripts/screenshots.py
python scripts/screenshots.py runs/demo    # of its review only, from a run that there is

Needs chromium and chromedriver. The first takes as long as `balancer run configs/demo.yaml`.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from chromium import browser, served

PROJECT = Path(__file__).parent.parent
PICTURES = PROJECT / "docs" / "browser"

BALANCER = (sys.executable, "-m", "balancer")

HALF_DONE = 130
"""Accepted images, of 244."""

WIDE, PHONE = (1280, 860), (390, 844)


def main(run: str | None) -> None:
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, browser("--hide-scrollbars") as driver:
        if run is None:
            run = f"{folder}/demo"
            with subprocess.Popen([*BALANCER, "run", "configs/demo.yaml", "--out", run], cwd=PROJECT):
                while not (Path(run) / "manifest" / "log").exists():
                    time.sleep(1)
                _draw_watching(driver, run)
        _draw_reviewing(driver, run)


def _draw_watching(driver: Any, run: str) -> None:
    with served("watch", run) as url:
        _until(driver, url, lambda: _accepted(driver) >= HALF_DONE)
        _draw(driver, "watch", (WIDE[0], 1180))
        _draw(driver, "watch-dark", (WIDE[0], 1180), dark=True)
        _draw(driver, "watch-phone", PHONE)


def _draw_reviewing(driver: Any, run: str) -> None:
    with served("review", run, "--queue", "burnt", "--as", "anna") as url:
        _until(driver, url, lambda: _shown(driver, "#example-list img") == 6)
        _draw(driver, "review", WIDE)
        _draw(driver, "review-dark", WIDE, dark=True)
        _draw(driver, "review-phone", PHONE)
    with served("review", run, "--queue", "segment", "--as", "anna") as url:
        _until(driver, url, lambda: _shown(driver, "#zoom img") == 1)
        for key in ("g", "ArrowRight", "x"):
            _press(driver, key)
        _draw(driver, "grid", WIDE)
        _draw(driver, "grid-dark", WIDE, dark=True)
        _draw(driver, "grid-phone", PHONE)


def _until(driver: Any, url: str, ready: Callable[[], bool]) -> None:
    driver.get(url)
    while not ready():
        time.sleep(0.3)


def _shown(driver: Any, selector: str) -> int:
    program = f"return [...document.querySelectorAll('{selector}')].filter((one) => one.complete).length"
    return int(driver.execute_script(program))


def _accepted(driver: Any) -> int:
    words = driver.execute_script("return document.querySelector('#figures dd')?.textContent ?? '0'").split()
    return int(words[0])


def _press(driver: Any, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key})
    time.sleep(0.5)


def _draw(driver: Any, name: str, size: tuple[int, int], *, dark: bool = False) -> None:
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    time.sleep(1)
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.save(PICTURES / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
