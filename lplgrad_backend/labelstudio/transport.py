"""Requests to Label Studio: who asks (both kinds of token), how long, how often, and what a refusal means in words.

The token goes to Label Studio's own scheme, host and port only, never along a redirect, and stands in no error, log
line or repr. The environment's proxies and certificates apply, except to a Label Studio on this machine.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from lplgrad_backend.errors import (
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRefused,
    LabelStudioTooLarge,
    LabelStudioUnreachable,
    SettingsError,
)

ACCESS_SECONDS = 240.0  # of the 300 that an access token lives (label-studio-facts 1)
PASSING = (429, 500, 502, 503, 504)
REPEATABLE = ("GET", "PATCH", "DELETE")
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever Retry-After asks for
REDIRECTS = 5
CHUNK = 2**14

Elsewhere = Callable[[str, int], bytes]


@dataclass(frozen=True)
class Request:
    """One request to Label Studio; `timeout` in seconds, for connecting and between two pieces of the answer."""

    method: str
    url: str
    timeout: float
    body: object = None
    parameters: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        """For messages: without host and query, in which an image's signature may stand."""
        return f"{self.method} {urlsplit(self.url).path[:200]}"


class Transport:
    """Sends requests with a user's token. Safe for several threads. For the arguments see `LabelStudio`."""

    def __init__(
        self,
        url: str,
        token: str,
        session: requests.Session | None,
        timeout: float,
        attempts: int,
        pause: Callable[[float], object],
    ) -> None:
        self.url = url.rstrip("/")
        self.attempts, self.pause = attempts, pause
        self._timeout = timeout
        self._session = session or requests.Session()
        self._session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        # A session cookie would turn token requests into browser requests, which need a CSRF token.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._credentials = Credentials(token, self._exchange)

    def json(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The JSON that a request is answered with; {} when the answer is empty."""
        request = Request(method, self._below(path), timeout or self._timeout, body, parameters)
        answer = self._answer(request)
        if answer.is_redirect:
            target = urlsplit(answer.headers["Location"])
            where = f"{target.scheme}://{target.netloc}" if target.netloc else "another page"
            reason = f"it redirects to {where}. Set LABEL_STUDIO_URL to the address that it redirects to"
            raise LabelStudioError(str(request), reason, answer.status_code)
        return _decoded(request, answer)

    def content(self, path: str, limit_bytes: int, elsewhere: Elsewhere | None) -> bytes:
        """The bytes of an address below Label Studio's; what it redirects to other hosts is left to `elsewhere`."""
        url = self._below(path)
        for _ in range(REDIRECTS):
            request = Request("GET", url, self._timeout)
            with self._answer(request, stream=True) as answer:
                if not answer.is_redirect:
                    return self._read(request, answer, limit_bytes)
                url = urljoin(url, answer.headers["Location"])
            if not _same_origin(url, self.url):
                return (elsewhere or self._without_token)(url, limit_bytes)
        raise LabelStudioError(f"GET {path[:200]}", f"more than {REDIRECTS} redirects")

    def _below(self, path: str) -> str:
        url = self.url + path
        if not path.startswith("/") or not _same_origin(url, self.url):
            raise LabelStudioError(f"GET {path.split('?')[0][:200]}", "not a path below Label Studio's address")
        return url

    def _without_token(self, url: str, limit_bytes: int) -> bytes:
        request = Request("GET", url, self._timeout)
        with self._send(request, None, stream=True, redirects=True) as answer:
            return self._read(request, checked(answer, request), limit_bytes)

    def _read(self, request: Request, answer: requests.Response, limit_bytes: int) -> bytes:
        content, until = bytearray(), time.monotonic() + self._timeout * self.attempts
        try:
            for chunk in answer.iter_content(CHUNK):
                content += chunk
                if len(content) > limit_bytes:
                    raise LabelStudioTooLarge(str(request), f"more than {limit_bytes} bytes")
                if time.monotonic() > until:
                    raise LabelStudioUnreachable(str(request), "the answer comes too slowly")
        except requests.RequestException as error:
            raise LabelStudioUnreachable(str(request), _cause(error)) from error
        return bytes(content)

    def _answer(self, request: Request, *, stream: bool = False) -> requests.Response:
        """The answer; a request that may be repeated is, while the cause may pass."""
        attempts = self.attempts if request.method in REPEATABLE else 1
        for attempt in range(attempts):
            last = attempt + 1 == attempts
            wait = waiting(attempt)
            try:
                answer = self._authorised(request, stream)
            except LabelStudioUnreachable:
                if last:
                    raise
            else:
                # a missing upload is answered with 500: asking again for each would cost seconds
                if last or answer.status_code not in PASSING or (stream and answer.status_code == 500):
                    return checked(answer, request)
                wait = max(wait, _retry_after(answer))
                answer.close()
            self.pause(wait)
        raise AssertionError("the last attempt returns or raises")

    def _authorised(self, request: Request, stream: bool) -> requests.Response:
        answer = self._send(request, self._credentials.header(), stream=stream)
        if answer.status_code == 401 and self._credentials.expire:
            answer.close()
            answer = self._send(request, self._credentials.header(renew=True), stream=stream)
        return answer

    def _send(
        self, request: Request, authorization: str | None, *, stream: bool = False, redirects: bool = False
    ) -> requests.Response:
        def authorise(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            """As an `auth` argument, since a header gives way to an entry of the host in ~/.netrc."""
            if authorization is not None:
                prepared.headers["Authorization"] = authorization
            return prepared

        try:
            return self._session.request(
                request.method, request.url, json=request.body, params=request.parameters, auth=authorise,
                timeout=request.timeout, stream=stream, allow_redirects=redirects,
            )  # fmt: skip
        except requests.RequestException as error:
            raise LabelStudioUnreachable(str(request), _cause(error)) from error

    def _exchange(self, refresh: str) -> str:
        """A new access token for a personal access token."""
        request = Request("POST", f"{self.url}/api/token/refresh/", self._timeout, {"refresh": refresh})
        answer = self._send(request, None)
        if answer.status_code in PASSING:
            raise LabelStudioUnreachable(str(request), f"status {answer.status_code}", answer.status_code)
        access = _decoded(request, checked(answer, request)).get("access")
        if not access:
            raise LabelStudioError(str(request), "no access token in the answer")
        return str(access)


class Credentials:
    """The Authorization header: a legacy token as it is, or access tokens got for a personal access token.

    Raises:
        SettingsError: what was given cannot be a token.
    """

    def __init__(self, token: str, exchange: Callable[[str], str]) -> None:
        token = token.strip()
        if not token or not all("!" <= character <= "~" for character in token):
            raise SettingsError("LABEL_STUDIO_API_KEY", "(not shown)", "a token, which is one word without spaces")
        self.expire = is_personal_access_token(token)
        self._token, self._exchange = token, exchange
        self._access, self._until = "", 0.0
        self._renewing = threading.Lock()

    def header(self, *, renew: bool = False) -> str:
        """`renew`: get a new access token even though the present one should still be good."""
        if not self.expire:
            return f"Token {self._token}"
        with self._renewing:
            if renew or not self._access or time.monotonic() > self._until:
                self._access, self._until = self._exchange(self._token), time.monotonic() + ACCESS_SECONDS
            return f"Bearer {self._access}"


def is_personal_access_token(token: str) -> bool:
    """Whether a token is a JWT refresh token (made under Account & Settings) instead of a legacy one."""
    parts = token.split(".")
    if len(parts) != 3:
        return False
    try:
        return isinstance(json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))), dict)
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine, which no proxy of the environment can reach for us."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def waiting(attempt: int) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, …"""
    return min(LONGEST_WAIT, 0.5 * float(2**attempt))


def checked(answer: requests.Response, request: Request) -> requests.Response:
    """The answer itself if it is no refusal.

    Raises:
        LabelStudioRefused, LabelStudioNotFound, LabelStudioError
    """
    if answer.ok:
        return answer
    said = _said(answer)
    answer.close()
    if answer.status_code == 401:
        raise LabelStudioRefused(str(request), f"the token is refused ({said}). {_token_hint(said)}", 401)
    kind = {403: LabelStudioRefused, 404: LabelStudioNotFound}.get(answer.status_code, LabelStudioError)
    raise kind(str(request), f"status {answer.status_code}, {said}", answer.status_code)


def _token_hint(said: str) -> str:
    if "legacy" in said:
        return (
            "Make a personal access token under Account & Settings > Personal Access Token and set "
            "LABEL_STUDIO_API_KEY to it, or allow legacy tokens under Organization > API Tokens Settings."
        )
    return "Set LABEL_STUDIO_API_KEY to a token of this Label Studio (Account & Settings)."


def _decoded(request: Request, answer: requests.Response) -> Any:
    if not answer.content:
        return {}
    try:
        return answer.json()
    except ValueError as error:
        reason = "the answer is not JSON. Is LABEL_STUDIO_URL the address of Label Studio?"
        raise LabelStudioError(str(request), reason, answer.status_code) from error


def _said(answer: requests.Response) -> str:
    """What a refusal says, shortened; a page of HTML says nothing."""
    try:
        body = answer.json()
    except (ValueError, requests.RequestException):
        return "no reason given"
    if not isinstance(body, dict):
        return str(body)[:500]
    return str(body.get("validation_errors") or body.get("detail") or body)[:500]


def _cause(error: requests.RequestException) -> str:
    """Why no answer came, in words; the exception's own text holds addresses and sometimes headers."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of the environment does not reach it; NO_PROXY names hosts that need none"
    return "cannot be reached, or the connection was cut off. Is LABEL_STUDIO_URL right, and Label Studio running?"


def _retry_after(answer: requests.Response) -> float:
    """Seconds that the answer asks to wait; 0 when it does not say, or gives a date."""
    asked = answer.headers.get("Retry-After", "")
    return min(LONGEST_WAIT, float(asked)) if asked.isdecimal() else 0.0


def _same_origin(one: str, other: str) -> bool:
    ours, theirs = urlsplit(one), urlsplit(other)
    return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)
