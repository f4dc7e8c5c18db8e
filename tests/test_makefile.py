"""The commands that people type first."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), *arguments]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` sets some
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=60)


def test_help_is_the_default_and_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    listed = re.findall(r"^  make (\S+)", make().stdout, re.MULTILINE)
    assert listed == phony.group(1).split()


def test_a_python_that_is_too_old_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").touch()
    answer = make("run", "PYTHON=false", folder=tmp_path)
    assert answer.returncode != 0
    assert "Install Python 3.11 or newer" in answer.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_demo_passes_its_variable_on() -> None:
    assert "demo --auto 150" in make("--dry-run", "demo", "AUTO=150").stdout
