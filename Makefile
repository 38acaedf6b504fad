PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test mutants study bench clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

# tf_keras asks for TensorFlow by another name than that of its build for CPUs, which would install it twice.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps tf_keras
	touch $(READY)

setup: $(READY)  ## Create .venv with everything, pinned by constraints.txt

check: $(READY)  ## Lint, format check and types: what pre-commit and CI run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## Run every test, the examples in the documentation and the mutants
	$(BIN)/pytest -n 2

mutants: $(READY)  ## Show that the tests reject deliberate faults
	$(BIN)/pytest -n 2 tests/test_mutants.py

study: $(READY)  ## Measure the claims about batch normalization; writes report/index.html
	$(BIN)/batchnorm study

bench: $(READY)  ## Time the layer beside torch's, Keras' and Flax' own, its options, a ResNet-50; ask batch size finders
	$(BIN)/batchnorm bench
	$(BIN)/python benchmarks/resnet50.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/options.py
	for backend in torch tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python benchmarks/keras_layers.py; done
	$(BIN)/python benchmarks/batch_size_finders.py

clean:  ## Remove the environment and everything generated
	rm -rf $(VENV) report build dist .pytest_cache .ruff_cache .hypothesis
