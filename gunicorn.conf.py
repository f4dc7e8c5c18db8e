"""What `gunicorn _wsgi:app` does unless told otherwise: threads, so that /health is answered during a prediction."""

import contextlib
import os

from dotenv import dotenv_values

worker_class = "gthread"
threads = 8
graceful_timeout = 20
control_socket_disable = True
proc_name = "lplgrad"
settings = dict(os.environ)
with contextlib.suppress(OSError, UnicodeDecodeError):  # the app says in a sentence what is wrong with it
    settings = {**dotenv_values(".env"), **settings}
if settings.get("LOG_FORMAT") == "json":
    logger_class = "lplgrad_backend.serving.JsonLog"
