# Needs make, bash and Python >= 3.10. Every target sets up what it uses (seconds once that is done);
# whether an environment is active does not matter.
#   make test ARGS="tests/unit -k parser"     passes ARGS on to pytest
SHELL := /bin/bash
VENV := $(or $(NEUROMAMBA_VENV_PATH),.venv)
PY := "$(VENV)/bin/python"
# One thread each: the two test processes, not the libraries, share out the cores. Compiled modules
# are kept also where the environment says otherwise: the tests start some hundred processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-all lint docs bench gpu-wheels clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## create the environment (.venv, or NEUROMAMBA_VENV_PATH)
	@bash setup_env.sh

setup-dev: ## the same, with the tools for tests and checks
	@bash setup_env.sh --dev

demo: setup ## pre-train and fine-tune on synthetic fMRI; writes output/demo/report.html
	$(PY) -m neuromamba demo $(ARGS)

test: setup-dev ## run the tests, without the slow ones and those that need a GPU
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: ## run all tests; those that need a GPU only where there is one
	@bash setup_env.sh --dev --kernels-test
	$(PYTEST) -m "$(if $(shell nvidia-smi -L 2>/dev/null),,not gpu)" $(ARGS)

lint: setup-dev ## check style, types, the import rule and the shell scripts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	"$(VENV)/bin/lint-imports"
	@set -e; for script in setup_env.sh .ci/run $$(find project -name '*.slurm') \
		$$(find sample_scripts -name '*.sh' 2>/dev/null); do \
		bash -n "$$script"; \
		if command -v shellcheck >/dev/null; then shellcheck -x "$$script"; fi; \
	done; echo "Shell scripts: ok"

docs: ## build the site, docs/_build/html; the gallery takes a few minutes (ARGS=--no-gallery: none)
	@bash setup_env.sh --docs
	$(PY) docs/build.py $(ARGS)

bench: setup-dev ## run the benchmarks, about 40 minutes (ARGS=--quick: 3 minutes)
	@set -e; for name in mixer backbone scaling training_step loader ingest use_a_model; do \
		echo "== benchmarks/$$name.py"; $(PY) benchmarks/$$name.py $(ARGS); \
	done

gpu-wheels: setup ## fetch what benchmarks/gpu_check.sh takes to a GPU machine without internet
	bash benchmarks/gpu_wheels.sh

clean: ## remove caches and the built site (the environment and output/ stay)
	rm -rf docs/_build docs/gallery docs/reference/commands
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path "./$(VENV)" -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
