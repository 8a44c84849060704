# Everything a fresh machine needs: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test lint bench clean

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.done  ## train, inspect, export and bench on data that ships with the package
	rm -rf $(DEMO)
	$(BIN)/sparsify train --out $(DEMO)/run
	$(BIN)/sparsify inspect $(DEMO)/run --plot $(DEMO)/densities.svg
	$(BIN)/sparsify export $(DEMO)/run --format onnx --out $(DEMO)/digits.onnx
	$(BIN)/sparsify export $(DEMO)/run --format safetensors --out $(DEMO)/digits.safetensors
	$(BIN)/sparsify bench $(DEMO)/digits.onnx

test: lint
	$(BIN)/pytest

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.done  ## a 90 % sparse WRN-22-2 in every installed runtime
	$(BIN)/sparsify bench wrn-22-2-cifar10

clean:
	rm -rf $(VENV) $(DEMO) runs dist build
