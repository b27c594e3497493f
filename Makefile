PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Data sets: the folder that METABILEVEL_DATA names, else one that lies beside the clone, else the user cache.
ifneq ($(wildcard ../shared/data),)
export METABILEVEL_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test conformance faults lint benchmarks clean

demo: $(VENV)/installed  ## MAML's sinusoid table and figure, with the numbers of the paper beside ours
	$(BIN)/metabilevel repro run maml-sinusoid --scale small --out runs/demo

test: $(VENV)/installed  ## every test, a file at a time on each of two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

conformance: $(VENV)/installed  ## every check of the conformance kit on every method, those that take long too
	$(BIN)/python -m pytest -m "thorough or not thorough" tests/conformance

faults: $(VENV)/installed  ## a run that is killed a hundred times, above all while it writes
	METABILEVEL_KILLS=100 $(BIN)/python -m pytest tests/faults

lint: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

benchmarks: $(VENV)/installed  ## speed and memory, side by side with others, into benchmarks/results and docs
	$(BIN)/metabilevel bench --out benchmarks/results
	$(BIN)/metabilevel bench --out benchmarks/results --report docs

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache

$(VENV)/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@
