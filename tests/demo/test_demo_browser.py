"""The page in a real Chromium without a screen, at the width of a phone and of a desktop."""

import io
import os
import re
import shutil
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_models import moving_frames, write_video

from vss_hf.demo import serving
from vss_hf.inference import VideoSegmenter, predict
from vss_hf.video_io import read_frames


pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytest.importorskip("gradio", reason="the extra demo is not installed")

FRAMES, HEIGHT, WIDTH = 12, 96, 160
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = running.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "wander.mp4", moving_frames(FRAMES, HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def page(folders):
    made = serving.create_page([str(folder) for folder in folders], device="cpu")
    made.address = serving.serve(made, wait=False)
    yield made
    made.blocks.close()
    made.close()


@pytest.fixture
def open_tab(browser, page, video):
    """Opens the page with the video uploaded and the button for it at hand; notes what the browser complains of."""
    tabs = []

    def open_at(width, scheme):
        tab = browser.new_page(viewport={"width": width, "height": 850}, color_scheme=scheme)
        tabs.append(tab)
        tab.set_default_timeout(60_000)
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.goto(page.address, wait_until="domcontentloaded")
        tab.locator("input[type=file]").first.set_input_files(video)
        tab.locator(".vss-upload video").wait_for()
        return tab

    yield open_at
    for tab in tabs:
        if not tab.is_closed():
            tab.close()


def picture(tab) -> tuple[str, np.ndarray]:
    """Address and pixels of the first model's picture."""
    address = tab.locator(".vss-picture img").first.get_attribute("src")
    return address, np.array(Image.open(io.BytesIO(tab.request.get(address).body())).convert("RGB"))


def next_picture(tab, before: str) -> np.ndarray:
    """The pixels of the picture that follows another one."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        address, pixels = picture(tab)
        if address != before:
            return pixels
        tab.wait_for_timeout(50)
    raise AssertionError("the picture stays as it is")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_visit(open_tab, page, folders, video, tmp_path, monkeypatch, width, scheme):
    predict(VideoSegmenter.from_pretrained(folders[0], "cpu"), video, tmp_path)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "wander").glob("*.png"))}
    frames = [image for _, image in read_frames(video)]

    tab = open_tab(width, scheme)
    tab.get_by_role("button", name="Label the video").click()
    tab.locator("#masks").wait_for()
    assert re.search(r"12 frames, [\d.]+ frames/s", tab.locator(".vss-status").inner_text())

    for segmenter in page.models.segmenters:  # from here on, nothing is asked of the models
        monkeypatch.setattr(segmenter, "score_maps", None)

    # A pixel: the mouse goes to the middle of one, at whatever size the picture is shown.
    x, y = 100, 30
    box = tab.locator(".vss-picture img").first.bounding_box()
    place = {"x": (x + 0.5) / WIDTH * box["width"], "y": (y + 0.5) / HEIGHT * box["height"]}
    address, _ = picture(tab)
    tab.locator(".vss-picture img").first.click(position=place)
    tab.locator(".vss-card").first.wait_for()
    said = tab.locator("#pixel").inner_text()
    found = [int(number) for number in re.search(r"Pixel (\d+), (\d+)", said).groups()]
    assert abs(found[0] - x) <= 1 and abs(found[1] - y) <= 1
    last = np.array(Image.open(io.BytesIO(files["00000011.png"])))
    label = page.models.classes[last[found[1], found[0]]]
    assert tab.locator(".vss-best .vss-name").first.inner_text() == label
    assert re.fullmatch(r"\d+\.\d %", tab.locator(".vss-sure").first.inner_text())
    next_picture(tab, address)  # with the mark

    # Opacity 0 shows the frame itself, but for the mark.
    address, _ = picture(tab)
    tab.locator("#opacity input[type=range]").fill("0")
    shown = next_picture(tab, address).astype(int)
    away = np.hypot(*np.ogrid[-y : HEIGHT - y, -x : WIDTH - x]) > 16
    assert np.abs(shown - frames[11])[away].mean() < 8

    # Another frame
    address, _ = picture(tab)
    tab.locator("#frame input[type=range]").fill("3")
    assert np.abs(next_picture(tab, address).astype(int) - frames[3])[away].mean() < 8

    # One class alone
    address, _ = picture(tab)
    row = tab.locator(".vss-class[data-choice]").first
    row.click()
    tab.locator('.vss-class[aria-pressed="true"]').wait_for()
    only = int(tab.locator('.vss-class[aria-pressed="true"]').get_attribute("data-choice"))
    others = (np.array(Image.open(io.BytesIO(files["00000003.png"]))) != only) & away
    shown = next_picture(tab, address).astype(int)
    assert np.abs(shown - frames[3] // 3)[others].mean() < np.abs(shown - frames[3])[others].mean()

    with tab.expect_download() as download:
        tab.locator("#masks").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert {name: members[f"1_still-ocrnet/wander/{name}"] for name in files} == files
    assert len(members) == 2 * FRAMES + 1

    tab.get_by_role("button", name="Make the overlay video").click()
    tab.locator("#overlay0 video").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert tab.complaints == []

    (result,) = page.results._of_visitor.values()
    tab.close()
    end = time.monotonic() + 30
    while result.folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not result.folder.exists()  # the visitor has left


@pytest.fixture
def held(page, monkeypatch):
    """The first model waits before each frame for one of these."""
    segmenter = page.models.segmenters[0]
    quick, steps = segmenter.score_maps, threading.Semaphore(0)

    def slow(frames):
        assert steps.acquire(timeout=60)
        return quick(frames)

    monkeypatch.setattr(segmenter, "score_maps", slow)
    yield steps
    steps.release(1000)
    end = time.monotonic() + 60
    while page.line._places and time.monotonic() < end:
        time.sleep(0.1)


def begin(tab):
    tab.get_by_role("button", name="Label the video").click()


def test_stopping_before_the_first_frame(open_tab, held):
    tab = open_tab(390, "light")
    begin(tab)
    tab.get_by_text("0 of 12 frames").wait_for()
    tab.get_by_role("button", name="Stop here").click()
    tab.get_by_text("Stopping …").wait_for()
    held.release()
    tab.get_by_text("Stopped before the first frame.").wait_for()
    assert tab.get_by_role("button", name="Label the video").is_enabled()
    held.release(100)
    begin(tab)
    tab.locator("#masks").wait_for()


def test_a_pixel_and_a_reload_while_frames_come(open_tab, page, held):
    tab = open_tab(1280, "light")
    begin(tab)
    held.release(2)
    tab.get_by_text(re.compile("[12] of 12 frames")).wait_for()
    tab.locator(".vss-picture img").first.click()
    tab.locator(".vss-card").first.wait_for()
    held.release(2)
    tab.get_by_text(re.compile("[34] of 12 frames")).wait_for()
    (result,) = page.results._of_visitor.values()
    assert result.mark is not None and tab.locator(".vss-card").count() == 2
    tab.reload(wait_until="domcontentloaded")
    tab.locator("input[type=file]").first.wait_for(state="attached")
    held.release(100)
    end = time.monotonic() + 60
    while (result.folder.exists() or page.line._places) and time.monotonic() < end:
        time.sleep(0.1)
    assert not result.folder.exists() and not page.results._of_visitor and not page.line._places
    assert tab.complaints == []


def test_two_visitors(open_tab, page, held):
    first, second = open_tab(390, "dark"), open_tab(1280, "light")
    begin(first)
    first.get_by_text("0 of 12 frames").wait_for()
    begin(second)
    second.get_by_text("Waiting for 1 other: your turn comes by itself.").wait_for()
    held.release(100)
    for tab in (first, second):
        tab.get_by_text(re.compile("12 frames, ")).wait_for()
        tab.locator("#masks").wait_for()
    assert len(page.results._of_visitor) == 2


def test_without_a_mouse(open_tab, page):
    """Everything that answers can be reached with the keyboard, has a name, and keeps the focus."""
    tab = open_tab(1280, "light")
    begin(tab)
    tab.locator("#masks").wait_for()
    tab.get_by_role("button", name="The one in the middle").focus()
    tab.keyboard.press("Enter")
    tab.get_by_text(f"Pixel {WIDTH // 2}, {HEIGHT // 2}").wait_for()
    tab.get_by_role("button", name="right", exact=True).focus()
    for step in (1, 2):
        tab.keyboard.press("Enter")
        tab.get_by_text(f"Pixel {WIDTH // 2 + step * (WIDTH // 50)}, {HEIGHT // 2}").wait_for()
        tab.wait_for_function("document.activeElement.getAttribute('aria-label') === 'right'")
    tab.locator(".vss-class[data-choice]").first.focus()
    for pressed in ("true", "false"):
        tab.keyboard.press("Enter")
        tab.locator(f'.vss-class[data-choice][aria-pressed="{pressed}"]:focus').wait_for()
    names = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        names.add(
            tab.evaluate(
                "(e => e.getAttribute('aria-label') || e.innerText || e.labels?.[0]?.innerText || e.tagName)"
                "(document.activeElement)"
            ).strip()
        )
    expected = ["Label the video", "Masks (zip)", "Make the overlay video", "left", "up", "down", "right"]
    assert set(expected) <= names
    assert any("Opacity" in name for name in names) and any("Frame" in name for name in names)
    assert {"INPUT", "VIDEO"}.isdisjoint(names)  # Gradio leaves the frame of a picture without a name
    drawing = tab.locator("#flicker svg[role=img]")
    assert drawing.get_attribute("aria-label") == "changed pixels (%) by frame"
    dashes = [
        tab.locator(f"#flicker polyline.vss-line{model}").evaluate("e => getComputedStyle(e).strokeDasharray")
        for model in (0, 1)
    ]
    assert dashes[0] == "none" != dashes[1]
    said = tab.locator("#flicker").inner_text()
    assert re.search(r"st-ppm: [\d.]+ % on average, at most [\d.]+ % \(frame \d+\)", said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts(open_tab, scheme):
    """The contrast that WCAG asks for (4.5) between the texts of this package's HTML and what is behind them."""
    tab = open_tab(1280, scheme)
    begin(tab)
    tab.locator("#masks").wait_for()
    tab.locator(".vss-picture img").first.click()
    tab.locator(".vss-card").first.wait_for()
    colours = tab.evaluate(
        """() => {
        const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
        const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
        return [...document.querySelectorAll('[class^=vss-] , .vss-title p')].filter(e => e.innerText).map(e => {
            let opacity = 1, back = null;
            for (let at = e; at; at = at.parentElement) {
                const style = getComputedStyle(at), fill = rgba(style.backgroundColor);
                if (back === null) opacity *= Number(style.opacity);
                if (back === null && fill[3] === 1) back = fill.slice(0, 3);
            }
            back = back ?? [255, 255, 255];
            const text = rgba(getComputedStyle(e).color);
            text[3] *= opacity;
            return [e.className, over(text, back), back];
        });
    }"""
    )

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    assert len(colours) > 20
    for name, text, back in colours:
        light, dark = sorted([luminance(text), luminance(back)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, text, back)


def test_stopping(open_tab, page, monkeypatch):
    segmenter = page.models.segmenters[0]
    quick = segmenter.score_maps

    def slow(frames):
        time.sleep(0.7)
        return quick(frames)

    monkeypatch.setattr(segmenter, "score_maps", slow)
    tab = open_tab(1280, "light")
    tab.get_by_role("button", name="Label the video").click()
    tab.get_by_text(re.compile(r"[2-9] of 12 frames · [\d.]+ frames/s · \d+ s left")).wait_for()
    tab.get_by_role("button", name="Stop here").click()
    tab.get_by_text(re.compile(r"Stopped after \d+ frames of 12")).wait_for()
    tab.locator("#masks").wait_for()
    done = int(re.search(r"after (\d+)", tab.locator(".vss-status").inner_text())[1])
    (result,) = page.results._of_visitor.values()
    assert 2 <= done < 12 and len(result.frames) == done
    tab.locator(".vss-picture img").first.click()
    tab.locator(".vss-card").first.wait_for()  # what is done can be looked at


def test_a_file_that_is_no_video(browser, page, tmp_path):
    (tmp_path / "diary.mp4").write_text("Dear diary " * 100)
    tab = browser.new_page(viewport={"width": 390, "height": 850})
    tab.goto(page.address, wait_until="domcontentloaded")
    button = tab.get_by_role("button", name="Label the video")
    button.click()
    tab.get_by_text("Give a video or a picture first.").wait_for()
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "diary.mp4")
    tab.get_by_role("button", name="Clear").wait_for()
    button.click()
    tab.get_by_text("diary.mp4 is not a video that can be read").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()
