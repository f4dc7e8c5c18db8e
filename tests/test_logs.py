"""Log lines as programs read them: one object each, that says what it is about."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lplgrad_backend.logs import TALKATIVE, About, JsonFormatter, about, current, note

PROGRAM = """
import logging, threading, warnings
from lplgrad_backend.logs import About, about, start_logging
from lplgrad_backend.settings import read_settings
start_logging(read_settings({"LOG_FORMAT": "%s", "LOG_LEVEL": "DEBUG"}, None), About(project=3, job="j"))
log = logging.getLogger("lplgrad_backend.x")
log.info("one\\ntwo %%d", 2)
with about(version="v7"):
    log.warning("inside")
    threading.Thread(target=log.info, args=("elsewhere",)).start()
logging.getLogger("urllib3.connectionpool").debug("GET /a?signature=secret")
logging.getLogger("PIL.PngImagePlugin").debug("STREAM")
warnings.warn("careful")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
"""


def formatted(message: str, everywhere: About | None = None) -> dict[str, object]:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "%s", (message,), None)
    line = JsonFormatter(everywhere).format(record)
    assert "\n" not in line
    found: dict[str, object] = json.loads(line)
    return found


@given(st.text())
def test_any_message_is_one_line(message: str) -> None:
    assert formatted(message)["message"] == message


@pytest.fixture(autouse=True)
def about_nothing() -> None:
    """A request that an earlier test served in this thread said what lines are about."""
    note(project=None, job=None, version=None)


def test_what_a_line_is_about_ends_with_its_block() -> None:
    with about(project=3, job="a"):
        note(version="v1")
        with about(version="v2"):
            assert current() == About(3, "a", "v2")
        assert current() == About(3, "a", "v1")
        line = formatted("x")
        assert (line["project"], line["job"], line["version"]) == (3, "a", "v1")
    assert current() == About()


def test_a_thread_that_says_nothing_speaks_of_what_its_process_is_about() -> None:
    found: list[dict[str, object]] = []
    with about(project=9):
        thread = threading.Thread(target=lambda: found.append(formatted("x", About(3, "j"))))
        thread.start()
        thread.join()
    assert (found[0]["project"], found[0]["job"]) == (3, "j")


def said(form: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM % form], capture_output=True, text=True, check=True, timeout=60
    ).stderr


def test_a_process_says_all_in_json() -> None:
    lines = [json.loads(line) for line in said("json").splitlines()]
    assert [line["message"] for line in lines[:3]] == ["one\ntwo 2", "inside", "elsewhere"]
    assert [line["version"] for line in lines[:3]] == [None, "v7", None]
    assert {(line["project"], line["job"]) for line in lines} == {(3, "j")}
    assert "careful" in lines[3]["message"]
    assert "ZeroDivisionError" in lines[4]["error"]


def test_text_is_for_people() -> None:
    text = said("text")
    assert "INFO lplgrad_backend.x: one" in text
    assert "{" not in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_other_libraries_write_no_addresses(form: str) -> None:
    assert "secret" not in said(form)
    assert "STREAM" not in said(form)
    assert TALKATIVE
