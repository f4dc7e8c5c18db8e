"""What `make check` makes of pip-audit's report, and that what it accepts is still so."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from audit import ACCEPTED, NEVER_IMPORTED, verdict
from test_trust import NEVER_IMPORTED as WATCHED


def package(name: str, *ids: str) -> dict[str, Any]:
    vulns = [{"id": one, "aliases": [f"CVE-{one}"], "fix_versions": ["2"], "description": ""} for one in ids]
    return {"name": name, "version": "1", "vulns": vulns}


UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def test_a_finding_fails_and_says_what_to_do() -> None:
    status, said = verdict({"dependencies": [package("pillow", "P-1"), package("rich"), UNKNOWN]})
    assert status == 1
    assert "pillow 1: P-1, mended in 2" in said[0]
    assert "2 packages audited, 1 unknown" in said[-1]


@pytest.mark.parametrize("name", ["Flask", "Werkzeug", "Jinja2", "pip"])
def test_what_no_process_of_ours_imports_is_accepted(name: str) -> None:
    status, said = verdict({"dependencies": [package(name, "P-1", "P-2")]})
    assert status == 0
    assert "2 findings accepted" in said[0]


@pytest.mark.parametrize("report", [None, {"dependencies": []}, {"dependencies": [UNKNOWN]}])
def test_an_audit_of_nothing_is_said_to_be_none(report: dict[str, Any] | None) -> None:
    status, said = verdict(report)
    assert status == 0
    assert "NOTHING WAS AUDITED" in said[0]


def test_what_is_accepted_is_installed_watched_and_explained() -> None:
    for name in NEVER_IMPORTED:
        importlib.metadata.version(name)
    assert set(NEVER_IMPORTED) == set(WATCHED)
    assert all(len(reason) > 20 for reason in ACCEPTED.values())
