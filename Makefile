# Every target sets up what it needs in .venv and is quick the second time. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Files whose change needs a new build; Python sources are installed in place.
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find native -type d -o -name '*.cpp' -o -name '*.h' -o -name '*.map' 2>/dev/null)
CXX_FILES = $(shell find native bench -name '*.cpp' -o -name '*.h' -o -name '*.hpp' 2>/dev/null)

MODEL ?= smollm2-135m
QUESTION ?= Why is the sky blue? Answer in two sentences.

.PHONY: help install demo test check bench peers acceptance wheel aarch64 amx format clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## fetch a small model and ask it a question
	@$(BIN)/subsecond pull $(MODEL)
	@$(BIN)/subsecond run $(MODEL) "$(QUESTION)"

install: $(VENV)/installed ## build and install into .venv, without the development tools

test: $(VENV)/developed ## run the tests, with a sample of each long check
	@$(BIN)/python -m pytest

check: $(VENV)/developed ## lint, types, formats, generated documents, architecture rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))
	@$(BIN)/mypy
	@$(BIN)/python tools/docs.py --check
	@$(BIN)/python -m pytest -q tests/arch

bench: $(VENV)/developed ## try the claims of the field on this machine, beside the engines that `make peers` installed
	@$(BIN)/subsecond pull $(MODEL)
	@$(BIN)/python -m bench.headline --model $(MODEL)

peers: $(VENV)/developed ## install the engines to compare with: all, or PEER=NAME; ISA=avx2 is for llama_cpp; llama_server is apart
	@PYTHON="$(abspath $(BIN))/python" ISA="$(ISA)" bench/peers/setup.sh $(or $(PEER),llama_cpp openvino vllm ctranslate2 transformers)
	@$(BIN)/python -m bench.peers.register

acceptance: $(VENV)/developed $(VENV)/wheelable ## run the long checks of every claim
	@$(BIN)/python -m pytest --timeout=0 -m acceptance

wheel: $(VENV)/wheelable ## build a portable wheel into dist/; ARCHITECTURE=aarch64 compiles for another processor
	@$(BIN)/python tools/wheel.py $(if $(ARCHITECTURE),--architecture $(ARCHITECTURE))

aarch64: $(VENV)/developed $(VENV)/wheelable ## compile for aarch64 and compare with this processor under emulation
	@$(BIN)/python -m pytest --timeout=0 -m acceptance tests/e2e/test_aarch64.py

amx: $(VENV)/developed ## test the AMX kernels on emulated tiles, where the processor has none
	@$(BIN)/python -m pytest --timeout=0 -m acceptance tests/e2e/test_emulated_amx.py

format: $(VENV)/developed ## format the sources and renew the generated documents
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format
	@$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))
	@$(BIN)/python tools/docs.py

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one with make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# The build back end lives in .venv, not in a throw-away environment: its paths stay the same, so only changed sources
# compile. It says itself whether cmake and ninja have to come from the registry.
$(VENV)/buildable: $(VENV)/created pyproject.toml
	$(BIN)/python tools/requirements.py build | $(PIP) install --quiet --requirement /dev/stdin
	$(BIN)/python tools/requirements.py backend | $(PIP) install --quiet --requirement /dev/stdin
	@touch $@

$(VENV)/installed: $(VENV)/buildable $(BUILD_INPUTS)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/developed: constraints-dev.txt pyproject.toml | $(VENV)/installed
	$(BIN)/python tools/requirements.py dev | $(PIP) install --quiet --constraint constraints-dev.txt --requirement /dev/stdin
	@touch $@

$(VENV)/wheelable: constraints-dev.txt pyproject.toml | $(VENV)/buildable
	$(BIN)/python tools/requirements.py wheel | $(PIP) install --quiet --constraint constraints-dev.txt --requirement /dev/stdin
	@touch $@
