# Thin names over train.py and its companions. `make help` lists them.

# Any Python from 3.10 to 3.13.
PYTHON ?= python3
VENV ?= .venv
# Which torch install-locked takes: cuda, the index's own; cpu, a build without CUDA that pip must find.
TORCH ?= cuda
# Of `make faults`: short or long.
TIER ?= short
# Overrides and flags of train.py, or arguments of pytest.
ARGS ?=

PY := $(VENV)/bin/python

# What stands on make's command line, taken as typed (make expands nothing in it) and handed on as NAME=VALUE;
# adamwprune/configure/variables.py says what each name means.
GIVEN := $(foreach name,$(filter-out PYTHON VENV TORCH TIER,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
SETTINGS = $(foreach name,$(GIVEN),$(call quoted,$(name)=$(value $(name))))
quoted = $(if $(findstring $(newline),$(1)),$(error $(firstword $(1)): make takes no line break),'$(subst ','\'',$(1))')
define newline


endef

.PHONY: train defconfig menuconfig showconfig list-defconfigs savedefconfig prepare-demo dashboard trackio-show metrics wandb-sync \
	wandb-test trackio-test test test-slow faults golden lint coverage install install-locked help clean
.DEFAULT_GOAL := train

train: install  ## Train the stored choice, else LeNet-5 on real MNIST digits, pruned to 90 %
	@exec $(PY) -m adamwprune.configure run $(SETTINGS)

defconfig: install  ## Store what make trains: DEFCONFIG=NAME, and TRACKER=both or other variables
	@exec $(PY) -m adamwprune.configure defconfig $(SETTINGS)

menuconfig: install  ## Edit the stored choice in a terminal
	@exec $(PY) -m adamwprune.configure menu $(SETTINGS)

showconfig: install  ## Print the configuration of the stored choice, and what is not default
	@exec $(PY) -m adamwprune.configure show $(SETTINGS)

list-defconfigs: install  ## List the experiments that DEFCONFIG may name
	@exec $(PY) -m adamwprune.configure list $(SETTINGS)

savedefconfig: install  ## Save the stored choice as an experiment: NAME=x
	@exec $(PY) -m adamwprune.configure save $(SETTINGS)

prepare-demo: install  ## Fetch Debian's documentation and tokenise it: 332 MB to download, 117 MB of text
	@exec $(PY) -m adamwprune.prepare data=debian_docs

dashboard: install  ## Serve Trackio's dashboard on 127.0.0.1: PROJECT=, TRACKIO_PORT=7860

metrics: install  ## Print the last values of a run: RUN=outputs/DATE/TIME_NAME

wandb-sync: install  ## Upload offline W&B runs: RUN=outputs/DATE/TIME_NAME, else all

wandb-test: install  ## Send a fake training to W&B and read it back; WANDB_ONLINE=1 for the real server

trackio-test: install  ## Send a fake training to Trackio and read it back

dashboard trackio-show metrics wandb-sync wandb-test trackio-test: install
	@exec $(PY) -m adamwprune.configure track $@ $(SETTINGS)

test: install  ## Run the tests (under 4 minutes on 2 cores)
	$(PY) -m pytest -n auto $(ARGS)

test-slow: install  ## Run the slow tests too
	$(PY) -m pytest -m "not gpu and not multigpu" $(ARGS)

faults: install  ## Kill, corrupt, fill and forge, and count what breaks: TIER=long for an hour of it
	$(PY) -m tests.faults --tier $(TIER) $(ARGS)

golden: install  ## Rewrite the golden curve of the tests
	$(PY) -m tests.golden.curve

lint: install  ## Check style and types
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

coverage: install  ## Measure the branches of the core that the unmarked tests take
	$(PY) -m coverage erase && $(PY) -m coverage run -m pytest $(ARGS) && $(PY) -m coverage combine --quiet && $(PY) -m coverage report

install: $(VENV)/.installed  ## Create .venv with the pinned dependencies

$(VENV)/.installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14) and "Python 3.10 to 3.13 is needed, this is %d.%d; set PYTHON=" % sys.version_info[:2])'
	@echo "installing the pinned dependencies into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[all,test]'
	@touch $@

install-locked:  ## As install, each file of each package checked against the SHA-256 in locks/; TORCH=cpu
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --require-hashes --requirement locks/build.txt
	@$(PY) -m pip install --quiet --require-hashes --no-build-isolation --requirement locks/base.txt --requirement locks/$(TORCH).txt
	@$(PY) -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.installed

help:  ## List these targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

clean:  ## Remove .venv; runs in outputs/ and multirun/ are never touched
	rm -rf $(VENV)
