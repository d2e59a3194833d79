# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
HARNESS_READY := .venv-harness/ready
PEERS_READY := .venv-peers/ready
LITGPT_READY := .venv-litgpt/ready
TIKTOKEN_READY := .venv-tiktoken/ready
LLAMA_CPP_READY := .venv-llama-cpp/ready

.PHONY: help setup demo test test-all lint docs bench bench-tasks bench-scoring bench-training bench-preparation bench-quality bench-inference clean

help:
	@echo "make demo      set up .venv, pretrain a small GPT-2 on the embedded text, generate from it"
	@echo "make test      set up .venv, lint, type-check, run the tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make bench     run the short benchmarks (benchmarks/README.md)"
	@echo "make bench-tasks"
	@echo "               pretrain a base model, fine-tune it for every task, and compare (90 minutes)"
	@echo "make bench-scoring"
	@echo "               compare the speed of eval with lm-evaluation-harness and transformers (30 minutes)"
	@echo "make bench-training NANOGPT=PATH"
	@echo "               compare the speed of pretrain with Trainer, nanoGPT and litgpt (an hour)"
	@echo "make bench-preparation"
	@echo "               compare the speed of tokenizing with run_clm.py and tiktoken (5 minutes)"
	@echo "make bench-quality NANOGPT=PATH"
	@echo "               compare time and quality of pretrain with nanoGPT (45 minutes)"
	@echo "make bench-inference"
	@echo "               compare the speed of generate with transformers, CTranslate2, llama.cpp (an hour)"
	@echo "make lint      ruff and mypy alone"
	@echo "make docs      write the generated pages in docs/ anew"
	@echo "make clean     remove all .venv* and caches; runs/ stays"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("gptcli needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/gptcli pretrain --config configs/pretrain/demo.yaml --output-dir runs/demo --overwrite
	$(BIN)/gptcli generate "I love programming because" --model runs/demo/model --max-length 100 --temperature 0.7 --seed 1

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core, each of one thread, and of up to 2 GB. "auto" would count two logical cores as one.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m ''

docs: $(READY)
	$(BIN)/python docs/generate.py

bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/time_to_quality.py quick
	$(BIN)/python benchmarks/checkpoint_overhead.py

# On the data sets of benchmarks/README.md.
bench-tasks: $(READY)
	test -d runs/english/model || $(BIN)/python benchmarks/finetuning.py pretrain
	$(BIN)/python benchmarks/finetuning.py
	$(BIN)/python benchmarks/instructions.py
	$(BIN)/python benchmarks/question_answering.py
	$(BIN)/python benchmarks/classifying.py

bench-scoring: $(READY) $(HARNESS_READY)
	$(BIN)/python benchmarks/scoring.py

# In an environment of its own: lm-evaluation-harness is only there to be compared with.
$(HARNESS_READY): constraints.txt
	$(PYTHON) -m venv .venv-harness
	.venv-harness/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'lm-eval[hf]==0.4.13'
	@touch $(HARNESS_READY)

bench-training: $(READY) $(PEERS_READY) $(LITGPT_READY)
	$(BIN)/python benchmarks/training.py $(if $(NANOGPT),--nanogpt $(NANOGPT))

# Of the same torch; litgpt wants an older huggingface_hub than ours, and requests, which it does not ask for.
$(PEERS_READY): constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch transformers accelerate datasets ctranslate2
	@touch $(PEERS_READY)

$(LITGPT_READY): constraints.txt
	$(PYTHON) -m venv .venv-litgpt
	.venv-litgpt/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt) 'litgpt==0.5.13' requests
	@touch $(LITGPT_READY)

bench-preparation: $(READY) $(TIKTOKEN_READY)
	$(BIN)/python benchmarks/preparation.py

$(TIKTOKEN_READY):
	$(PYTHON) -m venv .venv-tiktoken
	.venv-tiktoken/bin/python -m pip install --quiet --disable-pip-version-check 'tiktoken==0.14.0'
	@touch $(TIKTOKEN_READY)

bench-quality: $(READY)
	$(BIN)/python benchmarks/time_to_quality.py shakespeare wikitext --nanogpt $(NANOGPT)

bench-inference: $(READY) $(PEERS_READY) $(LITGPT_READY) $(LLAMA_CPP_READY)
	$(BIN)/python benchmarks/inference.py

# Built for this processor, which takes a C++ compiler and some minutes.
$(LLAMA_CPP_READY): constraints.txt
	$(PYTHON) -m venv .venv-llama-cpp
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-llama-cpp/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'llama-cpp-python'
	@touch $(LLAMA_CPP_READY)

clean:
	rm -rf .venv .venv-harness .venv-peers .venv-litgpt .venv-tiktoken .venv-llama-cpp build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
