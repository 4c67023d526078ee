# Everything a newcomer needs: `make demo`, `make test`. uv is installed first where it is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# uv may be on the PATH, or in the environment that `make` set up for it.
UV_HOME := .venv-uv
UV := $(shell command -v uv 2>/dev/null || echo $(UV_HOME)/bin/uv)
RUN := $(UV) run

MODEL ?= meta-llama/Llama-3.1-8B-Instruct
QWEN_MODEL ?= Qwen/Qwen2.5-0.5B-Instruct
DATA ?= mmlu
OUTPUT_DIR ?= kva_result/hdf5
RESULT_FILE ?= kva_mmlu.h5
PYTEST_ARGS ?=

.PHONY: help demo demo-compare test test-gpu test-slow test-lowest lint chromium llamafactory analysing_mmlu_llama analysing_mmlu_qwen2 docs benchmarks benchmarks-gpu clean

help: ## Show this list
	@grep -hE '^[a-z_0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-24s %s\n", $$1, $$2}'

$(UV_HOME)/bin/uv:
	{ python3 -m venv $(UV_HOME) && $(UV_HOME)/bin/pip install --quiet uv; } \
		|| python3 -m pip install --quiet --target $(UV_HOME) uv \
		|| { echo "uv cannot be installed: install python3-venv or uv itself, and run make again" >&2; exit 2; }

demo: $(UV) ## Teach the tiny world new facts, from analysis to a restored model
	$(RUN) loki demo --output runs/demo --overwrite

demo-compare: $(UV) ## The same, beside full fine-tuning, LoRA and random rows
	$(RUN) loki demo --compare --output runs/demo-compare --overwrite

test: $(UV) ## The fast tests (under 10 minutes on 2 cores)
	$(RUN) pytest -n 2 $(PYTEST_ARGS)

test-gpu: $(UV) ## The tests that need a CUDA device
	$(RUN) pytest -m gpu $(PYTEST_ARGS)

test-slow: llamafactory chromium ## The slow tests: several processes, killed processes, long training, LlamaFactory
	$(RUN) --extra deepspeed pytest -n 2 --dist loadfile -m slow $(PYTEST_ARGS)

test-lowest: $(UV) ## The fast tests with the oldest supported releases, in an environment of their own
	UV_PROJECT_ENVIRONMENT=.venv-lowest $(UV) venv --quiet --allow-existing --python 3.11 .venv-lowest
	VIRTUAL_ENV=.venv-lowest $(UV) pip install --quiet --resolution lowest-direct --editable . --group dev
	.venv-lowest/bin/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(UV) ## Ruff and mypy
	$(RUN) ruff check
	$(RUN) ruff check --preview --select PLW1514 src  # text files are UTF-8 on every system
	$(RUN) ruff format --check
	$(RUN) mypy

chromium: ## Debian's Chromium, for the tests of the report (as root; where that is not possible they are left out)
	command -v chromedriver > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } \
		|| echo "Chromium cannot be installed here: the tests of the report in a browser are left out" >&2

llamafactory: $(UV) ## An environment for LlamaFactory 0.9.5 with the releases it needs, in .venv-llamafactory
	$(UV) venv --quiet --allow-existing --python 3.11 .venv-llamafactory
	VIRTUAL_ENV=.venv-llamafactory $(UV) pip install --quiet --editable ".[llamafactory,deepspeed]"
	.venv-llamafactory/bin/llamafactory-cli version

analysing_mmlu_llama: $(UV) ## The published analysis of a Llama model on MMLU (MODEL=..., DATA=..., OUTPUT_DIR=...)
	$(RUN) accelerate launch --mixed_precision bf16 analyse_mmlu_llama.py --model_path $(MODEL) \
		--output_dir $(OUTPUT_DIR)/$(notdir $(MODEL)) --result_file $(RESULT_FILE) --write_mode w --data $(DATA)

analysing_mmlu_qwen2: $(UV) ## The published analysis of a Qwen2 model on MMLU (QWEN_MODEL=..., DATA=..., OUTPUT_DIR=...)
	$(RUN) accelerate launch --mixed_precision bf16 analyse_mmlu_qwen2.py --model_path $(QWEN_MODEL) \
		--output_dir $(OUTPUT_DIR)/$(notdir $(QWEN_MODEL)) --result_file $(RESULT_FILE) --write_mode w --data $(DATA)

docs: $(UV) ## The documentation site, into site/ (strict)
	$(RUN) --group docs mkdocs build --strict

benchmarks: $(UV) ## Speed and memory of KVA beside Captum, and of a training step beside LoRA
	$(RUN) python benchmarks/kva.py
	$(RUN) python benchmarks/training_step.py

benchmarks-gpu: $(UV) ## The same on a CUDA device: Llama-3.1-8B's shape in bfloat16; training in bfloat16
	$(RUN) python benchmarks/kva.py --shape llama-3.1-8b
	$(RUN) python benchmarks/training_step.py --device cuda

clean: ## Remove environments and caches, not results
	rm -rf .venv .venv-uv .venv-lowest .venv-llamafactory uv.lock site .pytest_cache .mypy_cache .ruff_cache .hypothesis
