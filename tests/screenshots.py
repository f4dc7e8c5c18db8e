"""The pictures of the README, taken anew: the ordered queue in Label Studio's Data Manager, and the status page.

    make screenshots

A real Label Studio with 300 digits, four rounds labelled through its task stream, and Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import LABEL_CONFIG, write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import wait_for
from lplgrad_backend.demo.server import Account, LabelStudioServer
from lplgrad_backend.labeling import parse_label_config
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.status import StatusFolder

ROOT = Path(__file__).parent.parent
SIZE = (1280, 800)
STATUS_HEIGHT = 1470  # down to the comparison with random
COLOURS = 96  # enough for flat pages, and a third of the bytes
ROUNDS, EACH = 4, 20


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = ROOT / ".label-studio/venv/bin/python"
        server = stack.enter_context(LabelStudioServer(python, folder / "label-studio"))
        settings = {
            "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.account.token,
            "MODEL_DIR": str(folder / "models"), "START_TRAINING_EACH_N_UPDATES": str(EACH),
        }  # fmt: skip
        backend = stack.enter_context(Backend(settings, folder / "backend.log"))
        person = stack.enter_context(Person(server.url, server.account.email, server.account.password))
        project, tab = labelled(person, LabelStudio(server.url, server.account.token), backend, folder)
        browser = stack.enter_context(chromium(folder))
        sign_in(browser, server.url, server.account)
        browser.get(f"{server.url}/projects/{project}/data?tab={tab}")
        shown = By.CSS_SELECTOR, "img[src*='digit-']"
        WebDriverWait(browser, 60).until(lambda page: len(page.find_elements(*shown)) > 5)
        keep(browser, "queue")
        make_tall(browser, STATUS_HEIGHT)
        browser.get(f"{backend.url}/projects/{project}")
        keep(browser, "status")


def labelled(person: Person, client: LabelStudio, backend: Backend, folder: Path) -> tuple[int, int]:
    """Project and Data Manager tab, after `ROUNDS` rounds of `EACH` labels."""
    digits = write_digits(folder / "digits", pool=300, held_out=0, side=32)
    project = person.create_project("Digits", LABEL_CONFIG)
    person.upload(project, [digit.file for digit in digits.pool])
    connect(client, project, backend.url)
    annotator = Annotator(person, project, parse_label_config(LABEL_CONFIG), digits.truth)
    statuses = StatusFolder(backend.models)
    for number in range(1, ROUNDS + 1):
        assert len(list(annotator.label(EACH))) == EACH

        def is_ordered(version: str = f"v{number}") -> bool:
            status = statuses.read(project)
            return status.published == version and not status.busy

        wait_for(is_ordered, f"v{number}", seconds=600.0)
    [tab] = [view["id"] for view in client.views(project) if view["data"]["title"] == "Most uncertain"]
    return project, tab


@contextmanager
def chromium(folder: Path) -> Iterator[Chrome]:
    found, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if found is None or driver is None:
        raise SystemExit("Chromium is not installed here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = found
    profile = f"--user-data-dir={folder / 'profile'}"
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={SIZE[0]},{SIZE[1]}", profile):
        options.add_argument(argument)
    with Chrome(options=options, service=Service(driver)) as browser:
        make_tall(browser, SIZE[1])
        yield browser


def make_tall(browser: Chrome, height: int) -> None:
    size = {"width": SIZE[0], "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def sign_in(browser: Chrome, url: str, account: Account) -> None:
    browser.get(f"{url}/user/login/")
    browser.find_element(By.NAME, "email").send_keys(account.email)
    browser.find_element(By.NAME, "password").send_keys(account.password)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    WebDriverWait(browser, 60).until(lambda page: "/user/login" not in page.current_url)


def keep(browser: Chrome, name: str) -> None:
    """What is to be seen now, as docs/NAME.png with few colours."""
    loaded = "return document.readyState === 'complete' && [...document.images].every((image) => image.complete)"
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(loaded))
    with Image.open(BytesIO(browser.get_screenshot_as_png())) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(ROOT / f"docs/{name}.png", optimize=True)


if __name__ == "__main__":
    main()
