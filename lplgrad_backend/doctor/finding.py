"""What the doctor found at one hop, and how it is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a hop is."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"  # cannot be looked at until an earlier failure is mended


@dataclass(frozen=True)
class Finding:
    """One hop.

    Attributes:
        hop: its name; stable, for programs.
        outcome: see `Outcome`.
        says: what is there, or what is wrong and the command or click that mends it.
        project: number of the project, None for a hop that all share.
    """

    hop: str
    outcome: Outcome
    says: str
    project: int | None = None


def ok(hop: str, says: str, project: int | None = None) -> Finding:
    return Finding(hop, Outcome.OK, says, project)


def failed(hop: str, says: str, project: int | None = None) -> Finding:
    return Finding(hop, Outcome.FAILED, says, project)


def skipped(hop: str, says: str, project: int | None = None) -> Finding:
    return Finding(hop, Outcome.SKIPPED, says, project)


def count_failures(findings: Iterable[Finding]) -> int:
    """The doctor's exit status."""
    return min(sum(finding.outcome is Outcome.FAILED for finding in findings), 100)


def as_plain(findings: Iterable[Finding]) -> dict[str, Any]:
    """For `--json`: {"failures": n, "findings": [{"hop", "outcome", "says", "project"}, …]}."""
    listed = list(findings)
    return {"failures": count_failures(listed), "findings": [asdict(finding) for finding in listed]}
