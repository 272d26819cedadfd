# Two commands for users: `make demo`, `make test`. For developers: check, test-integration, bench, clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := pipelines runners connectors simulator transforms schemas
DEMO := build/demo
EVENTS ?= 200000
SEED ?= 7
KILLS ?= 20

.PHONY: install demo test check test-integration test-chaos bench clean

install: $(STAMP)

# Reinstalled only when the dependencies change. Python 3.11 to 3.13; name another interpreter with PYTHON=python3.12.
$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "headrace needs Python 3.11 to 3.13; name one: make PYTHON=python3.12"; exit 1; }
	@echo "installing into $(VENV) (about three minutes, 1.5 GB) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@echo "simulating $(EVENTS) events with faults …"
	@$(BIN)/headrace simulate --events $(EVENTS) --seed 7 --anomaly bot_flood@+20m --anomaly payment_outage@+40m/5m \
		--output $(DEMO)/events.jsonl --truth $(DEMO)/truth.json
	@$(BIN)/headrace key create $(DEMO)/key
	@$(BIN)/headrace run batch --input $(DEMO)/events.jsonl --output $(DEMO)/out --key-file $(DEMO)/key \
		--now "$$($(BIN)/python -c 'import json; print(json.load(open("$(DEMO)/truth.json"))["now"])')"

test: $(STAMP)
	@$(BIN)/pytest -m "not integration" -n auto

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p build/src/headrace
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/src/headrace/$$room; done
	@cd build/src && ../../$(BIN)/mypy --config-file ../../pyproject.toml --namespace-packages --explicit-package-bases -p headrace

test-integration: $(STAMP)
	@$(BIN)/pytest -m integration

test-chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos.run --seed $(SEED) --kills $(KILLS)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.windows
	@$(BIN)/python -m benchmarks.nightly
	@$(BIN)/python -m benchmarks.replay

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
