# `make help` explains every target. Each target sets up the virtual environment first, once.

SEED ?= 0
# mini: trained here from scratch, on a laptop. paper: real benchmarks, released checkpoints, GPUs.
SCALE ?= mini
# The folder of the real benchmarks, for SCALE=paper.
DATA ?=
# Anything else for the command line, as KEY=VALUE: make reproduce-table ARGS="jobs=1"
ARGS ?=
# DRY_RUN=1: print the plan of reproduce-table or ablate, and run nothing.
# Of make ablate: a grid's name (ablations/NAME.yaml) or all; REUSE=committed, RETRY=true if wanted.
GRID ?=
REUSE ?=
RETRY ?=
DRY_RUN ?=
BENCHMARK ?= videomme
SAMPLE ?= 0

VENV := .venv
RUN := $(VENV)/bin/python
# The stamp is newer than what the environment was made from, or it is made again.
READY := $(VENV)/.ready
# The first interpreter that runs, is 3.11 or 3.12, and can make a virtual environment.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' \
	>/dev/null 2>&1 && { echo $$python; break; }; done)
# Two test processes with one thread each: more threads would fight over two cores.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup reproduce-table doctor fetch finetune controls plug-and-play ablate report notebooks smoke profile profile-gpu scaling \
	bench suite contact-sheet plot readme test test-slow lint format constraints clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Settings: SCALE=$(SCALE)  SEED=$(SEED)  BENCHMARK=$(BENCHMARK)  SAMPLE=$(SAMPLE)  ARGS=\"KEY=VALUE ...\""

setup: $(READY) ## Make the virtual environment .venv with the tested versions (once)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 with venv was found: install one," \
		"or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Setting up $(VENV) with $(PYTHON): half a minute if the packages are cached, else several minutes"
	$(PYTHON) -m venv --clear $(VENV)
	@# uv installs in a tenth of pip's time; where it is not to be had, pip does the same.
	@if $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; then \
		$(RUN) -m uv pip install --python $(RUN) -c constraints.txt -e '.[dev]'; \
	else \
		$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

# What is said of the scale, its data and its plan.
AT_SCALE = scale=$(SCALE) $(if $(DATA),data=$(DATA)) $(if $(DRY_RUN),dry_run=true)

reproduce-table: $(READY) ## The main table: SCALE=mini trains and evaluates, SCALE=paper DATA=DIR evaluates at 7B
	$(RUN) -m harness table $(AT_SCALE) seed=$(SEED) $(ARGS)

doctor: $(READY) ## What is there and what is missing, each with the command that mends it (SCALE=paper DATA=DIR)
	$(RUN) -m harness doctor scale=$(SCALE) $(if $(DATA),data=$(DATA)) $(ARGS)

fetch: $(READY) ## Download the real benchmarks and checkpoints into DATA=DIR, and unpack them (ONLINE=true)
	$(RUN) -m harness fetch scale=paper $(if $(DATA),data=$(DATA)) $(if $(ONLINE),online=$(ONLINE)) $(ARGS)

finetune: $(READY) ## Train on annotation files, by the paper's stages (ARGS="recipe=stage1 annotations=[FILE] ...")
	$(RUN) -m harness finetune $(ARGS)

controls: $(READY) ## The controls: gate closed, slow tokens of another video (SEED=0)
	$(RUN) -m harness controls seed=$(SEED) $(ARGS)

plug-and-play: $(READY) ## Does converting a trained baseline to slow-fast help? By training steps (SEED=0)
	$(RUN) -m harness plug-and-play seed=$(SEED) $(ARGS)

ablate: $(READY) ## Run a grid of ablations: GRID=gates, GRID=all; plan only: DRY_RUN=true
	$(RUN) -m harness ablate $(if $(GRID),grid=$(GRID)) seed=$(SEED) $(if $(REUSE),reuse=$(REUSE)) \
		$(if $(RETRY),retry=$(RETRY)) $(if $(DRY_RUN),dry_run=true) $(ARGS)

report: $(READY) ## Tables, figures, claims and one HTML page from results/ alone
	$(RUN) -m harness report seed=$(SEED) $(ARGS)

notebooks: $(READY) ## Run the notebooks at smoke scale (SCALE=mini: as they were committed)
	$(RUN) -m harness.notebooks $(ARGS)

smoke: $(READY) ## A first real row within three minutes
	$(RUN) -m harness smoke seed=$(SEED) $(ARGS)

profile: $(READY) ## Compute against frames of every variant, counted at 7B without weights
	$(RUN) -m harness profile $(ARGS)

profile-gpu: $(READY) ## Time and memory against frames at 7B, measured on this machine's GPU
	$(RUN) -m harness profile-gpu $(ARGS)

scaling: $(READY) ## Is cost linear in frames? Counted at 7B, measured on this machine
	$(RUN) -m harness scaling $(ARGS)

bench: $(READY) ## This project's own speed: decoding, profiling, evaluation
	$(RUN) -m harness bench $(ARGS)

suite: $(READY) ## Generate the five mini benchmarks and print where they are (SEED=0)
	$(RUN) -m harness suite seed=$(SEED) $(ARGS)

contact-sheet: $(READY) ## A picture of one sample: frames, question, answer (BENCHMARK=videomme SAMPLE=0)
	$(RUN) -m harness contact-sheet seed=$(SEED) benchmark=$(BENCHMARK) sample=$(SAMPLE) $(ARGS)

plot: $(READY) ## Redraw tables and figures from results/rows, without running anything (SEED=0)
	$(RUN) -m harness plot seed=$(SEED) $(ARGS)

readme: $(READY) ## Put the numbers of results/ into README.md and results/README.md
	$(RUN) -m harness.readme
	$(RUN) -m harness.results_readme

test: $(READY) ## The tests, from a clip to a row on a smaller suite
	$(PYTEST) -n 2

test-slow: $(READY) ## The longer tests
	$(PYTEST) -n 2 -m slow

lint: $(READY) ## Check style and layout with ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(READY) ## Let ruff put style and layout right
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

constraints: $(READY) ## Resolve the tested set, constraints.txt, anew from pyproject.toml
	$(RUN) -m uv pip compile --universal --python-version 3.11 --fork-strategy fewest --upgrade --extra dev \
		--extra torchcodec \
		--no-annotate --custom-compile-command "make constraints" pyproject.toml -o constraints.txt

clean: ## Remove the virtual environment, runs and caches (results that were committed stay)
	rm -rf $(VENV) build *.egg-info results/runs .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
