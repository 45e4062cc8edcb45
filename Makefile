# Two commands: `make train` trains the default hypernetwork, `make test` runs the tests.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits/$(NOW)
BIN := $(VENV)/bin
NOW := $(shell date +%Y%m%d-%H%M%S)

.PHONY: help train test test-all test-lowest check format clean

help:  ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

train: $(VENV)/installed  ## Train on the embedded digits, then test the best checkpoint
	$(BIN)/mip-lightning fit --config cli.yaml --run_dir $(RUN)
	$(BIN)/mip-lightning test --ckpt_path $(RUN)/checkpoints/best.ckpt
	@echo "Figures: $(RUN)/predicted_weight_stats.png $(RUN)/test/test_gamma_curve.png"

# Two files of tests at a time, each on a core of its own.
PYTEST := -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test test-all test-lowest: export OMP_NUM_THREADS := 1

test: $(VENV)/installed-dev  ## Run the tests
	$(BIN)/python $(PYTEST) -m 'not slow'

$(VENV)/installed-zoo: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,zoo]'
	touch $@

test-all: $(VENV)/installed-zoo  ## Run the tests, the slow ones too
	$(BIN)/python $(PYTEST)

.venv-lowest/installed: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable '.[dev]' --constraint tests/lowest.txt
	touch $@

test-lowest: .venv-lowest/installed  ## Run the tests on the lowest versions that are promised
	.venv-lowest/bin/python $(PYTEST)

check: $(VENV)/installed-dev  ## Lint, check the format, the types and the import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev  ## Mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environments and caches; runs stay
	rm -rf .venv .venv-lowest .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
