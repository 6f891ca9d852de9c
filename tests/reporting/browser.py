"""Headless Chromium, as a reader has the pages before them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

_OFF_SCREEN = """
const outside = box => box.right > innerWidth + 1 || box.left < -1;
const found = [...document.body.querySelectorAll("*")]
  .filter(element => !element.closest(".scroll > *, pre, svg > *") && outside(element.getBoundingClientRect()))
  .map(element => element.outerHTML.slice(0, 80));
const page = document.documentElement.scrollWidth;
return page > innerWidth ? [...found, `page: ${page}`] : found;
"""

_CONTRASTS = """
const luminance = color => {
  const [r, g, b] = color.map(part => part / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const parse = text => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return {rgb: [r, g, b], alpha: a};
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const {rgb, alpha} = parse(getComputedStyle(at).backgroundColor);
    if (alpha === 1) return rgb;
  }
  return [255, 255, 255];
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
  if (!text || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const color = element.closest("svg") ? style.fill : style.color;
  found.push([text, contrast(parse(color).rgb, behind(element))]);
}
for (const shape of document.querySelectorAll("svg path, svg line, svg circle")) {
  const style = getComputedStyle(shape);
  for (const color of [style.stroke, style.fill]) {
    if (color.startsWith("rgb") && parse(color).alpha && !shape.closest("clipPath, defs"))
      found.push(["<" + shape.tagName + " " + color + ">", contrast(parse(color).rgb, behind(shape.closest("svg")))]);
  }
}
return found;
"""


@dataclass(frozen=True)
class Reader:
    """Examines a page that is open at some width, in light or dark mode."""

    driver: Any

    def words_off_screen(self) -> list[str]:
        """Lists text and pictures outside the screen, which make the page wider; elements that scroll do not."""
        return list(self.driver.execute_script(_OFF_SCREEN))

    def contrasts(self) -> list[tuple[str, float]]:
        """Lists each visible text, and each line and shape of a plot, with its contrast to its background."""
        return [(text, ratio) for text, ratio in self.driver.execute_script(_CONTRASTS)]

    def requests(self) -> list[str]:
        """Lists the addresses of everything that the page has loaded beside itself."""
        return list(self.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)"))

    def complaints(self) -> list[str]:
        """Lists the messages of the browser's console."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def top_of(self, text: str) -> float:
        """Measures the distance in pixels from the page's top to the first element that holds this text."""
        script = (
            "const path = `//body//*[not(self::script)][contains(normalize-space(.), '${arguments[0]}')]`;"
            "const all = document.evaluate(path, document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE, null);"
            "return all.snapshotItem(all.snapshotLength - 1).getBoundingClientRect().bottom;"
        )
        return float(self.driver.execute_script(script, text))


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Starts a browser with a fresh profile; skips the test where none is installed."""
    binary, service = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    try:
        yield driver
    finally:
        driver.quit()


def read(driver: Any, page: Path, width: int, mode: str) -> Reader:
    """Opens a page at a width in pixels, light or dark."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": mode}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())
    return Reader(driver)
