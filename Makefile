# `make train` and `make test` each set up everything they need on a machine with Python 3.11.

PYTHON ?= python3.11
BIN := .venv/bin
# One process per core; the tests of a file share one process, and so what they train and compile.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: train test test-slow test-tpu-compile lint format bench clean

train: .venv/installed
	$(BIN)/python train.py --config=configs/tiny.py

test: .venv/installed
	$(BIN)/python -m pytest -q $(PARALLEL)

test-slow: .venv/installed
	$(BIN)/python -m pytest -q $(PARALLEL) -m slow

# By the compiler for TPUs, where `pip install -e '.[tpu]'` has installed it; no TPU is needed.
test-tpu-compile: .venv/installed
	$(BIN)/python -m pytest -q -rs -m tpu

lint: .venv/installed
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	$(BIN)/python -m benchmarks.train_step

clean:
	rm -rf .venv

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
