"""Every error this package raises on purpose.

    LPLGradError                    base; str() is a sentence for a person
    ├── SettingsError               a setting has a value that cannot be used
    ├── LabelConfigError            the project's label config asks for something this backend cannot learn
    ├── RequestError                a request to this backend is malformed
    ├── LabelStudioError            Label Studio answered something else than was needed
    │   ├── LabelStudioUnreachable  no answer: refused, timed out, cut off
    │   ├── LabelStudioRefused      401 or 403: token or permission
    │   ├── LabelStudioNotFound     404: no such project, task, page
    │   └── LabelStudioTooLarge     more bytes than may be read
    ├── ImageError                  one image cannot be used
    │   ├── ImageForbidden          its address must not be read (scheme, host, path)
    │   ├── ImageUnavailable        it cannot be fetched now (may work later)
    │   └── ImageUnreadable         its bytes are not an image that we decode
    ├── StoreError                  something is wrong with a version on disk
    │   ├── VersionNotFound
    │   └── VersionDamaged
    ├── ProjectBusy                 another process is at the project
    ├── HoldLost                    another process may be at the project by now
    ├── NotLearnable                there is nothing to train on yet (labels, classes)
    ├── TrainingError               a training run ended without a model
    └── NonFiniteScore              a NaN or infinity appeared while scoring one image

Foreign exceptions are translated where they enter: `requests` in labelstudio/transport.py, sockets and TLS in
public_web.py, Pillow in image_decoding.py, lxml in labeling.py, the file system in store.py and image_cache.py.
"""

from __future__ import annotations

import re


class LPLGradError(Exception):
    """Base of all errors of this package. The message names the object, the value and what to do."""


class SettingsError(LPLGradError):
    """A setting cannot be used.

    Attributes:
        key: the environment variable.
        value: what it holds (never a secret).
        expected: what it should hold, in words.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} has the value {value!r}. Set it to {expected}.")
        self.key, self.value, self.expected = key, value, expected


class LabelConfigError(LPLGradError):
    """The label config cannot be learned from; the message tells a person what to change in it."""


class RequestError(LPLGradError):
    """A request body is malformed; the message names the field."""


class LabelStudioError(LPLGradError):
    """Label Studio answered something else than was needed.

    Attributes:
        request: method and path, without host, query secrets or token.
        status: HTTP status, or None when there was no answer.
    """

    def __init__(self, request: str, reason: str, status: int | None = None) -> None:
        super().__init__(f"Label Studio, {request}: {reason}")
        self.request, self.reason, self.status = request, reason, status


class LabelStudioUnreachable(LabelStudioError):
    """No answer: refused, timed out, or the connection was cut off."""


class LabelStudioRefused(LabelStudioError):
    """401 or 403."""


class LabelStudioNotFound(LabelStudioError):
    """404."""


class LabelStudioTooLarge(LabelStudioError):
    """An answer has more bytes than may be read; another try changes nothing."""


class ImageError(LPLGradError):
    """One image cannot be used.

    Attributes:
        uri: the address as it stands in the task's data, shortened; of one with a host, without user and query, in
            which a password or a signature may stand.
    """

    def __init__(self, uri: str, reason: str) -> None:
        shown = re.sub(r"^([^/?#]*)//(?:[^/?#]*@)?([^?#]*).*", r"\1//\2", uri, flags=re.DOTALL)
        self.uri = shown if len(shown) <= 200 else shown[:197] + "..."
        self.reason = reason
        super().__init__(f"Image {self.uri}: {reason}")


class ImageForbidden(ImageError):
    """The address must not be read."""


class ImageUnavailable(ImageError):
    """The image cannot be fetched now; another try may work."""


class ImageUnreadable(ImageError):
    """The bytes are not an image that is decoded here."""


class StoreError(LPLGradError):
    """Something is wrong with the versions on disk."""


class VersionNotFound(StoreError):
    """No such version."""


class VersionDamaged(StoreError):
    """A version's files do not match its manifest."""


class ProjectBusy(LPLGradError):
    """Another process trains or publishes the project."""


class HoldLost(LPLGradError):
    """The project is no longer this process's alone: what was begun must not be published."""


class NotLearnable(LPLGradError):
    """There is nothing to train on yet; the message says what is missing."""


class TrainingError(LPLGradError):
    """A training run ended without a model; the message carries its last words."""


class NonFiniteScore(LPLGradError):
    """A NaN or an infinity appeared while scoring.

    Attributes:
        indices: positions of the images in the batch that was given.
    """

    def __init__(self, indices: list[int], where: str) -> None:
        super().__init__(
            f"Non-finite values in {where} for image(s) {indices} of the batch: check the image and weights."
        )
        self.indices, self.where = indices, where


def may_pass(error: LPLGradError) -> bool:
    """Whether the next try may do better though nobody mends anything: a server or disk that is away, a child killed."""
    if isinstance(error, LabelStudioError):
        return error.status is None or error.status >= 500 or error.status == 429
    return isinstance(error, TrainingError | StoreError)
