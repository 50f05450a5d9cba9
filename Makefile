# Thin names over train.py. `make help` lists them.

# Any Python from 3.10 to 3.13.
PYTHON ?= python3
VENV ?= .venv
# The experiment (a file of conf/experiment) and the tracker that `make` trains with.
DEFCONFIG ?= lenet5-mnist5k
TRACKER ?= none
# Further overrides, such as ARGS="seed=2 trainer.max_epochs=5".
ARGS ?=

RUN := $(VENV)/bin/python

.PHONY: train test test-slow golden lint install help clean
.DEFAULT_GOAL := train

train: install  ## Train the default run: LeNet-5 on real MNIST digits, pruned to 90 %
	$(RUN) train.py experiment=$(DEFCONFIG) 'tracker=$(TRACKER)' $(ARGS)

test: install  ## Run the tests (under 4 minutes on 2 cores)
	$(RUN) -m pytest -n auto $(ARGS)

test-slow: install  ## Run the slow tests too
	$(RUN) -m pytest -m "not gpu and not multigpu" $(ARGS)

golden: install  ## Rewrite the golden curve of the tests
	$(RUN) -m tests.golden.curve

lint: install  ## Check style
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

install: $(VENV)/.installed  ## Create .venv with the pinned dependencies

$(VENV)/.installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14) and "Python 3.10 to 3.13 is needed, this is %d.%d; set PYTHON=" % sys.version_info[:2])'
	@echo "installing the pinned dependencies into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[trackio,wandb,hub,test]'
	@touch $@

help:  ## List these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

clean:  ## Remove .venv; runs in outputs/ and multirun/ are never touched
	rm -rf $(VENV)
