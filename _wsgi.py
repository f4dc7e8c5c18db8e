"""The app for gunicorn (`gunicorn _wsgi:app`), and how label-studio-ml starts a backend (`python DIR/_wsgi.py`)."""

import os
import sys
from pathlib import Path

from lplgrad_backend.cli.template import start
from lplgrad_backend.serving import application_of_environment

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)  # where .env and the models are, wherever it was called from
    start(sys.argv[1:])
else:
    app = application_of_environment()
