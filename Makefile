# PosBench's entry point. `make` lists the commands; each one first installs what it needs into .venv.
# Set on the command line; exported variables are not read, but for PYTHON.
PYTHON    ?= python3
METHOD    = rpe2d
# Several, for sweep and plan: METHODS="rpe2d yarn"; empty means all methods of the protocol.
METHODS   =
# Empty: shapes (a rehearsal of shapes-long), or folder if DATA is a folder of images; imagenet-256-xl2 for latents.
PROTOCOL  =
DATA      =
DEVICES   = auto
NODES     = 1
# Submit jobs instead of running here: slurm, or local; RESOURCES is a YAML file of submitit's parameters (cluster.example.yaml).
CLUSTER   =
RESOURCES =
# The device that `plan` estimates hours for, and the price of an hour.
DEVICE    = h100
PRICE     =
# Empty: 0; for `reproduce`, the first recorded seed.
SEED      =
OUT       = runs
# 1 keeps all images of a cell and the checkpoints of finished trainings.
KEEP      =
# For `loss`: a method to compare with, and a folder of held-out shards.
AGAINST   =
HELDOUT   =
# Overrides, which make a run custom: SET="train.steps=200"; also any further option of a command.
SET       =

VENV := .venv
PY   := $(VENV)/bin/python
RUN  := $(PY) -m benchmark
# Command-line arguments for the variables that were given.
quote = '$(subst ','\'',$1)'
opt   = $(if $(value $1),--$(shell echo $1 | tr A-Z a-z) $(call quote,$(value $1)))
WHERE = $(call opt,PROTOCOL) $(call opt,OUT) $(call opt,DATA)
ON    = $(call opt,DEVICES) $(call opt,NODES)
MORE  = $(call opt,SEED) $(SET)
KEPT  = $(if $(KEEP),--keep)

# The variables that a command reads. Any other one on the command line, or a misspelt one, is an error.
TAKES_bench        := METHOD PROTOCOL DATA SEED OUT KEEP DEVICES NODES SET
TAKES_sweep        := METHODS PROTOCOL DATA SEED OUT KEEP DEVICES NODES CLUSTER RESOURCES SET
TAKES_plan         := METHODS PROTOCOL DATA SEED OUT KEEP DEVICE PRICE SET
TAKES_reproduce    := METHOD PROTOCOL DATA SEED OUT DEVICES NODES SET
TAKES_submit       := METHOD PROTOCOL DATA SEED OUT
TAKES_loss         := METHOD PROTOCOL DATA SEED OUT AGAINST HELDOUT SET
TAKES_shards       := PROTOCOL DATA OUT SET
TAKES_latents      := PROTOCOL DATA OUT DEVICES SET
TAKES_list         := OUT
TAKES_speed        := OUT SET
TAKES_goldens      := SET
TAKES_faults       := SET
TAKES_test         := SET
GIVEN := $(sort $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(foreach verb,$(MAKECMDGOALS),$(foreach name,$(filter-out PYTHON VENV $(TAKES_$(verb)),$(GIVEN)),\
  $(error `make $(verb)` does not read $(name)$(if $(TAKES_$(verb)), (it reads $(TAKES_$(verb)))))))

ifneq ($(filter-out 1,$(KEEP)),)
$(error KEEP is 1 or empty, not $(KEEP))
endif

.DEFAULT_GOAL := help
.PHONY: help install bench sweep plan reproduce submit loss shards latents leaderboards list speed spectrum teaser
.PHONY: test goldens faults lint typecheck lock clean

help: ## show this list
	@echo 'make bench METHOD=rpe2d   one method through every stage, on the embedded data'
	@echo 'make test                 the test suite'
	@echo
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo
	@echo 'Variables (on the command line, an error for commands that do not use them):'
	@echo '  METHOD METHODS="rpe2d yarn" PROTOCOL DATA=folder SEED OUT=runs KEEP=1'
	@echo '  DEVICES NODES CLUSTER=slurm RESOURCES=file DEVICE=h100 PRICE=2.5'
	@echo '  AGAINST HELDOUT SET="section.key=value --option ..."'
	@echo '$(RUN) VERB --help lists all options.'

# The stamp is newer than the lock when what the lock names is installed, so a second make installs nothing. Other packages stay.
$(VENV)/.installed: requirements.txt requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "PosBench needs Python 3.11 or newer: set PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(VENV)/bin/uv pip install --system-certs --python $(PY) --require-hashes -r requirements.txt
	@touch $@

install: $(VENV)/.installed ## set up .venv from the locked, hashed requirements

bench: $(VENV)/.installed ## METHOD: shards, train, sample, score, leaderboard
	@$(RUN) bench $(call quote,$(value METHOD)) $(WHERE) $(ON) $(KEPT) $(MORE)

sweep: $(VENV)/.installed ## METHODS of a PROTOCOL; shared trainings run once
	@$(RUN) sweep $(call opt,METHODS) $(WHERE) $(ON) $(call opt,CLUSTER) $(call opt,RESOURCES) $(KEPT) $(MORE)

plan: $(VENV)/.installed ## estimate what is missing: DEVICE hours, PRICE, disk
	@$(RUN) plan $(call quote,$(value PROTOCOL)) $(call opt,METHODS) $(call opt,DEVICE) $(call opt,PRICE) $(call opt,OUT) $(call opt,DATA) $(KEPT) $(MORE)

reproduce: $(VENV)/.installed ## rerun METHOD's committed row and compare
	@$(RUN) reproduce $(call quote,$(value METHOD)) $(WHERE) $(ON) $(MORE)

submit: $(VENV)/.installed ## copy METHOD's row from OUT into leaderboards/
	@$(RUN) submit $(call quote,$(value METHOD)) $(WHERE) $(call opt,SEED)

loss: $(VENV)/.installed ## METHOD's denoising loss at every test size
	@$(RUN) loss $(call quote,$(value METHOD)) $(WHERE) $(call opt,AGAINST) $(call opt,HELDOUT) $(MORE)

shards: $(VENV)/.installed ## DATA (folders, tars, parquet) -> indexed shards
	@$(RUN) shards $(WHERE) $(SET)

latents: $(VENV)/.installed ## shards of a PROTOCOL -> latents
	@$(RUN) latents $(WHERE) $(call opt,DEVICES) $(SET)

leaderboards: $(VENV)/.installed ## regenerate leaderboards/ from the records
	@$(RUN) leaderboards

list: $(VENV)/.installed ## list methods, protocols, data sets, and OUT
	@$(RUN) list $(call opt,OUT)

speed: $(VENV)/.installed ## time the core vs diffusers' DiT, and methods
	@$(RUN) speed $(call opt,OUT) $(SET)

spectrum: $(VENV)/.installed ## plot the angles of the rotary methods
	@$(RUN) spectrum

teaser: $(VENV)/.installed ## make the image at the top of the README
	@$(PY) -m benchmark.measure.teaser sincos_interp interpolation rpe2d ledit sincos yarn extrapolation

test: $(VENV)/.installed ## run the test suite
	@$(VENV)/bin/pytest -n auto --dist loadgroup $(or $(SET),tests)

goldens: $(VENV)/.installed ## compare with the recorded golden numbers
	@PYTHONPATH=.:tests $(PY) tests/golden/goldens.py $(SET)

faults: $(VENV)/.installed ## test bad inputs and random kills
	@PYTHONPATH=.:tests $(PY) tests/faults/campaign.py $(SET)

lint: $(VENV)/.installed ## ruff: checks and formatting; mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

typecheck: $(VENV)/.installed ## mypy, on the packages named in pyproject.toml
	@$(VENV)/bin/mypy

lock: $(VENV)/.installed ## update the lock file from pyproject.toml
	$(VENV)/bin/uv pip compile --system-certs pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --upgrade -o requirements.txt
	echo uv | $(VENV)/bin/uv pip compile --system-certs - --universal --generate-hashes --no-header --no-emit-index-url -o requirements-uv.txt

CLEANED := runs $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
clean: ## remove runs/ (trainings too!), .venv and caches
	@for path in $(wildcard $(CLEANED)); do echo "removing $$(du -sh $$path | tr '\t' ' ')"; rm -rf $$path; done
