# `make demo` and `make test` work on any machine with Python. `make help` lists the targets.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
FULL_STAMP := $(VENV)/.installed-full
PRETRAIN_STAMP := $(VENV)/.installed-pretrain

CONFIG := configs/shapes/mask_rcnn_grc_pvt.py
SHAPES := data/shapes
DEMO := work_dirs/demo
CHECKPOINT := $(DEMO)/epoch_5.pth
# make demo OPTIONS='KEY=VALUE ...': more entries for --cfg-options.
OPTIONS ?=
# Only the last checkpoint is kept: each has 200 MB.
CFG_OPTIONS := --cfg-options default_hooks.checkpoint.max_keep_ckpts=1 $(OPTIONS)
CLASSES := data/shapes_classes
PRETRAIN := work_dirs/demo_pretrain
CLASSIFIER := $(PRETRAIN)/classifier/epoch_3.pth

.PHONY: help env env-full env-pretrain demo demo-pretrain test test-fast test-gpu test-stack coverage test-slurm lint format \
	tables docs clean-demo
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

env: $(STAMP) ## Create .venv and install everything (minutes, no compiler)

env-full: $(FULL_STAMP) ## The same with compiled mmcv, for ops that no recipe here uses (7 to 20 minutes on two cores)

env-pretrain: $(PRETRAIN_STAMP) ## Add mmpretrain to .venv, for pre-training on ImageNet (less than a minute)

$(STAMP): requirements.txt requirements-full.txt pyproject.toml tools/install.sh
	bash tools/install.sh $(VENV)
	@touch $@

$(FULL_STAMP): requirements.txt requirements-full.txt pyproject.toml tools/install.sh
	bash tools/install.sh --full $(VENV)
	@touch $(STAMP) $@

$(PRETRAIN_STAMP): $(STAMP) requirements-pretrain.txt
	$(PY) -m pip install -r requirements-pretrain.txt
	@touch $@

demo: env ## Train on generated images, evaluate box and mask mAP, and draw predictions (minutes on two cores)
	@test -f $(SHAPES)/annotations/instances_val.json || $(PY) tools/make_shapes.py $(SHAPES)
	@test -f $(CHECKPOINT) || $(PY) tools/train.py $(CONFIG) --work-dir $(DEMO) --resume $(CFG_OPTIONS)
	$(PY) tools/test.py $(CONFIG) $(CHECKPOINT) --work-dir $(DEMO)/test --out $(DEMO)/predictions.pkl $(CFG_OPTIONS)
	$(PY) tools/draw_predictions.py $(CONFIG) $(DEMO)/predictions.pkl --out $(DEMO)/predictions.png
	$(PY) tools/plot_run.py $(DEMO) --out $(DEMO)/curves.png
	@echo
	@echo 'Ground truth, predictions: $(DEMO)/predictions.png'
	@echo 'Loss and mAP over time:    $(DEMO)/curves.png'
	@echo 'The detector:              $(CHECKPOINT)'

demo-pretrain: env-pretrain ## Pre-train a backbone, then train detectors with it and from scratch, three seeds each (minutes)
	@test -f $(CLASSES)/val/circle/000300.png || $(PY) tools/make_shapes.py $(CLASSES) --classification
	@test -f $(SHAPES)/annotations/instances_val.json || $(PY) tools/make_shapes.py $(SHAPES)
	@test -f $(CLASSIFIER) || $(PY) tools/pretrain.py configs/pretrain/shapes/grc_pvt.py \
		--work-dir $(PRETRAIN)/classifier --resume $(CFG_OPTIONS)
	$(PY) tools/convert_checkpoint.py $(CLASSIFIER) $(PRETRAIN)/backbone.pth \
		--config configs/pretrain/shapes/mask_rcnn_grc_pvt.py
	PRETRAINED=$(PRETRAIN)/backbone.pth $(PY) tools/study.py studies/shapes_pretrain_pvt.yml \
		--work-dir $(PRETRAIN)/detectors --jobs 2
	@echo
	@echo 'Both APs: $(PRETRAIN)/detectors/summary.md'

# make test PYTEST='...': what else pytest is told.
PYTEST ?=
test: env ## Run the tests (no network, no GPU)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto $(PYTEST)

test-fast: PYTEST += -m 'not slow'
test-fast: test ## Run the tests that take no longer than seconds: all rooms, in 3 minutes on two cores

test-gpu: env ## Run the tests that need a CUDA GPU. Without one they are left out, and the output lists them
	$(PY) -m pytest tests/gpu -n0 -v $(PYTEST)

# make test-stack STACK=floor PYTHON=python3.12
STACK ?= floor
test-stack: ## Run the tests in another environment: STACK=floor, torch-2.14 or fork, PYTHON=python3.12
	STACK=$(STACK) bash tools/install.sh .venv-$(STACK)
	OMP_NUM_THREADS=1 .venv-$(STACK)/bin/python -m pytest -n auto $(PYTEST)

# Apart from `test`: on Python 3.11 the tracer makes tests of pure Python 1.4 times as long.
coverage: PYTEST += --cov --cov-report=term:skip-covered
coverage: test ## Run all tests, and print which share of the package they run

test-slurm: env ## Run the launchers' tests under Slurm on this machine (Debian's slurm-wlm and munge, as root)
	$(PY) -m pytest tests/tools/test_slurm.py -rs

lint: env ## Check style with ruff, and types of mmgrc.models with mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: env ## Format with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tables: env ## Count parameters, update the metafiles and the tables of models in the docs
	$(PY) -m dev.make_tables

docs: env ## Build the documentation into build/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

clean-demo: ## Remove the data and results of both demos
	rm -rf $(SHAPES) $(CLASSES) $(DEMO) $(PRETRAIN)
