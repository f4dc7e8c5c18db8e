"""`python _wsgi.py` and `label-studio-ml start`: the options of label-studio-ml's template."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from lplgrad_backend.cli.options import EVERYWHERE, errors_as_sentences
from lplgrad_backend.errors import SettingsError
from lplgrad_backend.serving import serve as serve_app
from lplgrad_backend.settings import SECRETS, Settings, read_settings


def start(arguments: Sequence[str]) -> None:
    """Run the backend as label-studio-ml 1.0.9 starts one: `python _wsgi.py` with the options of its template
    (label_studio_ml/default_configs/_wsgi.py.tmpl)."""
    options = argparse.ArgumentParser(prog="_wsgi.py", description="LPLgrad active learning for Label Studio.")
    options.add_argument("-p", "--port", type=int, default=9090, help="port to listen on")
    options.add_argument("--host", default=EVERYWHERE, help="address to listen on")
    options.add_argument("--with", "--kwargs", dest="settings", metavar="NAME=VALUE", nargs="+", action="extend",
                         default=[], help="settings, by the names in the README's table")  # fmt: skip
    options.add_argument("-d", "--debug", action="store_true", help="the same as --log-level DEBUG")
    options.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="least level logged")
    options.add_argument("--model-dir", help="folder of versions, images and the queue")
    options.add_argument("--check", action="store_true", help="changes nothing: settings are checked in any case")
    given = options.parse_args(arguments)
    named = {"MODEL_DIR": given.model_dir, "LOG_LEVEL": "DEBUG" if given.debug else given.log_level}
    with errors_as_sentences():
        environ = {**os.environ, **{name: value for name, value in named.items() if value}, **_pairs(given.settings)}
        serve_app(read_settings(environ), given.host, given.port)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    known = {str(field.alias) for field in Settings.model_fields.values()}
    pairs = dict(text.partition("=")[::2] for text in texts)
    for name in pairs.keys() & SECRETS:
        raise SettingsError(name, "***", "nothing on the command line, which everybody on this machine can read, but in the "
                            "environment or .env")  # fmt: skip
    for name in pairs.keys() - known:
        raise SettingsError("--with", name, "NAME=VALUE with the name of a setting, as in the README's table")
    return pairs
