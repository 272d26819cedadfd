# Everything a user needs: `make demo`, `make test`. For developers: check, bench, test-integration, clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install check test
install: $(STAMP)

$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/src/headrace
	for room in pipelines runners connectors simulator transforms schemas; do ln -sfn ../../../$$room build/src/headrace/$$room; done
	cd build/src && ../../$(BIN)/mypy --config-file ../../pyproject.toml --namespace-packages --explicit-package-bases --no-error-summary -p headrace

test: $(STAMP)
	$(BIN)/pytest -m "not integration"
