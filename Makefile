# Each target makes .venv if it has to, and says what it does. `make PYTHON=python3.12 test` picks the Python.

.DEFAULT_GOAL := help
.PHONY: help demo test lab lint map slow gpu pretended browser colab clean install packages notebooks zip

# On Linux PyPI's torch brings gigabytes of CUDA; without an NVIDIA driver the CPU build does. A mirror can be named here.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed
LOG := $(VENV)/install.log
PIP := $(RUN) -m pip --disable-pip-version-check install --constraint constraints.txt

CANDIDATES := $(or $(PYTHON),$(RUN) python3 python3.13 python3.12 python3.11 python3.10)
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
BASE := $(firstword $(foreach python,$(CANDIDATES),$(shell $(python) -c '$(SUPPORTED)' 2>/dev/null && echo $(python))))
VERSION = $(if $(BASE),$(shell $(BASE) --version))
FOUND = $(shell $(or $(PYTHON),python3) --version 2>&1 | head -n 1)
# What .venv was made for: these files, this folder, this Python. While the stamp still says so there is nothing to do.
WANTED := $(shell { $(BASE) --version; pwd; cat pyproject.toml constraints.txt; } 2>/dev/null | cksum)
CPU_ONLY = $(shell test "$$(uname)" = Linux && ! command -v nvidia-smi >/dev/null && echo yes)

help:
	@echo "make demo    train a LoRA on the embedded base model: images, grid and file in demo-output/"
	@echo "make test    check the code and run the fast tests"
	@echo "make lab     open JupyterLab on the notebooks"
	@echo "make lint    check code and notebooks only"
	@echo "make map     write the lists of rooms and files in ARCHITECTURE.md"
	@echo "make slow    run the tests that take minutes"
	@echo "make gpu     run what needs a CUDA device, in at most 10 minutes; again: what is left; report in build/gpu"
	@echo "make pretended  run every GPU path on a device that calls itself CUDA and computes in host memory (needs g++)"
	@echo "make browser run the notebooks in a headless Chromium and leave screenshots in screenshots/"
	@echo "make colab   install on top of what Colab has preinstalled, check that none of it changes, and test there"
	@echo "make zip     pack the kit into lorakit.zip, for Colab: upload it to Google Drive or to Colab's Files"
	@echo "make notebooks SOURCE=https://…  write where the kit is published into the notebooks' first cells and badges"
	@echo "make clean   remove .venv, demo-output and what was built"

demo: install
	@echo "Running notebooks/0_quickstart.ipynb: images and files go to demo-output/ (2 to 6 minutes)."
	@$(RUN) -m lorakit demo

test: lint
	@echo "Running the fast tests, on up to four cores."
	@OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal \
		--durations=40 --durations-min=1 --junitxml=build/tests.xml

lab: install
	@echo "Opening JupyterLab on notebooks/ (Ctrl-C ends it)."
	@$(RUN) -m jupyterlab --allow-root notebooks

lint: install
	@echo "Checking code and notebooks with ruff."
	@$(RUN) -m ruff check

map: install
	@$(RUN) tests/builders/architecture.py

slow: install
	@echo "Running the slow tests (minutes)."
	@$(RUN) -m pytest -m slow

gpu: install
	@echo "On a CUDA device, in at most 10 minutes (again: what is left): gpu tests, twin runs, speed, memory, float16."
	@$(RUN) benchmarks/gpu.py

pretended: install
	@echo "Running every GPU path on a pretended CUDA device (2 minutes, and 20 s once to compile it)."
	@OMP_NUM_THREADS=1 PYTHONPATH=tests/pretended $(RUN) -m pytest -p pretended_cuda -m pretended \
		--numprocesses=auto --maxprocesses=4 --dist=worksteal \
		tests/pretended

browser: install
	@echo "Running the notebooks in JupyterLab in a headless Chromium; screenshots go to screenshots/ (minutes)."
	@$(RUN) -m pytest -m browser --numprocesses=2 --dist=loadfile tests/browser

colab: install
	@echo "Installing on top of Colab's packages of 2026-08-19 in build/colab, and running the core's tests there (minutes)."
	@$(RUN) tests/colab_install.py

zip:
	@echo "Packing what is committed into lorakit.zip."
	@git archive --format=zip --output=lorakit.zip HEAD

notebooks: install
	@echo "Writing the first cell and the badge of every notebook."
	@$(RUN) notebooks/first_cell.py $(SOURCE)

clean:
	@echo "Removing $(VENV), demo-output and what was built."
	@rm -rf $(VENV) demo-output lorakit.zip screenshots build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

install:
	@test "$$(cat $(STAMP) 2>/dev/null)" = "$(WANTED)" || $(MAKE) --no-print-directory packages

packages:
	@test -n "$(BASE)" || { echo "Python 3.10 to 3.13 is needed, and $(or $(PYTHON),python3) is: $(FOUND)." \
		"Name one that you have, e.g. make PYTHON=/usr/local/bin/python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) with $(VERSION) (1 to 3 minutes the first time)."
	@test "$$($(RUN) --version 2>/dev/null)" = "$(VERSION)" || $(BASE) -m venv --clear $(VENV)
	@rm -f $(STAMP)
	@{ $(if $(CPU_ONLY),$(PIP) --retries 1 --no-deps --index-url $(TORCH_CPU_INDEX) torch \
			|| echo "PyTorch's CPU build is not at $(TORCH_CPU_INDEX): PyPI's follows with 3 GB of CUDA (5 minutes).";) \
		$(PIP) --editable '.[dev]' && echo "$(WANTED)" >$(STAMP); } 2>&1 \
		| tee $(LOG) | grep --line-buffered -E -o "Downloading .* MB\)|^PyTorch's CPU.*"; test -f $(STAMP) \
		|| { tail -n 15 $(LOG); echo "The installation failed; all it said is in $(LOG)."; exit 1; } >&2
