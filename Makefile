# make run: set up and run everything.   make test: set up and run the tests.
#
#   VENV=.venv          the environment to make and use
#   PYTHON=python3      the Python to make it with: 3.11, 3.12 or 3.13
#   TORCH_INDEX=URL     where to take torch from, if the default build does not suit the machine (see README)
#
# The tests on another Python: make test PYTHON=python3.13 VENV=.venv313

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

export PATH := $(BIN):$(PATH)
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
deploy worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api

.PHONY: run flow test test-all check dev lint ui server deploy worker venv clean-venv

run: $(READY)             ## everything, through DVC
	dvc repro

flow: $(READY)            ## the same, as a Prefect flow
	python -m flows.pipeline

test: $(READY)            ## the fast tests
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(READY)        ## the slow ones too: whole runs, killed and resumed
	OMP_NUM_THREADS=1 python -m pytest

check: dev lint           ## style and types

dev: $(READY)
	pip install --quiet -c constraints.txt -e ".[dev]"

lint:
	ruff check .
	ruff format --check .
	mypy

ui: $(READY)              ## MLflow's pages on http://127.0.0.1:5000
	mlflow ui --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

server: $(READY)          ## Prefect on http://127.0.0.1:4200
	prefect server start --host 127.0.0.1

deploy: $(READY)          ## the pool and the deployments of prefect.yaml, on that server
	python -m flows.deploy

worker: $(READY)          ## runs what is scheduled, on this machine
	python -m flows.worker

venv: $(READY)

# What make cannot install, with one line and its remedy.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

$(READY): constraints.txt pyproject.toml
	@command -v git >/dev/null || { echo "git is not installed, and DVC needs it: install git first"; exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "$(CURDIR) is no git repository, and DVC needs \
	one: clone the project, or run: git init && git add . && git commit -m start"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "PYTHON=$(PYTHON) is \
	$$($(PYTHON) --version 2>&1 | head -1), expected Python 3.11, 3.12 or 3.13: make ... PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $(READY)

clean-venv:
	rm -rf $(VENV)
