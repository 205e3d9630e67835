# PosBench's front door. `make` lists the verbs; every one of them installs what it needs into .venv first.
PYTHON   ?= python3
METHOD   ?= rpe2d
DATA     ?=
# Empty: shapes, or folder where DATA is a folder of pictures.
PROTOCOL ?=
DEVICES  ?= auto
NODES    ?= 1
# Jobs instead of running here: slurm, or local; RESOURCES is a YAML file of submitit's parameters.
CLUSTER  ?=
RESOURCES ?=
# What `plan` counts hours of.
DEVICE   ?= h100
SEED     ?= 0
OUT      ?= runs
# Further dot-list overrides, e.g. SET="train.steps=200 sample.count=64": they make the run a custom one.
SET      ?=

VENV := .venv
PY   := $(VENV)/bin/python
RUN  := $(PY) -m benchmark
ARGS  = $(if $(PROTOCOL),--protocol $(PROTOCOL)) --seed $(SEED) --out $(OUT) --devices $(DEVICES) --nodes $(NODES) $(if $(DATA),--data $(DATA)) $(SET)

.DEFAULT_GOAL := help
.PHONY: help install bench sweep plan reproduce shards latents leaderboards list speed spectrum test faults goldens lint lock clean

help: ## this list
	@echo "make bench METHOD=rpe2d      one method through every stage, on the embedded data set"
	@echo
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24
	@echo
	@echo "Variables: METHOD=$(METHOD) PROTOCOL=$(PROTOCOL) SEED=$(SEED) OUT=$(OUT) DATA=$(DATA)"
	@echo "           DEVICES=$(DEVICES) NODES=$(NODES) CLUSTER=$(CLUSTER) RESOURCES=$(RESOURCES) DEVICE=$(DEVICE)"
	@echo "           SET='section.key=value ...'"

# The stamp is newer than the lock exactly when the lock is installed, so a second make installs nothing.
$(VENV)/.installed: requirements.txt requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "PosBench needs Python 3.11 or newer: set PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(VENV)/bin/uv pip install --system-certs --python $(PY) --require-hashes -r requirements.txt
	@touch $@

install: $(VENV)/.installed ## set up .venv from the locked, hashed requirements

bench: $(VENV)/.installed ## one METHOD: shards -> train -> sample -> score -> leaderboard
	@$(RUN) bench $(METHOD) $(ARGS)

sweep: $(VENV)/.installed ## every method of a PROTOCOL, shared trainings once
	@$(RUN) sweep $(ARGS) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(RESOURCES),--resources $(RESOURCES))

plan: $(VENV)/.installed ## what a PROTOCOL still needs: operations, hours on a DEVICE, disk
	@$(RUN) plan $(or $(PROTOCOL),shapes) $(SET) --device $(DEVICE) --seed $(SEED) --out $(OUT) $(if $(DATA),--data $(DATA))

reproduce: $(VENV)/.installed ## run METHOD's row again and compare with the committed record and the paper
	@$(RUN) reproduce $(METHOD) $(ARGS)

shards: $(VENV)/.installed ## DATA (class folders, tars or parquet) -> shards with an index
	@$(RUN) shards $(SET) $(if $(PROTOCOL),--protocol $(PROTOCOL)) --out $(OUT) $(if $(DATA),--data $(DATA))

latents: $(VENV)/.installed ## the shards of a PROTOCOL -> latents of its autoencoder
	@$(RUN) latents $(SET) $(if $(PROTOCOL),--protocol $(PROTOCOL)) --out $(OUT) --devices $(DEVICES) $(if $(DATA),--data $(DATA))

leaderboards: $(VENV)/.installed ## regenerate leaderboards/ from its records
	@$(RUN) leaderboards

list: $(VENV)/.installed ## methods, protocols and data sets, and what of them is cached
	@$(RUN) list --out $(OUT)

speed: $(VENV)/.installed ## the core beside diffusers' DiT, and every method beside plain RoPE
	@$(RUN) speed --out $(OUT)

spectrum: $(VENV)/.installed ## redraw leaderboards/spectrum.svg from the methods
	@$(RUN) spectrum

test: $(VENV)/.installed ## the test suite
	@$(VENV)/bin/pytest -n auto --dist loadgroup tests

faults: $(VENV)/.installed ## bad inputs and kills, all of them: what was tried, and what came of it
	@PYTHONPATH=.:tests $(PY) tests/faults/campaign.py

goldens: $(VENV)/.installed ## compare today's numbers with the recorded ones, part by part
	@PYTHONPATH=.:tests $(PY) tests/golden/goldens.py $(ARGS)

lint: $(VENV)/.installed ## ruff's checks and formatting
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

lock: $(VENV)/.installed ## renew the lock from pyproject.toml
	$(VENV)/bin/uv pip compile --system-certs pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --upgrade -o requirements.txt
	echo uv | $(VENV)/bin/uv pip compile --system-certs - --universal --generate-hashes --no-header --no-emit-index-url -o requirements-uv.txt

clean: ## remove runs/ and .venv
	rm -rf runs $(VENV) .pytest_cache .ruff_cache .hypothesis
