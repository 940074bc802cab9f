# Every target sets up .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS ?=
PYTEST ?= -n auto --dist loadfile

.PHONY: help run test lab docs export bench gpu-test gpu-wheels gpu-notebooks lint clean

help:           ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): settings.ini pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; another: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

run: $(READY)            ## run every notebook on the backend found (CUDA, else the emulator)
	$(BIN)/flashmoe-nb run $(NOTEBOOKS)

test: $(READY)           ## run the tests; those that need a GPU are left to gpu-test
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST)

lab: $(READY)            ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --config=.jupyter/jupyter_lab_config.py

docs: $(READY)           ## build the site and serve it on this machine
	$(BIN)/flashmoe-nb docs

export: $(READY)         ## write flashmoe_nb/, kernels/ and README.md from the notebooks
	$(BIN)/flashmoe-nb export

bench: $(READY)          ## measure, and write nbs/results/
	$(BIN)/flashmoe-nb bench

gpu-test: $(READY)       ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

gpu-wheels: $(READY)     ## fetch what a GPU machine without Jupyter and network needs, into .wheels/
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/gpu-notebooks wheels

gpu-notebooks:           ## run the notebooks on a GPU machine and store their outputs in nbs/ (GPU_HOST=user@host for a remote one)
	.ci/gpu-notebooks

lint: $(READY)           ## check the style of the Python code
	$(BIN)/ruff check

clean:                   ## remove what was built, but not .venv
	rm -rf .run .wheels build dist docs/_site *.egg-info
