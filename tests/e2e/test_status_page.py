"""The status page in a real browser: no complaint in its console, keys alone, news without a reload, phone and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stage import EVIL, PROJECT, status, training, write_project
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.status import StatusFolder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCREENSHOTS = Path(__file__).parent.parent.parent / "screenshots"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-prefers-reduced-motion",
)  # fmt: skip
CALM = {"last_error": None, "last_error_at": None, "title": "Garden birds"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard") / "models"
    folder.mkdir()
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Backend]:
    settings = {"MODEL_DIR": str(folder), "LPLGRAD_WORKER": "external", "LABEL_STUDIO_PUBLIC_URL": "http://127.0.0.1:1"}
    with Backend(settings, folder.parent / "backend.log") as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("Chromium is not installed here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service(driver)) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_complained_about(browser: Chrome, folder: Path) -> Iterator[None]:
    """What the content security policy refuses, and what a script or an image fails at, stands in the console."""
    look_like(browser)
    StatusFolder(folder).write(status())
    yield
    assert browser.get_log("browser") == []


def look_like(browser: Chrome, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def open_project(browser: Chrome, backend: Backend) -> None:
    browser.get(f"{backend.url}/projects/{PROJECT}")


def text_of(browser: Chrome, part: str) -> str:
    return browser.find_element(By.ID, part).text


def picture(browser: Chrome, name: str) -> None:
    """The whole page as a PNG file."""
    SCREENSHOTS.mkdir(exist_ok=True)
    browser.execute_script("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    loaded = "return [...document.images].every((image) => image.complete)"
    WebDriverWait(browser, 20).until(lambda seen: seen.execute_script(loaded))
    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = browser.execute_script("return window.innerWidth")
    dark = browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    look_like(browser, width, height, dark=dark)
    browser.get_screenshot_as_file(str(SCREENSHOTS / f"{name}.png"))


def test_labels_titles_and_errors_are_text(browser: Chrome, backend: Backend) -> None:
    for path in ("/", f"/projects/{PROJECT}"):
        browser.get(f"{backend.url}{path}")
        assert EVIL in browser.find_element(By.TAG_NAME, "main").text
        assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x], [onerror]")


def test_every_image_is_shown(browser: Chrome, backend: Backend) -> None:
    open_project(browser, backend)
    picture(browser, "project with an error")
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert widths == [32] * 14


def test_news_come_without_a_reload(browser: Chrome, backend: Backend, folder: Path) -> None:
    open_project(browser, backend)
    browser.execute_script("window.notReloaded = true")
    with StatusFolder(folder).lock(PROJECT):
        for epoch in (5, 12):
            StatusFolder(folder).write(training(epoch).model_copy(update=CALM))
            WebDriverWait(browser, 20).until(lambda seen, epoch=epoch: f"epoch {epoch} of 20" in text_of(seen, "now"))
        assert "training" in text_of(browser, "said")
        picture(browser, "project while training")
    StatusFolder(folder).write(status())
    WebDriverWait(browser, 20).until(lambda seen: not seen.find_elements(By.TAG_NAME, "progress"))
    assert browser.execute_script("return window.notReloaded") is True


def test_keys_alone_reach_everything_and_stay_where_they_were(browser: Chrome, backend: Backend, folder: Path) -> None:
    open_project(browser, backend)
    reached: list[str | None] = []
    for _ in range(24):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            continue  # behind the last element comes the browser's own bar, which is not ours to outline
        reached.append(focused.get_attribute("role") or focused.text)
        outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached
    tasks = [f"Task {number}" for number in [*range(1, 13), 50, 51]]
    assert [name for name in reached if name and name.startswith("Task")] == tasks
    for name in ("Skip to content", "All projects", "Open in Label Studio", "As a table", "region"):
        assert name in reached
    summary = browser.find_element(By.CSS_SELECTOR, "#unreadable summary")
    browser.execute_script("arguments[0].focus()", summary)
    summary.send_keys(Keys.ENTER)
    StatusFolder(folder).write(status().model_copy(update={"last_error": "Something else"}))
    WebDriverWait(browser, 20).until(lambda seen: "Something else" in text_of(seen, "now"))
    kept = "return [document.activeElement.closest('details')?.id, document.getElementById('unreadable').open]"
    assert browser.execute_script(kept) == ["unreadable", True]


def test_what_a_screen_reader_needs_has_a_name(browser: Chrome, backend: Backend) -> None:
    open_project(browser, backend)
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    plots = browser.find_elements(By.CSS_SELECTOR, "svg[role=img]")
    assert len(plots) == 2
    assert all("." in (plot.get_attribute("aria-label") or "") for plot in plots)
    assert all(image.get_attribute("alt") for image in browser.find_elements(By.TAG_NAME, "img"))
    assert len(browser.find_elements(By.TAG_NAME, "h1")) == 1
    assert {section.accessible_name for section in browser.find_elements(By.TAG_NAME, "section")} == {
        "Labels", "Agreement with people", "Predicted and chosen", "Scores of the queue", "Most uncertain images",
        "Suspected mistakes", "How this version was made", "Active against random",
    }  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("path", ["/", f"/projects/{PROJECT}"])
def test_it_fits_a_phone_and_the_dark(
    browser: Chrome, backend: Backend, folder: Path, path: str, width: int, dark: bool
) -> None:
    StatusFolder(folder).write(status().model_copy(update=CALM))
    look_like(browser, width, dark=dark)
    browser.get(f"{backend.url}{path}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    ink, paper = (brightness(colour) for colour in browser.execute_script(colours))
    assert (ink > paper) is dark
    picture(browser, f"{'project' if path != '/' else 'overview'} {width} {'dark' if dark else 'light'}")


def brightness(colour: str) -> float:
    """Of "rgb(1, 2, 3)", 0 to 255."""
    return sum(float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3
