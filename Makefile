# make setup | demo | test | check | bench: each works from a fresh clone with
# Python 3.11 or later. VENV names the environment, PYTHON the interpreter that
# makes it.
VENV ?= .venv
PYTHON ?= python3
# The interpreters that `make dist` tries the wheels on; those that are missing are named.
PYTHONS ?= python3.11 python3.12 python3.13
# Processes that share the tests; each takes up to 4 GB.
WORKERS ?= 2
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
# Without bytecode in files each process compiles torch anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup mnist demo gallery test test-fast containers check docs format stubs manifests baseline bench dist fuzz faults soak gpu clean

bin := $(VENV)/bin
packages := proto clients web runtime serve bench export train umbrella
ready := $(VENV)/.ready

help: ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(ready) ## Install everything into VENV, and bring MNIST where it can be had
	VENV=$(VENV) scripts/fetch_mnist.sh || echo "without MNIST" >&2

$(ready): VERSION constraints.txt pyproject.toml $(packages:%=%/pyproject.toml)
	test -x $(bin)/uv || { $(PYTHON) -m venv $(VENV) && $(bin)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv; }
	$(bin)/uv pip install --python $(bin)/python --constraint constraints.txt --group dev \
	    -e proto -e clients -e web -e 'runtime[cpu,images,openvino,remote,signing]' -e 'serve[http]' -e 'bench[loadgen]' -e 'train[weights,transformers,graphs]' -e export
	touch $@

mnist: $(ready) ## Bring MNIST into the cache
	VENV=$(VENV) scripts/fetch_mnist.sh

demo: mnist ## Train, export, serve and explain, on real pictures, into demo-output/; PAGE=127.0.0.1:7860 shows the page
	PAGE=$(PAGE) VENV=$(VENV) scripts/demo.sh demo-output

gallery: mnist ## Draw docs/gallery.md and its pictures, in some minutes
	$(bin)/python scripts/gallery.py

test: mnist ## Run the tests
	$(bin)/pytest --numprocesses $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder --ignore tests/pages --durations=30

test-fast: mnist ## Run the tests that take no more than seconds
	$(bin)/pytest --numprocesses $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder --ignore tests/pages -m "not network and not slow and not engines"

fuzz: demo-output/repository/efficientnet_lite0/1/manifest.json ## Send changed pictures, frames and messages; FUZZ="--seconds 15" is the short form
	$(bin)/uv pip install --quiet --python $(bin)/python --constraint constraints.txt --group fuzz
	$(bin)/python -m tests.fuzz $(FUZZ)

faults: demo-output/repository/efficientnet_lite0/1/manifest.json ## Break what stands around a server, into docs/reliability.md; FAULTS=--short is the short form
	$(bin)/python -m tests.faults $(FAULTS)

soak: demo-output/repository/efficientnet_lite0/1/manifest.json ## Ask a server in every way for an hour with each transport; SOAK="--minutes 2" is the short form
	$(bin)/python -m tests.soak --planted --minutes 2 --transport grpcio
	$(bin)/python -m tests.soak $(SOAK)

gpu: $(ready) ## Compare and time every engine on this machine's GPU, or on its processor, into gpu-output/
	$(bin)/python -m benchmarks.gpu $(GPU)

containers: $(ready) ## Build the images and prove the composition, with a Docker daemon
	$(bin)/pytest tests/deploy/containers/prove_containers.py

check: $(ready) ## Lint, types, import boundaries, pages against results, protocol
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	PATH=$(abspath $(bin)):$$PATH lint-imports
	$(bin)/pytest --quiet tests/pages
	cd proto && $(abspath $(bin))/buf lint
	cd proto && $(abspath $(bin))/buf breaking --against released.binpb
	generated=$$(mktemp -d) && trap 'rm -rf "$$generated"' EXIT && VENV=$(VENV) scripts/generate_stubs.sh "$$generated" \
	    && cd "$$generated" && find . -type f | while read -r stub; do \
	        diff -u "$(CURDIR)/proto/$$stub" "$$stub" || { echo "proto/$$stub is stale: make stubs" >&2; exit 1; }; done

docs: $(ready) ## Build the site of docs/ and of the reference, into site/
	$(bin)/uv pip install --quiet --python $(bin)/python --constraint constraints.txt --group docs
	$(bin)/mkdocs build --strict

format: $(ready) ## Format the code and mend what the linter can
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

stubs: $(ready) ## Generate the stubs from the .proto files
	VENV=$(VENV) scripts/generate_stubs.sh proto

manifests: $(ready) ## Render what kustomize builds upon from the chart
	$(bin)/python scripts/render_manifests.py

baseline: $(ready) ## Take today's protocol as the one that must not break
	cd proto && $(abspath $(bin))/buf build --exclude-source-info --output released.binpb

bench: $(ready) demo-output/repository/efficientnet_lite0/1/manifest.json ## Compare backends, into bench-output/, and measure the cost of a request
	$(bin)/foveate bench --repository demo-output/repository --model efficientnet_lite0 \
	    --batch 1,8 --outputs logits,cam --rounds 3 --out bench-output
	$(bin)/python -m benchmarks.request_cost

dist: $(ready) ## Build wheels and source distributions into dist/, and try them on PYTHONS
	VENV=$(VENV) scripts/dist.sh dist $(PYTHONS)

demo-output/repository/efficientnet_lite0/1/manifest.json: | $(ready)
	$(bin)/foveate export package:efficientnet_lite0 --repository demo-output/repository --name efficientnet_lite0

clean: ## Remove what the targets made, but for VENV
	rm -rf demo-output bench-output dist fuzz-output gpu-output site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
