# make demo   sets up a virtual environment, then tunes, verifies and times a real encoder
# make test   sets up the same with the test tools, then runs tests, ruff and mypy
# Both start from a checkout and a Python of at least 3.11; nothing else need be installed.

VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
BUDGET := 60s
SHAPE := input_ids=1,128
# Tests import torch, the version of constraints.txt. Its builds without CUDA are ten times smaller:
# `make test TORCH_INDEX=URL` takes them from an index that has them.
TORCH_INDEX :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The first Python that runs and is new enough.
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-quick lint clean

demo: $(VENV)/installed
	rm -rf $(DEMO)/tuned
	$(BIN)/autosched example encoder -o $(DEMO)/encoder.onnx --force
	$(BIN)/autosched tune $(DEMO)/encoder.onnx -o $(DEMO)/tuned --shape $(SHAPE) \
		--budget $(BUDGET) --store $(DEMO)/records.sqlite
	$(BIN)/autosched verify $(DEMO)/encoder.onnx --kernels $(DEMO)/tuned
	$(BIN)/autosched bench $(DEMO)/encoder.onnx --kernels $(DEMO)/tuned --against onnxruntime --rounds 4

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

test-quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy autosched ir search costmodel codegen datasets tools

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "autosched needs Python 3.11 or newer on the PATH" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --no-deps torch==2.13.0
	$(PIP) -e .[dev]
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
