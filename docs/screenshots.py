"""Pictures of the page, docs/page*.png: `colbert-zero serve INDEX`, then `python docs/screenshots.py ADDRESS`.

The index is one of Python docstrings: `make demo` makes one. Needs the extra browser, and a chromium on the PATH.
"""

import io
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

SECONDS = 120

UNIQUE = "remove duplicates from a list but keep the order"
SIMILAR = "find the most similar word"


def take(browser: Browser, address: str, name: str, query: str, scheme: str, width: int, height: int) -> None:
    """A picture of a query's results, the first one explained."""
    phone = width < 500
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=2, is_mobile=phone,
        has_touch=phone,
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    page.goto(f"{address}?{urlencode({'q': query})}")
    explained(page)
    page.reload()  # the index's files are in memory now
    page.locator("h2 button").first.click()
    page.mouse.move(0, 0)
    expect(page.locator(".why table")).to_be_visible(timeout=1000 * SECONDS)
    explained(page)
    page.evaluate("document.activeElement.blur()")
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = Path(__file__).with_name(name)
    shown.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")
    context.close()


def explained(page: Page) -> None:
    """Wait until all results in view are."""
    expect(page.locator(".hit").first).to_be_visible(timeout=1000 * SECONDS)
    waiting = """all => all.some((hit) => hit.getBoundingClientRect().top < innerHeight
        && !hit.querySelector('.strip').childElementCount)"""
    while page.locator(".hit").evaluate_all(waiting):
        page.wait_for_timeout(100)


def main() -> None:
    """Take them all."""
    address = sys.argv[1]
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=chromium, args=flags)
        take(browser, address, "page.png", UNIQUE, "light", 1160, 960)
        take(browser, address, "page-dark.png", SIMILAR, "dark", 1160, 960)
        take(browser, address, "page-phone.png", UNIQUE, "light", 390, 844)
        browser.close()


if __name__ == "__main__":
    main()
