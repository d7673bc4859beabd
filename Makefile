# 'make' alone lists what there is. Everything is installed into .venv, on first use.

PYTHON ?= python3
# PyTorch's own index has the small build for CPUs. Where it cannot be reached, PyPI's is taken.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
LOWEST := .venv-lowest/bin
READY := .venv/.ready
# Two processes, a file of tests in one of them: all that is started has a folder of its own.
TWO := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup sweep page validate lab test test-slow test-stress test-lowest lint format clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 13

setup: $(READY) ## install into .venv, nothing else

sweep: $(READY) ## measure BERT, quick: batch 1 to 64, the fastest engines installed, 2 s a point (8 minutes)
	$(BIN)/scalebench sweep outputs/quick --preset quick

page: $(READY) ## measure BERT, the paper's page: batch 1 to 1024, eager and TorchScript, 10 s a point
	$(BIN)/scalebench sweep outputs/page --preset page

validate: $(READY) ## are the numbers right on this machine? (less than 20 minutes on 2 cores)
	@mkdir -p outputs/validation
	$(BIN)/papermill notebooks/validation.ipynb outputs/validation/validation.ipynb
	$(BIN)/scalebench render outputs/validation/validation.ipynb

# On copies, so that git stays clean; one that a newer original replaces is kept beside it.
COPIES := $(patsubst notebooks/%,outputs/%,$(wildcard notebooks/*.ipynb))

$(COPIES): outputs/%: notebooks/%
	@mkdir -p $(@D)
	@test ! -e $@ || mv $@ $(basename $@)-before.ipynb
	@cp $< $@

lab: $(READY) $(COPIES) ## explore in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir=. \
	  --LabApp.default_url=/lab/tree/outputs/analysis.ipynb $(LAB)

test: $(READY) ## run the tests
	$(BIN)/pytest $(TWO)

test-slow: $(READY) ## run the slow tests: faults that are caused for real
	$(BIN)/pytest $(TWO) -m slow

test-stress: $(READY) ## run what takes minutes: kills by the dozen, hosts of a cluster, a clock that jumps
	$(BIN)/pytest -m stress

test-lowest: ## run the tests with the lowest versions that pyproject.toml allows, but the newest torch
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/pip install -q uv
	$(LOWEST)/pip install -q --no-deps -c constraints.txt --extra-index-url '$(TORCH_INDEX)' torch
	$(LOWEST)/uv pip install -q --python $(LOWEST)/python --resolution lowest-direct \
	  -e '.[cluster,dev,onnxruntime,openvino,torchao]' "$$(grep '^torch==' constraints.txt)"
	$(LOWEST)/pytest $(TWO)

lint: $(READY) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the installation; results stay
	rm -rf .venv .venv-lowest *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "needs Python 3.11, 3.12 or 3.13: name one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-deps -c constraints.txt --extra-index-url '$(TORCH_INDEX)' torch
	$(BIN)/pip install -q -c constraints.txt -e '.[cluster,dev,onnxruntime,openvino,torchao]'
	@touch $@
