"""The tree of errors is the one that is drawn, and messages tell no secrets."""

from __future__ import annotations

import inspect
import re

import pytest

from lplgrad_backend import errors
from lplgrad_backend.errors import ImageError, LabelStudioError, LPLGradError, NonFiniteScore, SettingsError


def drawn() -> dict[str, str]:
    """Class -> its parent, as the module's docstring draws them."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+)(?=\s{2,}|$)", line)
        if not match or not (match[1].strip() or match[2] == "LPLGradError"):
            continue
        depth = len(match[1])
        above = [entry for entry in above if entry[0] < depth]
        if above:
            found[match[2]] = above[-1][1]
        above.append((depth, match[2]))
    return found


def test_the_tree_is_as_drawn() -> None:
    classes = {
        name: one for name, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__
    }
    actual = {name: one.__bases__[0].__name__ for name, one in classes.items() if one is not LPLGradError}
    assert drawn() == actual
    assert all(one.__doc__ for one in classes.values())


def test_a_setting_is_named_with_its_value_and_what_to_set() -> None:
    assert str(SettingsError("LPLGRAD_SEED", -1, "0 or more")) == "LPLGRAD_SEED has the value -1. Set it to 0 or more."


def test_label_studio_is_named_with_the_request() -> None:
    error = LabelStudioError("GET /api/projects/1", "it is gone", 500)
    assert str(error) == "Label Studio, GET /api/projects/1: it is gone"
    assert error.status == 500


def test_images_are_named_by_position() -> None:
    error = NonFiniteScore([3, 5], "the logits")
    assert (error.indices, error.where) == ([3, 5], "the logits")
    assert "[3, 5]" in str(error) and "the logits" in str(error)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host.example/a.png?signature=secret#secret", "https://host.example/a.png"),
        ("//secret@host.example/a.png?secret", "//host.example/a.png"),
        ("s3://bucket/a b.png", "s3://bucket/a b.png"),
        ("/data/upload/1/a.png", "/data/upload/1/a.png"),
        ("/data/local-files/?d=folder/a.png", "/data/local-files/?d=folder/a.png"),
        ("https://a@b@host/secretless\nnew line?secret", "https://host/secretless\nnew line"),
    ],
)
def test_an_image_is_named_without_what_may_be_a_secret(uri: str, shown: str) -> None:
    assert ImageError(uri, "it is broken.").uri == shown
    assert "secret@" not in str(ImageError(uri, "it is broken."))


def test_a_long_address_is_shortened() -> None:
    assert len(ImageError("https://host/" + "a" * 5000, "it is broken.").uri) == 200
