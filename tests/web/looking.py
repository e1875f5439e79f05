"""The page as a person uses it, in Chromium."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains

from ..browser import chromium, complaints
from ..waiting import LIMIT_SECONDS, PAUSE_SECONDS


class Look:
    """A window onto the page at `address`. Its parts are named by selectors of CSS."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, query: str = "") -> None:
        """Open the page, and wait until it has answered the query of its address."""
        self.driver.get(self.address + query)
        self.find("#examples button")
        self.until(lambda: self.find("#model input").get_attribute("value"), "no model is offered")

    def until(self, condition: Callable[[], Any], told: str) -> Any:
        """Wait until `condition` answers something true, and return it."""
        give_up = time.monotonic() + 2 * LIMIT_SECONDS
        while True:
            try:
                if answer := condition():
                    return answer
            except WebDriverException:  # what was found is drawn anew, or covered for a moment
                pass
            assert time.monotonic() < give_up, f"{told}; the page says: {self.said()}"
            time.sleep(PAUSE_SECONDS)

    def said(self) -> str:
        return str(self.driver.find_element("css selector", "body").text)

    def all(self, selector: str) -> list[Any]:
        return [x for x in self.driver.find_elements("css selector", selector) if x.is_displayed()]

    def find(self, selector: str) -> Any:
        return self.until(lambda: self.all(selector)[:1], f"nothing is shown for {selector}")[0]

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def wait_for(self, selector: str, text: str) -> None:
        self.until(
            lambda: any(text in x.text for x in self.all(selector)), f"{selector} lacks {text!r}"
        )

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            self.all(selector)[0].click()
            return True

        self.find(selector)
        self.until(clicked, f"{selector} cannot be clicked on")

    def press(self, selector: str, text: str) -> None:
        """Click on what has this text."""

        def clicked() -> bool:
            next(x for x in self.all(selector) if x.text == text).click()
            return True

        self.until(
            lambda: any(x.text == text for x in self.all(selector)) and clicked(),
            f"no {selector} says {text!r}",
        )

    def choose(self, name: str, text: str) -> None:
        """Choose from a list."""
        self.click(f"#{name} input")
        self.until(
            lambda: [x for x in self.all("ul[role=listbox] li") if x.text.strip("✓ \n") == text],
            f"{name} does not offer {text!r}",
        )[0].click()

    def picture(self, selector: str) -> str:
        """Return the address of a picture that is shown."""
        return str(self.find(f"{selector} img").get_attribute("src"))

    def changes(self, selector: str, before: str) -> str:
        """Wait until another picture is shown, and return its address."""
        return str(
            self.until(
                lambda: next(
                    (
                        x.get_attribute("src")
                        for x in self.all(f"{selector} img")
                        if x.get_attribute("src") != before
                    ),
                    None,
                ),
                f"the picture of {selector} stays",
            )
        )

    def draw(self, *strokes: list[tuple[int, int]]) -> None:
        """Draw strokes, from point to point of a field of 280 x 280."""
        self.click("button[role=tab]:nth-of-type(2)")
        canvas = self.find("#draw canvas")
        scale = canvas.size["width"] / 280
        for stroke in strokes:
            pen = ActionChains(self.driver, duration=10)
            places = [(int((x - 140) * scale), int((y - 140) * scale)) for x, y in stroke]
            pen.move_to_element_with_offset(canvas, *places[0]).click_and_hold()
            for place in places[1:]:
                pen.move_to_element_with_offset(canvas, *place)
            pen.release().perform()

    def query(self, part: str) -> str:
        """Wait until the address holds `part`, and return its query."""
        self.until(lambda: part in self.driver.current_url, f"the address lacks {part}")
        return "?" + str(self.driver.current_url).partition("?")[2]

    def outside(self) -> list[str]:
        """Return the addresses elsewhere that the page has asked for."""
        asked = self.driver.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        return [x for x in asked if not x.startswith((self.address, "data:", "blob:"))]

    def refused(self) -> list[str]:
        """Return what the console holds of requests that the policy refused, or that failed."""
        told = ("Content Security Policy", "Failed to load")
        return [x for x in complaints(self.driver) if any(each in x for each in told)]


@contextmanager
def looking(
    address: str, *, width: int = 1280, height: int = 1000, dark: bool = False
) -> Iterator[Look]:
    """Open a window; skips the test where Chromium is not installed."""
    with chromium(width=width, height=height, dark=dark) as driver:
        # A window is no narrower than 500 pixels, but a page may be.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield Look(driver, address)
