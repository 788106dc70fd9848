"""Debian's `chromium`, headless, to test, draw and time pages, and the pages that `balancer` serves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAMS = ("chromium", "chromedriver")

USUAL = (
    "--headless=new",
    "--no-sandbox",  # root, as in a container, has none
    "--disable-dev-shm-usage",
)


@contextmanager
def browser(*arguments: str, logs: tuple[str, ...] = ()) -> Iterator[Any]:
    """A Selenium driver, which keeps these `logs`. `PROGRAMS` have to be there."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*USUAL, *arguments):
        options.add_argument(argument)
    if logs:
        options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def served(*words: str) -> Iterator[str]:
    """The address of the page that `balancer WORDS` serves, in a process of its own."""
    command = [sys.executable, "-m", "balancer", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(line.strip() for line in server.stdout if line.startswith("http"))
        finally:
            server.send_signal(signal.SIGINT)
