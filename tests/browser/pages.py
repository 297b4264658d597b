"""A headless Chromium on the platform's pages: forms filled in and read as a person does."""
import contextlib
import os
import shutil
import time
from collections.abc import Callable

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PATIENCE_SECONDS = 300.0                # of a page on a busy machine; a test that passes never waits so long
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)


def installed(names: tuple[str, ...]) -> str:
    """The path of the first program of these that there is; empty where there is none."""
    return next((path for name in names if (path := shutil.which(name))), "")


NEEDS_BROWSER = pytest.mark.skipif(
    not (installed(BROWSERS) and installed(DRIVERS)) and "OPD_CI" not in os.environ,
    reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")


@contextlib.contextmanager
def browser(logs: dict[str, str] | None = None):
    """A browser window of 1400 x 1500; `logs` says which of its logs are kept, and from which level on."""
    options = webdriver.ChromeOptions()
    options.binary_location = installed(BROWSERS)
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1500"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", logs or {})
    driver = webdriver.Chrome(options=options, service=Service(installed(DRIVERS)))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def until(what: str, look: Callable):
    """What `look` finds, once that is something. Raises AssertionError naming what was waited for."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
            if found := look():
                return found
        time.sleep(0.3)
    raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")


class Page:
    """What a person does with a page."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, url: str) -> "Page":
        self.driver.get(url)
        return self

    def text(self) -> str:
        """What is to be read."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def shows(self, *words: str) -> str:
        """The page's text once it has all of these."""
        return until(f"{words} on {self.driver.current_url}",
                     lambda: text if all(word in (text := self.text()) for word in words) else None)

    def link(self, text: str) -> None:
        """Follow a link."""
        until(f"link {text}", lambda: self.driver.find_element(By.LINK_TEXT, text)).click()

    def press(self, text: str) -> None:
        """Press the last visible button with this text."""
        xpath = f"//button[normalize-space(.)='{text}']"
        until(f"button {text}", lambda: [one for one in self.driver.find_elements(By.XPATH, xpath)
                                         if one.is_displayed() and one.is_enabled()])[-1].click()

    def choose(self, text: str) -> None:
        """Press what shows this text, whatever it is: an entry of a menu."""
        xpath = f"//*[normalize-space(.)='{text}'][not(*[normalize-space(.)='{text}'])]"
        found = until(f"entry {text}", lambda: self.driver.find_elements(By.XPATH, xpath))
        self.driver.execute_script("arguments[0].click()", found[-1])

    def search(self, text: str) -> None:
        """Write into the page's search box."""
        xpath = "//input[starts-with(@placeholder, 'Search')]"
        until("a search box", lambda: self.driver.find_element(By.XPATH, xpath)).send_keys(text)

    def inputs(self, title: str) -> list:
        """The inputs of a field of Prefect's forms, and of no field behind it: of a list one an item."""
        xpath = (f"//*[normalize-space(text())='{title} (Optional)']"
                 "/ancestor::*[contains(concat(' ', @class, ' '), ' schema-form-property ')][1]"
                 "//*[self::input or self::textarea]")
        return self.driver.find_elements(By.XPATH, xpath)

    def field(self, title: str, number: int = 0):
        """An input of a field, once it is there."""
        return until(f"input {number} of {title}", lambda: (self.inputs(title)[number:] or [None])[0])

    def fill(self, title: str, text: str, number: int = 0) -> None:
        """Write into a field in place of what stands there."""
        field = self.field(title, number)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        until(f"{text} in {title}", lambda: self.field(title, number).get_property("value") == text)

    def switch(self, title: str) -> None:
        """Turn a switch."""
        self.driver.execute_script("arguments[0].click()", self.field(title))

    def add(self, title: str, *texts: str) -> None:
        """Add items to a list that is empty."""
        for number, text in enumerate(texts):
            self.press("Add item")
            self.fill(title, text, number)
