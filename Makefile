# Needs Python 3.11 or later with venv and pip, and nothing else.
#   make run        optimizes the trained model that the repository ships, and prints the report
#   make test       runs the tests
#   make test-marked  runs those that take long or fetch public models
#   make peers      sets up the other optimizers that `python -m benchmarks.peers` compares with
#   make quantization-peers  sets up the other quantizers that `python -m benchmarks.quantization` compares with
# The first call sets .venv up; later ones only when pyproject.toml has changed.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
JOBS   ?= 2

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST  := $(BIN)/python -m pytest -n $(JOBS)

.PHONY: run test test-marked peers quantization-peers lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	@mkdir -p build
	$(BIN)/graphopt run models/digits/digits.onnx -o build/digits.opt.onnx --metric models/digits/metric.py:accuracy

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not zoo" $(ARGS)

test-marked: $(VENV)/.installed-dev
	$(PYTEST) -m "slow or zoo" $(ARGS)

peers: build/peers/.installed

quantization-peers: build/quantization-peers/.installed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf build $(VENV)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	@echo "installing graphopt into $(VENV) (once; this takes a minute)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing $(TORCH) and the tools of the tests into $(VENV) (once; this takes some minutes)"
	@$(INSTALL) $(TORCH)
	@$(INSTALL) --editable '.[dev]'
	@touch $@

build/peers/.installed: benchmarks/peers/requirements.txt
	@echo "installing the tools to compare with into build/peers (once; this takes some minutes)"
	@$(PYTHON) -m venv build/peers
	@build/peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# onnx-neural-compressor asks for an older numpy than the others, and works with a newer one.
build/quantization-peers/.installed: benchmarks/quantization/requirements.txt
	@echo "installing the quantizers to compare with into build/quantization-peers (once; this takes some minutes)"
	@$(PYTHON) -m venv build/quantization-peers
	@build/quantization-peers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@build/quantization-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@build/quantization-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps onnx-neural-compressor==1.0
	@touch $@
