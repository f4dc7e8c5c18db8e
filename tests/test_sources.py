"""Where annotations and images come from, as the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_label_studio import FakeLabelStudio
from PIL import Image

from lplgrad_backend.errors import ImageError, ImageForbidden
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sources import open_images, open_label_studio

ADDRESS, TOKEN = {"LABEL_STUDIO_URL": "http://127.0.0.1:8080"}, {"LABEL_STUDIO_API_KEY": "0" * 40}


def settings(folder: Path, **environ: str) -> Settings:
    return read_settings({"MODEL_DIR": str(folder), **environ}, None)


@pytest.mark.parametrize("known", [{}, ADDRESS, TOKEN])
def test_without_address_or_token_there_is_no_label_studio(tmp_path: Path, known: dict[str, str]) -> None:
    assert open_label_studio(settings(tmp_path, **known)) is None


def test_the_client_asks_the_address_of_the_settings_with_their_token(tmp_path: Path) -> None:
    fake = FakeLabelStudio()
    fake.add_project("Pets", "<View/>")
    with fake.serving() as url:
        known = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": fake.legacy_token()}
        client = open_label_studio(settings(tmp_path, **known))
        assert client is not None
        assert client.project(1)["title"] == "Pets"


def test_images_are_kept_below_the_model_folder(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    fake = FakeLabelStudio()
    fake.uploads["/data/upload/1/a.png"] = image.read_bytes()
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session())
    [found] = open_images(settings(tmp_path / "models"), client).load_many([(1, "/data/upload/1/a.png")], 8)
    assert not isinstance(found, ImageError)
    assert found.shape == (8, 8, 3)
    assert any(path.is_file() for path in (tmp_path / "models/images").rglob("*"))


@pytest.mark.parametrize("allowed", [False, True])
def test_private_addresses_are_asked_only_where_the_settings_allow_it(tmp_path: Path, allowed: bool) -> None:
    images = open_images(settings(tmp_path, LPLGRAD_ALLOW_PRIVATE_IMAGES=str(allowed).lower()), None)
    [found] = images.load_many([(1, "http://127.0.0.1:9/a.png")], 8)
    assert isinstance(found, ImageForbidden) is not allowed
