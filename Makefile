# `make` or `make help` lists what can be done here. Needed beforehand: Python 3.11 or newer, and make.

PYTHON ?= python3
AUTO ?= 0
PORT ?= 9090
TESTS ?= tests

BIN := .venv/bin
INSTALL := install --quiet --disable-pip-version-check
LABEL_STUDIO_REQUIREMENTS := lplgrad_backend/demo/label-studio-requirements.txt

.PHONY: help run demo test check fuzz benchmark chaos screenshots docker-test clean
.DELETE_ON_ERROR:

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/runtime ## The backend on port 9090 (PORT=...), for the Label Studio that .env names
	$(BIN)/python -m lplgrad_backend serve --port $(PORT)

demo: .venv/runtime .label-studio/installed ## A real Label Studio with digits to label, connected; AUTO=150 labels 150 of them
	$(BIN)/python -m lplgrad_backend demo --auto $(AUTO) --port $(PORT)

test: .venv/development .label-studio/installed ## All tests, those against a real Label Studio included (TESTS=tests/test_x.py for some)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: .venv/development ## ruff, mypy, the architecture test, bandit and pip-audit
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml lplgrad_backend docker _wsgi.py gunicorn.conf.py
	$(BIN)/python tests/audit.py
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

fuzz: .venv/development ## 100,000 made-up images and label configs, and some thousand requests; takes half an hour
	FUZZ_EXAMPLES=150 $(BIN)/python -m pytest --quiet --timeout 1200 tests/test_openapi.py
	PYTHONPATH=. $(BIN)/python tests/fuzz.py

benchmark: .venv/development ## Every benchmark, one after the other; takes long, wants an otherwise idle machine
	@for file in benchmarks/*.py; do echo "== $$file"; PYTHONPATH=tests $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

chaos: .venv/development ## 200 kills at random moments of rounds, and whether anything was lost (CHAOS=--kills\ 20 for fewer)
	PYTHONPATH=tests $(BIN)/python -m benchmarks.chaos $(CHAOS)

screenshots: .venv/development .label-studio/installed ## The pictures of the README, taken anew; needs Chromium
	PYTHONPATH=. $(BIN)/python tests/screenshots.py

docker-test: .venv/development ## The containers of docker/ built, run, stopped and killed; takes half an hour (DOCKER_TEST=--help)
	PYTHONPATH=.:tests/e2e $(BIN)/python tests/docker_loop.py $(DOCKER_TEST)

clean: ## Removes the virtual environments, the demo's data and all caches; keeps lplgrad-data, where the models are
	rm -rf .venv .label-studio .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip $(INSTALL) -r requirements.txt
	@touch $@

.venv/development: requirements.txt requirements-dev.txt | .venv/bin/python
	$(BIN)/python -m pip $(INSTALL) -r requirements-dev.txt
	@touch $@ .venv/runtime

.label-studio/installed: $(LABEL_STUDIO_REQUIREMENTS) | .venv/bin/python
	@test -x .label-studio/venv/bin/python || $(BIN)/python -m venv .label-studio/venv
	.label-studio/venv/bin/python -m pip $(INSTALL) -r $(LABEL_STUDIO_REQUIREMENTS)
	@touch $@
