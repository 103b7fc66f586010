"""Take the screenshot in docs/app.md: python tests/browser/screenshot.py docs/images/app.jpg"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import sync_playwright

from dformer.d2.checkpoint.checkpointer import ASSETS
from tests.browser.serving import CHROMIUM, served

with served() as url, sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator("input[type=file]").first.set_input_files(str(ASSETS / "examples" / "shapes-1.jpg"))
    page.get_by_label("Remove Image").wait_for()
    page.locator("input[type=number][aria-label$='Sampling steps']").fill("4")
    page.keyboard.press("Tab")
    page.locator("#segment").click()
    page.locator("#picture img").wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=sys.argv[1], type="jpeg", quality=80)
    browser.close()
