"""Inputs that once were not handled, and the smallest of each attack: all end in a result or in an error about the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz import CORPUS, decode, parse, picture, run, understand
from hypothesis import strategies as st


def kept(name: str) -> list[Path]:
    found = sorted((CORPUS / name).iterdir())
    assert found, f"the corpus of {name} is gone"
    return found


@pytest.mark.parametrize("file", kept("images"), ids=lambda file: file.name)
def test_images(file: Path) -> None:
    assert "refused" in decode(file.read_bytes())


@pytest.mark.parametrize("file", kept("label_configs"), ids=lambda file: file.name)
def test_label_configs(file: Path) -> None:
    assert parse(file.read_bytes().decode(errors="surrogatepass")) == "refused"


@pytest.mark.parametrize("file", kept("annotations"), ids=lambda file: file.name)
def test_annotations(file: Path) -> None:
    understand(json.loads(file.read_text()))


def test_what_is_not_handled_is_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(content: bytes) -> str:
        if len(content) % 2:
            raise ZeroDivisionError("on purpose")
        return "read"

    monkeypatch.setattr("fuzz.CORPUS", tmp_path)
    tally = run("images", st.integers(0, 2**64).map(picture), breaks, 40)
    assert sum(tally.ends.values()) + len(tally.unhandled) == 40
    assert tally.ends["read"] and tally.unhandled
    assert all("ZeroDivisionError: on purpose" in reason for reason in tally.unhandled)
    assert {len(file.read_bytes()) % 2 for file in (tmp_path / "images").iterdir()} == {1}
