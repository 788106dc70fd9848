"""One headless Chromium for all tests of pages."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest

from chromium import PROGRAMS, browser

LACKING = [name for name in PROGRAMS if shutil.which(name) is None]
LACKING += [name for name in ("selenium", "axe_core_python") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if {"selenium", "axe_core_python"} & {*LACKING} else []


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    if LACKING:
        pytest.skip(f"no {', '.join(LACKING)}: `apt-get install chromium chromium-driver` brings the browser")
    profile = tmp_path_factory.mktemp("profile")
    quiet = (
        "--disable-gpu",
        "--disable-software-rasterizer",
        "--no-zygote",
        "--disable-features=OptimizationGuideOnDeviceModel,OptimizationHints",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={profile}",
    )
    with browser(*quiet, logs=("browser", "performance")) as driver:
        driver.get("about:blank")  # the page of a new tab asks for many things
        yield driver


@pytest.fixture
def page(driver):
    """A window; afterwards, nothing that it asked for was elsewhere, and no program of it failed."""
    from tests.browser.served import Page

    driver.get_log("performance")
    driver.get_log("browser")
    page = Page(driver)
    page.look()
    yield page
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {
        message["params"]["request"]["url"]
        for message in asked
        if message["method"] == "Network.requestWillBeSent"
    }
    assert urls
    assert [url for url in urls if not url.startswith(("http://127.0.0.1:", "chrome:"))] == []
    logged = [entry for entry in driver.get_log("browser") if entry["source"] != "network"]
    assert logged == []
    for window in driver.window_handles[1:]:
        driver.switch_to.window(window)
        driver.close()
    driver.switch_to.window(driver.window_handles[0])
    driver.get("about:blank")
