"""What Label Studio accepts, and how it refuses. Pure."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

NETWORK_REFUSAL = "URL resolves to a reserved network address (block: 127.0.0.0/8)"


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, detail: str, **errors: object) -> None:
        super().__init__(status, detail)
        self.status = status
        self.body = {"status_code": status, "version": "1.23.2", "detail": detail, "exc_info": None}
        if errors:
            self.body["validation_errors"] = errors


def row_of(table: Mapping[int, dict[str, Any]], number: int, name: str) -> dict[str, Any]:
    """A row of a table, or 404."""
    if number not in table:
        raise Refusal(404, f"No {name} matches the given query.")
    return table[number]


def rows_of(table: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A table's rows as they are now, whatever other threads add meanwhile."""
    return list(table.values())


def choices(label_config: str) -> dict[str, set[str]]:
    """Control -> the choices it offers (aliases instead of values)."""
    root = ElementTree.fromstring(label_config)
    return {
        control.attrib["name"]: {c.get("alias", c.attrib["value"]) for c in control.iter("Choice")}
        for control in root.iter("Choices")
    }


def is_importable(row: Mapping[str, Any], offered: Mapping[str, set[str]]) -> bool:
    """Whether the import endpoint keeps a prediction; the others are dropped without an error."""
    result, score = row.get("result"), row.get("score")
    if not isinstance(result, list) or (score is not None and not 0 <= score <= 1):
        return False
    return all(set(region["value"]["choices"]) <= offered.get(region["from_name"], set()) for region in result)


def is_valid_address(url: str) -> bool:
    """Django's URLValidator on the host: a dot, an IP number, or localhost."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or "." in host or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def http_error(status: int, url: str) -> str:
    """As `requests` words it and Label Studio passes it on."""
    words = {400: "Bad Request", 401: "Unauthorized", 422: "Unprocessable Entity"}.get(status, "Error")
    return f"{status} {'Client' if status < 500 else 'Server'} Error: {words} for url: {url}"


def shown_backend(row: Mapping[str, Any]) -> dict[str, Any]:
    """A backend as listed: whether there is a password, not which."""
    shown = {key: value for key, value in row.items() if key != "basic_auth_pass"}
    return shown | {"basic_auth_pass_is_set": bool(row["basic_auth_pass"])}
