"""A real Label Studio as a child process, on SQLite, on a free port of loopback."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from lplgrad_backend.demo.process import ChildProcess, LocalServer, free_port, is_free

SECONDS_TO_START = 240.0  # the first start migrates an empty database: 31-35 s on two free cores

# What a Label Studio of one's own needs: no calls home, and backends on local addresses allowed. With only the first
# of the last two settings it stores a local backend without a webhook (core/settings/base.py, webhooks/serializers.py).
ALONE = {"LATEST_VERSION_CHECK": "false", "COLLECT_ANALYTICS": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
LOCAL_BACKENDS = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}


@dataclass(frozen=True)
class Account:
    """The first user. `token` is a legacy token, 40 hexadecimal digits."""

    email: str
    password: str
    token: str


class LabelStudioServer(LocalServer):
    """Label Studio on one folder, which keeps its database, its uploads, its first account and its log.

    Args:
        python: interpreter of the virtual environment in which Label Studio is installed.
        folder: made if missing; a folder that was used before starts with its projects in 5 s instead of 35 s.
        port: where it listens if nobody else does; 0, and when it is taken, a free one.
        local_backends: whether backends on loopback and private addresses may be connected (Label Studio's default
            is no).

    Raises:
        DemoError: it did not answer within `SECONDS_TO_START`, or ended.
    """

    def __init__(self, python: Path, folder: Path, *, port: int = 0, local_backends: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.account = folder, _account(folder)
        port = port if port and is_free(port) else free_port()
        process = ChildProcess(
            python, "label_studio.server", _arguments(folder, port),
            environment=ALONE | (LOCAL_BACKENDS if local_backends else {}) | _credentials(self.account),
            log=folder / "label-studio.log",
        )  # fmt: skip
        super().__init__(f"http://127.0.0.1:{port}", process, SECONDS_TO_START)


def _account(folder: Path) -> Account:
    """The account kept in the folder, or a new one with a password and a token that nobody else knows."""
    file = folder / "account.json"
    if file.exists():
        return Account(**json.loads(file.read_text()))
    account = Account("demo@example.com", secrets.token_urlsafe(12), secrets.token_hex(20))
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(account)))
    return account


def _arguments(folder: Path, port: int) -> list[str]:
    return [
        "start", "--no-browser", "--data-dir", str(folder), "--internal-host", "127.0.0.1", "--port", str(port),
        "--enable-legacy-api-token",
    ]  # fmt: skip


def _credentials(account: Account) -> dict[str, str]:
    """As environment variables, since everybody on the machine can read a process's arguments."""
    named = {"USERNAME": account.email, "PASSWORD": account.password, "USER_TOKEN": account.token}
    return {f"LABEL_STUDIO_{name}": value for name, value in named.items()}
