# make run: set up and run everything.   make test: set up and run the tests.
#
#   VENV=.venv          the environment to make and use
#   PYTHON=python3      the Python to make it with: 3.11, 3.12 or 3.13
#   PORT=4200           of Prefect's server, for make server, deploy and worker
#   SLOTS=N             runs side by side on this machine, for make deploy; by default one per GPU
#   SPACE=10            GiB that must be free before anything is installed
#   TORCH_INDEX=URL     where to take torch from, if the default build does not suit the machine (see README)
#
# The tests on another Python: make test PYTHON=python3.13 VENV=.venv313

VENV ?= .venv
PYTHON ?= python3
SPACE ?= 10
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

export PATH := $(BIN):$(PATH)
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false

# Prefect's server answers this machine alone, its own pages alone, and whoever has the login in .prefect/login.
PORT ?= 4200
SLOTS ?= $(or $(filter-out 0,$(words $(wildcard /dev/nvidia[0-9]*))),1)
LOGIN := .prefect/login
server: export PREFECT_SERVER_API_HOST := 127.0.0.1
server: export PREFECT_SERVER_API_PORT := $(PORT)
server: export PREFECT_SERVER_CORS_ALLOWED_ORIGINS := http://127.0.0.1:$(PORT)
server: export PREFECT_SERVER_API_AUTH_STRING ?= $(shell cat $(LOGIN) 2>/dev/null)
deploy worker: export PREFECT_API_URL ?= http://127.0.0.1:$(PORT)/api
deploy worker: export PREFECT_API_AUTH_STRING ?= $(shell cat $(LOGIN) 2>/dev/null)
deploy: export PROJECT_ROOT := $(CURDIR)

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
	@echo "open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	mlflow ui --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

server: $(READY) $(LOGIN) ## Prefect on http://127.0.0.1:4200; its pages ask for the line in .prefect/login
	@python3 -c 'import socket; socket.create_server(("127.0.0.1", $(PORT))).close()' 2>/dev/null || \
	    { echo "port $(PORT) is in use or is none; take another, for deploy and worker too: PORT=4300" >&2; exit 1; }
	prefect server start

deploy: $(READY)          ## the pool and the deployments of prefect.yaml, on that server
	prefect work-pool inspect gpu >/dev/null 2>&1 || \
	    prefect work-pool create gpu --type process --base-job-template flows/pool.json
	prefect work-pool set-concurrency-limit gpu $(SLOTS)
	prefect --no-prompt deploy --all
	prefect automation inspect "crashed flow runs" >/dev/null 2>&1 || \
	    prefect automation create --from-file flows/crashed.yaml

# Prefect turns the first SIGTERM into SIGINT, which a shell ignores in what it starts in the background.
INTERRUPTIBLE := import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])
worker: $(READY)          ## runs what is scheduled, on this machine
	python -c '$(INTERRUPTIBLE)' prefect worker start --pool gpu

$(LOGIN):
	@mkdir -p $(@D)
	@umask 077; python3 -c 'import secrets; print("efface:" + secrets.token_urlsafe(24))' >$@

venv: $(READY)

# What make cannot install, with one line and its remedy.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

$(READY): constraints.txt pyproject.toml
	@command -v git >/dev/null || { echo "git is not installed, and DVC needs it: install git first"; exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "$(CURDIR) is no git repository, and DVC needs \
	one: clone the project, or run: git init && git add . && git commit -m start"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "PYTHON=$(PYTHON) is not installed, expected Python 3.11, 3.12 \
	or 3.13: install one, or name yours: make ... PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "PYTHON=$(PYTHON) is \
	$$($(PYTHON) --version 2>&1 | head -1), expected Python 3.11, 3.12 or 3.13: make ... PYTHON=python3.12"; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); [ "$$free" -ge $(SPACE) ] || { echo "$(CURDIR) \
	has $$free GiB free, expected $(SPACE) for torch and what a run makes: make room, or: make ... SPACE=4 for a CPU build"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) $(TORCH) &&) \
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]" || { echo "pip could not install the \
	environment (its reason is above). Without a network: on a machine with one, pip download -d wheels -c \
	constraints.txt hatchling editables '.[test]', then here: make ... PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels"; exit 1; }
	touch $(READY)

clean-venv:
	rm -rf $(VENV)
