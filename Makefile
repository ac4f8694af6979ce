# Every target works from a fresh clone: `setup` makes .venv first and does nothing where it is up to date.
.DEFAULT_GOAL := help
.PHONY: help setup demo tiny-checkpoint test test-all test-gpu check docs format clean clean-venv

PY := .venv/bin/python
export PYTHON FLAVOUR

# One thread a process: the tests start several, and more threads than cores cost far more than they give.
test test-all: export OMP_NUM_THREADS ?= 1

# Two files of tests at a time, whatever the number of cores: each may hold an engine. Arguments that name tests, or
# `-n 0`, come last and win.
PYTEST = $(PY) -m pytest -n 2 --dist loadfile

# Of scripts, what runs for hours and so in no test: names that are not there, and calls that can't be.
LOOSELY = $(addprefix --disable-error-code ,arg-type dict-item index method-assign operator var-annotated)

GPU = $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && echo yes)
WITHOUT_GPU = $(if $(GPU),, and not gpu)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="..." goes to the demo (as Hydra overrides) or to pytest: make demo ARGS="trainer.max_steps=5"'
	@echo 'PYTHON=... and FLAVOUR=cpu|cuda choose the interpreter and the build that setup takes by itself'

setup: ## install everything into .venv (CUDA build where there is an NVIDIA GPU, else CPU)
	@sh scripts/setup.sh

demo: setup ## train the tiny model by AT-RL and show that it learned
	@$(PY) train.py $(ARGS)

tiny-checkpoint: setup ## make the checkpoint that comes with atrl again, from nothing (minutes)
	@$(PY) train.py experiment=tiny_checkpoint logger=csv hydra.run.dir=outputs/tiny_checkpoint/build resume=auto
	@cp outputs/tiny_checkpoint/build/model/* src/atrl/models/tiny/

test: setup ## run the tests, the slow ones left out
	@$(PYTEST) -m "not slow$(WITHOUT_GPU)" $(ARGS)

test-all: setup ## run all tests that this machine can run
	@$(PYTEST) -m "(slow or not slow)$(WITHOUT_GPU)" $(ARGS)

test-gpu: setup ## run what needs a GPU, one file at a time (docs/gpu_checklist.md)
	@$(PY) -m pytest -m gpu $(ARGS)

check: setup ## lint, formatting, types, and every config
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@MYPYPATH=benchmarks $(PY) -m mypy $(LOOSELY) benchmarks experiments scripts
	@$(PY) scripts/check_configs.py

docs: setup ## build the documentation's site into build/site
	@$(PY) -c 'import material, mkdocstrings' 2>/dev/null || $(PY) -m pip install -q -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

format: setup ## format, and fix what the linter can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove caches and build folders (outputs and .venv stay)
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv: ## remove .venv
	@rm -rf .venv
