"""What `gunicorn _wsgi:app` does unless told otherwise: threads, so that /health is answered during a prediction."""

import os

worker_class = "gthread"
threads = 8
graceful_timeout = 20
control_socket_disable = True
proc_name = "lplgrad"
if os.environ.get("LOG_FORMAT") == "json":
    logger_class = "lplgrad_backend.serving.JsonLog"
