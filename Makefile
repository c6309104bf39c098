# make demo | test | test-all | build | lint | format | clean: each creates what it needs in .venv and runs.
#   PYTHON  the Python that .venv is made from (3.10 to 3.13)
#   TORCH   what pip installs as torch; add an index to choose among its builds:
#           make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   SENTENCE  what `make demo` embeds in place of its own sentences

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_FLAGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES = $(shell find bench csrc ptx tests -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu')

.PHONY: demo test test-all build lint format clean

demo: build
	$(BIN)/python -m pykernels demo $(if $(SENTENCE),"$(SENTENCE)")

test: build lint
	$(BIN)/python -m pytest tests -m "not slow" $(PYTEST_FLAGS)

test-all: build lint
	$(BIN)/python -m pytest tests $(PYTEST_FLAGS)

build: $(VENV)/installed.stamp
	$(BIN)/python setup.py --quiet build_ext --inplace

lint: $(VENV)/requirements.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pykernels csrc/kernel_build
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/requirements.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist pykernels.egg-info pykernels/kernels pykernels/include pykernels/_C*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The requirements of pyproject.toml; the nvcc wheels only where there is no other nvcc.
$(VENV)/requirements.stamp: pyproject.toml .ci/requirements.py | $(VENV)/bin/python
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python .ci/requirements.py > $@.txt
	$(BIN)/python -m pip install -r $@.txt
	mv $@.txt $@

$(VENV)/installed.stamp: setup.py $(VENV)/requirements.stamp
	$(BIN)/python -m pip install --no-build-isolation --no-deps --editable .
	touch $@
