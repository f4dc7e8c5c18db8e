"""`make check`: known vulnerabilities of what is installed, by pip-audit. Each finding that is accepted says why.

Where the package index tells nothing about vulnerabilities, as mirrors do not, or cannot be reached, nothing was audited;
that is said, and is no failure, since it says nothing about this project.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

SECONDS = 240
COMMAND = (sys.executable, "-m", "pip_audit", "--local", "--progress-spinner", "off", "--format", "json")
# label-studio-ml 1.0.9, the newest on the index, pins these. They are installed and imported by no process of ours, which
# tests/test_trust.py proves with a whole round: what is wrong with them cannot be reached.
NEVER_IMPORTED = ("flask", "werkzeug", "jinja2", "itsdangerous")
INSTALLERS = (
    "pip",
    "setuptools",
)  # of the virtual environment, as old as the Python that made it; they run while installing
# Findings in what is imported: id -> why it does not matter here.
ACCEPTED: Mapping[str, str] = {}
Row = dict[str, Any]


def findings(report: Row) -> Iterator[tuple[str, Row]]:
    """Package and finding, of all that are not accepted."""
    for package in report["dependencies"]:
        for found in package.get("vulns", []):
            known = {found["id"], *found.get("aliases", [])}
            if package["name"].lower() not in (*NEVER_IMPORTED, *INSTALLERS) and not known & ACCEPTED.keys():
                yield f"{package['name']} {package['version']}", found


def verdict(report: Row | None) -> tuple[int, list[str]]:
    """Exit status and sentences. None: the index could not be reached."""
    audited = [package for package in report["dependencies"] if "vulns" in package] if report else []
    if report is None or not audited:
        return 0, ["pip-audit: NOTHING WAS AUDITED. The package index here tells nothing about vulnerabilities."]
    accepted = sum(len(package["vulns"]) for package in audited) - len(list(findings(report)))
    said = [
        f"pip-audit: {package}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version yet'}. "
        "Raise the pin, or say in tests/audit.py why it does not matter here."
        for package, found in findings(report)
    ]
    skipped = len(report["dependencies"]) - len(audited)
    said.append(
        f"pip-audit: {len(audited)} packages audited, {skipped} unknown to the index, {accepted} findings accepted."
    )
    return int(len(said) > 1), said


def ask() -> Row | None:
    """What pip-audit says; None when it could not find out."""
    try:
        answer = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS)
        report: Row = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report


if __name__ == "__main__":
    status, sentences = verdict(ask())
    sys.stdout.write("\n".join(sentences) + "\n")
    sys.exit(status)
