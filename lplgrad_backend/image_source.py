"""From the address in a task's data to bytes: each kind of address by its own way, and no other kind at all.

    /data/upload/…, /data/local-files/…     from Label Studio, with its token
    http(s)://Label Studio's own address    the same
    http(s)://…                             from there, without any token (public_web.py)
    s3://, gs://, azure-blob://             through the task's resolver in Label Studio, which answers with the bytes or
                                            redirects to a signed address; that is read without any token

The table is that of the project's page on Label Studio; the resolver is io_storages/proxy_api.py there.
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from lplgrad_backend.errors import (
    ImageForbidden,
    ImageUnavailable,
    ImageUnreadable,
    LabelStudioError,
    LabelStudioTooLarge,
    LabelStudioUnreachable,
)
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.public_addresses import DEFAULT_PORTS
from lplgrad_backend.public_web import PublicWeb

CLOUDS = ("s3", "gs", "azure-blob")
# What may be read with the token: its other pages are no images, and to read some of them does something.
WITH_TOKEN = re.compile(r"/(data/(upload|local-files)|storage-data/uploaded|static)/")
SILENT_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """Where an image is: a path below Label Studio's address, or a URL.

    Attributes:
        key: tells this image from all others, of every Label Studio and project; not for logs.
    """

    key: str
    path: str = ""
    url: str = ""


class ImageSource:
    """Reads images' bytes. Safe for several threads.

    Args:
        label_studio: its client; None reads only http(s) addresses.
        web: reads what is not Label Studio's.
        limit_bytes: of one image.
    """

    def __init__(self, label_studio: LabelStudio | None, web: PublicWeb, limit_bytes: int) -> None:
        self._label_studio, self._web, self._limit_bytes = label_studio, web, limit_bytes
        self._silent_until = 0.0

    def place(self, uri: str, task_id: int | None) -> Place:
        """Where the image is; nothing is read.

        Raises:
            ImageForbidden: no address that is read.
            ImageUnavailable: Label Studio is needed and not known, or the task's number is.
        """
        try:
            parts = urlsplit(uri.strip())
        except ValueError as error:
            raise ImageForbidden(uri, "its address is malformed.") from error
        if parts.scheme in CLOUDS:
            return self._of_cloud(uri, task_id)
        if parts.scheme in DEFAULT_PORTS:
            path = self._own_path(parts)
            return Place(uri.strip(), url=uri.strip()) if path is None else self._of_label_studio(uri, path)
        if parts.scheme or not uri.strip().startswith("/"):
            raise ImageForbidden(uri, _why_not(parts.scheme))
        return self._of_label_studio(uri, self._below_base(uri.strip()))

    def read(self, place: Place, uri: str) -> bytes:
        """The image's bytes, of any kind.

        Raises:
            ImageForbidden, ImageUnavailable, ImageUnreadable: the last when there are too many.
        """
        if place.url:
            return self._web.read(place.url, self._limit_bytes, uri)
        if time.monotonic() < self._silent_until:
            raise ImageUnavailable(uri, "Label Studio did not answer a moment ago.")
        try:
            return self._known(uri).download(
                place.path, self._limit_bytes, elsewhere=lambda url, limit: self._web.read(url, limit, uri)
            )
        except LabelStudioTooLarge as error:
            raise ImageUnreadable(uri, f"{error.reason}.") from error
        except LabelStudioError as error:
            if isinstance(error, LabelStudioUnreachable):  # four attempts were made: not again for each image
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise ImageUnavailable(uri, f"Label Studio does not give it: {error.reason}.") from error

    def _known(self, uri: str) -> LabelStudio:
        if self._label_studio is None:
            reason = "it is in Label Studio. Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
            raise ImageUnavailable(uri, reason)
        return self._label_studio

    def _of_label_studio(self, uri: str, path: str) -> Place:
        path = path.partition("#")[0]
        if not WITH_TOKEN.match(path):
            reason = "no path of Label Studio's uploads or local files. Files of this machine are not read."
            raise ImageForbidden(uri, reason)
        if _climbs(path):
            raise ImageForbidden(uri, "a path that leads upwards is not read.")
        return Place(f"{self._known(uri).url} {path}", path=path)

    def _of_cloud(self, uri: str, task_id: int | None) -> Place:
        """The task belongs to the key: the same name may mean another bucket in another project's storage."""
        if not task_id:
            raise ImageUnavailable(uri, "only Label Studio knows where it is, and only for a task that it has stored.")
        encoded = base64.urlsafe_b64encode(uri.strip().encode(errors="surrogatepass")).decode()
        path = f"/tasks/{task_id}/resolve/?fileuri={encoded}"
        return Place(f"{self._known(uri).url} {path}", path=path)

    def _own_path(self, parts: SplitResult) -> str | None:
        """The path below Label Studio's address of a URL that is there, else None."""
        if self._label_studio is None:
            return None
        own = urlsplit(self._label_studio.url)
        below = parts.path.startswith(own.path + "/")
        if not below or _origin(parts) != _origin(own):
            return None
        return parts.path[len(own.path) :] + (f"?{parts.query}" if parts.query else "")

    def _below_base(self, path: str) -> str:
        """Label Studio under a path writes uploads with that path before them (data_import/models.py, url)."""
        base = urlsplit(self._label_studio.url).path if self._label_studio else ""
        return path.removeprefix(base) if path.startswith(base + "/") else path


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    try:
        return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:  # a port that is none
        return parts.scheme, None, None


def _climbs(path: str) -> bool:
    """Whether any reading of a path has steps upwards or control characters in it."""
    for _ in range(3):
        if re.search(r"[\x00-\x1f\x7f]", path) or {".", ".."} & {*re.split(r"[/\\?=&;]", path)}:
            return True
        path = unquote(path)
    return False


def _why_not(scheme: str) -> str:
    if scheme == "data":
        return "images inside the task's data are not read. Upload the image, or give its address."
    if scheme:
        return (
            f"addresses that begin with {scheme[:20]!r} are not read. Give http(s), s3, gs or azure-blob, or upload it."
        )
    return "it is no address. Files of this machine are not read; upload the image, or give its http(s) address."
