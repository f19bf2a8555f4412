# The front door: `make` lists what there is.
#
#   PYTHON=python3.12   the interpreter of the new environment (3.10 to 3.12)
#   VENV=.venv          where the environment is made

VENV ?= .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
DISK_GB := 10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo web test test-slow check clean

help: ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [VENV=.venv]"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 12

install: $(READY) ## make the environment: 2 to 5 minutes once, 10 GB of disk
	@echo "Ready: $(VENV), $$($(BIN)/python --version)."

demo: $(READY) ## train, test and draw the demo: 8 to 16 minutes on 2 cores
	$(BIN)/python tools/demo.py

web: $(READY) work_dirs/demo/last_checkpoint ## a page in your browser: words in, boxes out; Ctrl-C ends it
	$(BIN)/python tools/web.py

test: $(READY) ## the tests, in two processes: about 12 minutes on 2 cores
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

test-slow: $(READY) ## the slow tests, which `make test` leaves out
	$(BIN)/python -m pytest tests -n 2 -m slow

check: $(READY) ## style and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove the environment and what the commands wrote
	if [ -e $(VENV)/.made-by-kdeov ]; then rm -rf $(VENV); fi
	rm -rf work_dirs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

work_dirs/demo/last_checkpoint: | $(READY)
	$(BIN)/python tools/demo.py

# The marker is written last: an interrupted installation starts again from nothing.
$(READY): setup.py constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" DISK_GB=$(DISK_GB) bash tools/install.sh
	@touch $@
