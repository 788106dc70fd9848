"""A local server on a thread of the tests, and what a person does with its page."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from axe_core_python.selenium import Axe
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from balancer.process.signals import StopSignal
from balancer.web.serving import Address, listening, serve

WAIT_S = 30.0


@contextmanager
def served(app: Any, port: int | None = 0) -> Iterator[Address]:
    stop = StopSignal()
    with listening(port) as address:
        thread = threading.Thread(target=serve, args=[address, app, stop])
        thread.start()
        try:
            yield address
        finally:
            stop(signal.SIGINT)
            thread.join(WAIT_S)


@dataclass
class Page:
    """A page that is open."""

    driver: WebDriver

    def open(self, url: str, ready: str) -> None:
        self.driver.get(url)
        self.until(lambda: self.is_shown(ready), f"#{ready} is not shown")

    def press(self, *keys: str) -> None:
        """One after the other, each to whatever has the focus."""
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def text(self, identifier: str) -> str:
        return str(self.driver.find_element(By.ID, identifier).text)

    def is_shown(self, identifier: str) -> bool:
        return bool(self.driver.find_element(By.ID, identifier).is_displayed())

    def run(self, program: str) -> Any:
        return self.driver.execute_script(program)

    def until(self, done: Callable[[], object], problem: str) -> None:
        end_s = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < end_s, f"{problem}; the page says: {self.text_of_all()}"
            time.sleep(0.02)

    def text_of_all(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "body").text)[:500]

    def until_saved(self) -> None:
        self.until(lambda: self.text("saved") == "all saved", "not all is saved")

    def look(self, *, dark: bool = False, width: int = 1280) -> None:
        """As on another screen."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def problems_of_access(self) -> list[str]:
        """What axe-core finds: labels, roles, contrast, order of headings."""
        found = Axe().run(self.driver)["violations"]
        return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]
