"""Where annotations and images come from, opened from the settings."""

from __future__ import annotations

from lplgrad_backend.images import ImageLimits, Images
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.settings import Settings


def open_label_studio(settings: Settings) -> LabelStudio | None:
    """The client, or None when its address or token is not set."""
    if settings.label_studio_url is None or settings.label_studio_api_key is None:
        return None
    return LabelStudio(str(settings.label_studio_url), settings.label_studio_api_key.get_secret_value())


def open_images(settings: Settings, label_studio: LabelStudio | None) -> Images:
    """Image reader and cache below MODEL_DIR."""
    limits = ImageLimits(allow_private=settings.allow_private_images, cache_bytes=int(settings.cache_gigabytes * 2**30))
    return Images(settings.model_dir / "images", label_studio, limits)
