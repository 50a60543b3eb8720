# Everything happens in .venv; `make quickstart` and `make test` set it up first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests start a hundred processes: with this, each would compile the project again.
unexport PYTHONDONTWRITEBYTECODE
CORES := len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
TESTS := $(shell $(PYTHON) -c "import os; print(max(3, min(4, $(CORES))))")
PYTEST := $(BIN)/python -m pytest -q -n $(TESTS) --dist loadfile --no-loadscope-reorder

.PHONY: help quickstart test test-all torture coverage check format docs gpu-pack

help:
	@echo "make quickstart   set up, then run the main job on a generated world (5 to 8 minutes on two cores)"
	@echo "make test         set up, then run the tests"
	@echo "make test-all     every test, the slow ones and those for a GPU as well"
	@echo "make torture      for hours: kill runs, fill disks, damage files, pester the page; see that nothing is lost"
	@echo "make coverage     the tests, and which lines they run"
	@echo "make check        formatting, lint, import rules, types and architecture"
	@echo "make format       put the formatting right"
	@echo "make docs         build the documentation site into site/"
	@echo "make gpu-pack     pack what a GPU machine without a network needs to run benchmarks/gpu"

$(INSTALLED): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then uv venv -q --allow-existing --python $(PYTHON) .venv; \
	else $(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q uv; fi
	@# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch and Prefect again.
	@PATH="$$PATH:$(BIN)" uv pip install -q --compile-bytecode --python $(BIN)/python -e '.[dev]' -c constraints.txt
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/must run recipes/quickstart.yaml

test: $(INSTALLED)
	$(PYTEST)

torture: $(INSTALLED)
	$(BIN)/python -m tests.torture

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term

test-all: $(INSTALLED)
	$(PYTEST) -m "slow or gpu or not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)
	$(BIN)/zensical build --strict --clean
	@echo "Open site/index.html, or for the search as well: $(BIN)/python -m http.server --directory site"

gpu-pack: $(INSTALLED)
	@PATH="$$PATH:$(BIN)" $(BIN)/python -m benchmarks.gpu.pack
