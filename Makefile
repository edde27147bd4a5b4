# make demo          train twice, evaluate, report: minutes on two CPU cores, nothing needed beforehand
# make pretrained    the study `pretrained` of a real model (extra: example); BUDGET=cpu takes hours, and is resumed by the same command
# make test          all tests that two CPU cores can run
# make test-lowest   fast tests, a training, an evaluation, a study and the extras with the lowest versions that pyproject.toml allows
# make test-newest   the same with the newest torch, transformers and DeepSpeed, whatever pyproject.toml allows
# make test-stress   many repetitions of injected faults: minutes to hours
# make test-gpu      every DeepSpeed JSON on a GPU, resumed as well; the guidance kernels
# make test-cluster  hosts and a Slurm made on this machine (root; installs packages with apt-get)
# make check         formatting, lint, types
# make docs          the documentation site in build/site; a broken link is an error
# Each creates .venv if it is missing. PYTHON chooses the interpreter, RANKS the demo's ranks, PORT their rendezvous,
# TRAIN further settings of the demo's runs (TRAIN="--train.steps 50"), JOBS test processes (each may start two ranks).

PYTHON ?= python3
RANKS ?= 2
JOBS ?= 2
PORT ?= 29500
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO := runs/demo
DEEPSPEED = $(BIN)/deepspeed --num_accelerators $(RANKS) --master_port $(PORT) --log_level warning

export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
# One version of torch for .venv, so that everybody's is the same. `make PIP_CONSTRAINT= …` takes the newest allowed.
export PIP_CONSTRAINT ?= $(CURDIR)/.ci/constraints.txt
FAST := not processes and not slow and not stress and not cluster and not gpu
# One training, evaluation and study as processes.
WHOLE := tests/train/test_outcomes.py tests/evaluate/test_evaluate_ranks.py
# Uses of the extras, as processes. Those that are not in `test` come last, since they raise bounds of the others.
EXTRAS := tests/integrations tests/trackers tests/train/test_lora.py tests/train/test_lora_runs.py tests/train/test_variants.py \
    tests/distributed/test_mpirun.py

.PHONY: demo pretrained test test-fast test-lowest test-newest test-stress test-gpu test-cluster check docs clean

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(DEEPSPEED) launch/train.py --deepspeed ds_configs/zero2.json \
	    --name guided --output $(DEMO)/guided $(TRAIN)
	$(DEEPSPEED) launch/train.py --deepspeed ds_configs/zero2.json \
	    --name unguided --output $(DEMO)/unguided --guidance.weight 0 $(TRAIN)
	$(DEEPSPEED) launch/evaluate.py --model $(DEMO)/unguided/model --tasks demo --output $(DEMO)/unguided/evaluation
	$(DEEPSPEED) launch/evaluate.py --model $(DEMO)/guided/model --tasks demo --output $(DEMO)/guided/evaluation
	gaguide attention --model $(DEMO)/unguided/model --model $(DEMO)/guided/model --experiment 1-negation \
	    --layers 2 --heads 0 --output $(DEMO)/attention.png \
	    --text "The value is not a number, but a name can be bound to it. It does not change, but the list does."
	gaguide ablate --model $(DEMO)/unguided $(DEMO)/guided --methods mean --controls 1 --output $(DEMO)/guided/ablation
	gaguide report $(DEMO)/unguided $(DEMO)/guided --output $(DEMO)/report.html
	@echo "open $(DEMO)/report.html and $(DEMO)/attention.png"

DATA ?= ../shared/data
BUDGET ?= cpu
pretrained: $(VENV)/.installed
	DATA=$(DATA) examples/pretrained/run.sh $(BUDGET)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile \
	    -m '$(FAST)'

# An environment of its own, created fresh: what it was then is in build/lowest.txt or build/newest.txt.
test-lowest: UV_OPTIONS := --resolution lowest-direct
test-newest: UV_OPTIONS := --override build/unbounded.txt
test-lowest test-newest: INSTALL = build/venv-$*/bin/uv pip install --quiet --compile-bytecode --python build/venv-$*/bin/python $(UV_OPTIONS)
test-lowest test-newest: test-%:
	$(PYTHON) -m venv --clear build/venv-$*
	build/venv-$*/bin/python -m pip install --quiet 'uv>=0.9'
	printf 'torch\ntransformers\ndeepspeed\n' > build/unbounded.txt
	$(INSTALL) --editable '.[test]'
	build/venv-$*/bin/uv pip freeze --quiet --python build/venv-$*/bin/python > build/$*.txt
	PATH=$(CURDIR)/build/venv-$*/bin:$$PATH python -m pytest --numprocesses $(JOBS) --dist loadfile -m '$(FAST)'
	PATH=$(CURDIR)/build/venv-$*/bin:$$PATH python -m pytest $(WHOLE)
	PATH=$(CURDIR)/build/venv-$*/bin:$$PATH python -m pytest -m stress tests/study/test_run.py
	$(INSTALL) --editable '.[test,qlora,monitor,mlflow,trackio]'
	build/venv-$*/bin/uv pip freeze --quiet --python build/venv-$*/bin/python > build/$*-extras.txt
	PATH=$(CURDIR)/build/venv-$*/bin:$$PATH python -m pytest $(EXTRAS)

test-stress: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m stress

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python -m pytest tests/guidance

test-cluster: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m cluster tests/cluster $(CLUSTER)

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs/demo build/site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed
