"""tools/app.py in a browser, as its users see it. `make test-browser` installs what these tests need."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dformer.apps.interactive import MAX_STEPS
from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.visualize.files import VideoWriter
from tests.browser.serving import CHROMIUM, served

pytest.importorskip("gradio", reason="Gradio is not installed: make test-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium")

EXAMPLE = ASSETS / "examples" / "shapes-1.jpg"
TIMEOUT = 120_000  # milliseconds


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the shipped model with tools/app.py and return the address."""
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """Open the page anew; `page.fetched` lists the addresses that it fetches."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, accept_downloads=True)
    page = context.new_page()
    page.fetched = []
    page.on("request", lambda request: page.fetched.append(request.url))
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    page.wait_for_selector("#segment")
    yield page
    context.close()


def upload(page, file: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(str(file))
    page.get_by_label("Remove Image").wait_for()


def set_number(page, label: str, value: int) -> None:
    field = page.locator(f"input[type=number][aria-label$='{label}']")
    field.fill(str(value))
    field.press("Tab")


def press(page, button: str = "#segment") -> str:
    """Press a button, wait for the result and return its picture's address."""
    before = picture(page)
    page.locator(button).click()
    page.wait_for_function(
        "before => { const i = document.querySelector('#picture img'); return i && i.src != before && i.complete }",
        arg=before,
    )
    return picture(page)


def picture(page) -> str:
    found = page.locator("#picture img")
    return found.get_attribute("src") if found.count() else ""


def pixels(page) -> bytes:
    return page.request.get(picture(page)).body()


def error(page) -> str:
    """Wait for an error message and return it."""
    message = page.locator(".toast-body.error").first
    message.wait_for()
    return message.inner_text()


def test_upload_segment_change_and_download(page, url, tmp_path):
    shutil.copyfile(EXAMPLE, tmp_path / "ids.png")  # a name that the page itself uses
    upload(page, tmp_path / "ids.png")
    set_number(page, "Sampling steps", 1)
    press(page)
    rows = page.locator("#legend tr")
    assert rows.count() > 2 and re.search(r"(disc|square|triangle|star) *\s\d+ %", page.inner_text("#legend"))
    first = pixels(page)

    set_number(page, "Seed", 5)
    press(page)
    assert pixels(page) != first, "another seed, another result"
    set_number(page, "Seed", 0)
    press(page)
    assert pixels(page) == first, "the same seed, the same result"

    set_number(page, "Sampling steps", 3)
    press(page)
    last = pixels(page)
    assert last != first, "more steps, another result"
    assert "step 3 of 3, t = 332" in page.inner_text("#legend")
    page.locator("#step input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('#legend').innerText.includes('step 1 of 3, t = 999')")
    assert pixels(page) == first, "the first of three steps is that of one"

    with page.expect_download() as download:
        page.locator("#json").click()
    download.value.save_as(tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["tasks"], found["steps"], found["seed"]) == (["panoptic"], 3, 0)
    assert (found["height"], found["width"]) == (128, 128) and found["segments"]
    with page.expect_download() as download:
        page.locator("#png").click()
    assert download.value.suggested_filename == "ids.png"
    assert Image.open(download.value.path()).size == (512, 512)
    own = (url, "data:", "blob:")
    assert all(address.startswith(own) for address in page.fetched), "nothing is fetched from other servers"


def test_an_example_a_task_and_fewer_proposals(page):
    page.locator(".gallery-item").nth(1).click()
    page.get_by_label("Remove Image").wait_for()
    page.get_by_label("semantic").check()
    press(page)
    assert "%" in page.inner_text("#legend")
    set_number(page, "Proposals", 1)
    page.get_by_label("panoptic").check()
    press(page)
    assert page.locator("#legend tr").count() <= 2, "one proposal, one segment, and the heading"


def test_what_is_painted_is_refined_and_several_answers_are_merged(page):
    page.locator("#painting button").first.click()
    with page.expect_response(lambda response: response.url.endswith(".webp")):  # the picture to paint on
        upload(page, EXAMPLE)
    page.wait_for_timeout(1500)
    page.locator("#refine").click()
    assert "paint" in error(page), "nothing is painted yet"
    canvas = page.locator("#paint canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2  # on the large disc
    page.mouse.move(x - 40, y + 30)
    page.mouse.down()
    page.mouse.move(x - 20, y + 60, steps=5)
    page.mouse.up()
    press(page, "#refine")
    rows = page.locator("#legend tr")
    assert rows.count() == 2 and "disc" in rows.nth(1).inner_text()

    set_number(page, "Sampling steps", 1)
    page.get_by_label("Answers to merge").fill("2")
    page.keyboard.press("Tab")
    press(page)
    assert "2 answers" in page.inner_text("#legend") and rows.count() > 2
    width, height = Image.open(io.BytesIO(pixels(page))).size
    assert width > 2 * 512 and height < 600, "the disagreement is beside the segments"


def test_a_video_is_followed(page, tmp_path):
    still = np.asarray(Image.open(EXAMPLE))
    with VideoWriter(tmp_path / "clip.mp4", 10) as video:
        for t in range(3):
            video.write(np.roll(still, 3 * t, axis=1))
    page.locator("#videos button").first.click()
    page.locator("#video input[type=file]").set_input_files(str(tmp_path / "clip.mp4"))
    page.locator("#video video").wait_for(state="attached")
    page.get_by_label("hints").check()
    page.locator("#follow").click()
    page.wait_for_function("document.querySelector('#followed video')?.readyState >= 2")  # the browser can play it
    with page.expect_download() as download:
        page.locator("#tracks").click()
    found = json.loads(Path(download.value.path()).read_text())
    assert found["tracker"] == "hints" and [each["frame"] for each in found["images"]] == [0, 1, 2]
    assert any("track_id" in segment for segment in found["images"][2]["segments"])


def test_errors_name_broken_and_huge_images(page, tmp_path):
    page.locator("#segment").click()
    assert error(page), "there is no image yet"
    for name, content in [("broken.png", EXAMPLE.read_bytes()[:900]), ("text.jpg", b"no image at all")]:
        page.reload()
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / name))
        page.wait_for_timeout(1500)
        page.locator("#segment").click()
        assert name in error(page)
    page.reload()
    Image.fromarray(np.zeros((6250, 8000), np.uint8)).save(tmp_path / "huge.png")
    upload(page, tmp_path / "huge.png")
    page.locator("#segment").click()
    message = error(page)
    assert "huge.png" in message and "8000 x 6250" in message
    page.reload()
    upload(page, EXAMPLE)
    assert press(page), "the page still works"


def test_ten_requests_at_once(browser, url):
    pages = [browser.new_context().new_page() for _ in range(10)]
    for seed, page in enumerate(pages):
        page.set_default_timeout(TIMEOUT)
        page.goto(url)
        page.wait_for_selector("#segment")
        upload(page, EXAMPLE)
        set_number(page, "Seed", seed)
        set_number(page, "Sampling steps", MAX_STEPS)
    for page in pages:
        page.locator("#segment").click()
    for page in pages:
        page.locator("#picture img").wait_for()
        assert f"step {MAX_STEPS} of {MAX_STEPS}" in page.inner_text("#legend")
    assert len({pixels(page) for page in pages}) > 1
    for page in pages:
        page.context.close()
