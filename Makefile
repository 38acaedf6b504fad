PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOR_STUDY := $(VENV)/.for-study
NATIVE := $(VENV)/.native
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
ZOO := .venv-zoo
ZOO_READY := $(ZOO)/.ready
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet
CMAKE := $(BIN)/cmake
CONFIGURE := $(CMAKE) -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja

.DEFAULT_GOAL := help
.PHONY: help setup native check format test test-slow test-all mutants attack sanitize study bench zoo clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

# What a study needs, and no other framework.
$(FOR_STUDY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 cmake ninja
	CMAKE_ARGS=-DBATCHNORM_NATIVE=OFF $(PIP) --editable '.[study]'
	touch $(FOR_STUDY)

# tf_keras asks for TensorFlow by another name than that of its build for CPUs, which would install it twice.
$(INSTALLED): $(FOR_STUDY)
	CMAKE_ARGS=-DBATCHNORM_NATIVE=OFF $(PIP) --editable '.[dev]'
	$(PIP) --no-deps tf_keras
	touch $(INSTALLED)

define build_native
$(CONFIGURE) -B build/native
$(CMAKE) --build build/native
$(CMAKE) --install build/native
touch $(NATIVE)
endef

$(NATIVE): $(FOR_STUDY) CMakeLists.txt $(wildcard csrc/*.*)
	$(build_native)

$(READY): $(INSTALLED) $(NATIVE)
	touch $(READY)

setup: $(READY)  ## Create .venv with everything, pinned by constraints.txt

native: $(FOR_STUDY)  ## Build the native kernels anew, into src; the other targets do so when csrc has changed
	$(build_native)

check: $(READY)  ## Lint, format check and types: what pre-commit and CI run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Some tests take a second and some a minute: who is done takes over from the other. See tests/parts.py.
test: $(READY)  ## Run the fast tests and the examples in the documentation; with PART=torch, every test of that part
ifdef PART
	@files=$$($(BIN)/python tests/parts.py '$(PART)') && $(PYTEST) $$files
else
	$(PYTEST) -m 'not slow'
endif

test-slow: $(READY)  ## Run what `make test` leaves out: the slow tests and the mutants
	$(PYTEST) -m slow

test-all: $(READY)  ## Run every test, fast or slow, and the mutants
	$(PYTEST)

mutants: $(READY)  ## Show that the tests reject deliberate faults, and write down which test rejects which
	$(BIN)/pytest -n 2 tests/test_mutants.py --remember-killers

attack: $(READY)  ## Try more than a thousand hostile command lines, each judged by rules; 1 where one breaks a rule
	PYTHONPATH=tests $(BIN)/python -m attack

sanitize: $(INSTALLED)  ## Test the native kernels in C++, watched by the address and undefined behavior sanitizers
	$(CONFIGURE) -B build/sanitize -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DBATCHNORM_SANITIZE=address,undefined
	$(CMAKE) --build build/sanitize --target test_kernels
	build/sanitize/csrc/test_kernels

study: $(NATIVE)  ## Measure the claims about batch normalization; writes report/index.html; installs what that needs alone
	$(BIN)/batchnorm study

bench: $(READY)  ## Time the layer beside torch's, Keras' and Flax' own, its options, a ResNet-50; ask batch size finders
	$(BIN)/batchnorm bench
	$(BIN)/python benchmarks/resnet50.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/options.py
	for backend in torch tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python benchmarks/keras_layers.py; done
	for backend in torch tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python benchmarks/compiled_accuracy.py; done
	$(BIN)/python benchmarks/batch_size_finders.py
	$(BIN)/python benchmarks/study_coverage.py

# Other people's packages and our own layer, installed as they install it. Several ask for builds of PyTorch for CUDA, so
# the list of packages is complete and nothing is resolved.
$(ZOO_READY): benchmarks/zoo/requirements.txt pyproject.toml CMakeLists.txt $(wildcard csrc/*.*)
	test -d $(ZOO) || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/pip install --quiet torch==2.13.0
	$(ZOO)/bin/pip install --quiet --no-deps --requirement benchmarks/zoo/requirements.txt
	PATH="$(abspath $(ZOO))/bin:$$PATH" $(ZOO)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(ZOO_READY)

zoo: $(ZOO_READY)  ## Run other people's programs with our layer in them, in .venv-zoo; exits with 1 where one is wrong
	$(ZOO)/bin/python benchmarks/zoo --out benchmarks/results/zoo.txt

clean:  ## Remove the environment and everything generated
	rm -rf $(VENV) $(ZOO) report build dist .pytest_cache .ruff_cache .hypothesis src/batchnorm/kernels/*.so
