# Every target sets up .venv by itself, from the lock and with nothing but Python.
PYTHON ?= python3
UV ?= uv
TORCH ?= torch==2.13.0
TRITON ?= tritonclient[http]==2.73.0
RAY ?= ray[serve]==2.60.0
KSERVE ?= kserve==0.21.0
SCHEMATHESIS ?= schemathesis==4.32.5

# More processes than four gain nothing on a large machine.
PYTEST = JAX_PLATFORMS=cpu .venv/bin/python -m pytest -q -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# One after another, also under make -j.
.NOTPARALLEL:

.PHONY: demo test test-all lint docs serve-docs graph notebook lock clean

demo: .venv/installed
	.venv/bin/python train.py --config=configs/digits.py --workdir=runs/digits
	.venv/bin/urnet calibrate --workdir=runs/digits
	.venv/bin/python evaluate.py --workdir=runs/digits
	@echo; echo 'Serve it: .venv/bin/urnet serve --workdir=runs/digits'

test: lint
	$(PYTEST) -m 'not slow'

# Everything, compiled as a user's run is: slow tests and those that need PyTorch, Triton's client,
# Ray, or KServe's client and Schemathesis, which want other versions of what the lock has, so that
# they have a place of their own.
test-all: lint
	.venv/bin/python -c 'import torch, tritonclient, ray.serve' 2>/dev/null \
	  || .venv/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) '$(TRITON)' \
	    '$(RAY)'
	.venv/clients/bin/python -c 'import kserve, schemathesis' 2>/dev/null || { \
	  $(PYTHON) -m venv .venv/clients && .venv/clients/bin/python -m pip install --quiet \
	    --disable-pip-version-check '$(KSERVE)' '$(SCHEMATHESIS)'; }
	$(PYTEST) --optimized

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports --no-logo
	$(MKDOCS) build --strict

# Material announces MkDocs 2 at every start unless told not to.
MKDOCS = NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs

docs: .venv/installed
	$(MKDOCS) build --strict
	@echo "Open site/index.html in a browser."

serve-docs: .venv/installed
	$(MKDOCS) serve

# Draws who imports whom, and lists the rooms of each wing, from the code.
graph: .venv/installed
	.venv/bin/python tools/import_graph.py

# Takes the cells from the .py, runs them on the demo's run and keeps what they show in the .ipynb.
notebook: .venv/installed
	.venv/bin/jupytext --quiet --to ipynb --update notebooks/gate_usage.py
	.venv/bin/jupyter-execute --inplace notebooks/gate_usage.ipynb

# Keeps the versions that the lock has where they still fit; delete the lock to renew them all.
lock:
	@command -v $(UV) >/dev/null || { echo "make lock needs uv, which is not on the PATH: run 'pip install uv' and make again." >&2; exit 1; }
	$(UV) pip compile --universal --fork-strategy fewest --generate-hashes --no-emit-index-url \
	  --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "'$(PYTHON)' is not Python 3.11 or newer, which urnet_jax needs: name one that is, as in 'make PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot create virtual environments: on Debian and Ubuntu run 'apt install python3-venv' as root and make again." >&2; exit 1; }
	@echo "Installing into .venv, once (a minute or two, about 350 MB of downloads)."
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
