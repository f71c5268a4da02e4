"""A real Chromium, driven by selenium, for tests of pages."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def open_chromium(profile):
    """A driver of a headless Chromium whose profile is the folder `profile`; skips the test where there is none."""
    if not CHROMIUM or not shutil.which("chromedriver"):
        pytest.skip("Chromium is not installed (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `test`)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    for switch in [*switches.split(), "disable-sync", "window-size=1280,900", f"user-data-dir={profile}"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
