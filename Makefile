# Two commands do it all on a fresh machine with Python 3.11: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Numba and the FFTs use this many threads each; workers are processes of their own.
export OMP_NUM_THREADS ?= 2
export NUMBA_NUM_THREADS ?= 2
# Where it is set, every process compiles every module anew, for three seconds: tests and benchmarks start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run install test test-faults lint typecheck check butler middleware audit quality bench bench-compare \
  container-packages deployment-tools format constraints clean

help:  ## Show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.installed  ## Install what is missing and run a small simulated night end to end
	$(BIN)/alertprod demo

install: $(VENV)/.installed-dev  ## Make the environment for development

test: $(VENV)/.installed-dev  ## Everything CI runs: lint, types, layers, tests
	$(MAKE) --no-print-directory lint typecheck middleware check

lint: $(VENV)/.installed-dev  ## Style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(VENV)/.installed-dev  ## Types
	$(BIN)/mypy

# More processes than cores: daemons' tests mostly wait. Whoever runs out of tests takes over some of another's.
TEST_PROCESSES ?= 3
check: $(VENV)/.installed-dev  ## The tests alone; ARGS passes options on to pytest
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal $(ARGS)

test-faults: $(VENV)/.installed-dev  ## The long versions: faults on a real Kafka, random inputs; one part: ARGS="-k broker"
	$(BIN)/pytest -m faults $(ARGS)
	PYTHONPATH=tests $(BIN)/python tests/daemon_site.py

butler: middleware  ## The tests of the adapter for Rubin's middleware alone; ARGS as for check
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal tests/butler $(ARGS)

middleware:  ## Install Rubin's middleware; where it cannot be had, its tests are skipped (in CI that is a failure)
	@$(MAKE) --no-print-directory $(VENV)/.installed-lsst || { test "$$CI" != true && \
	echo "the extra lsst cannot be installed here, see above: tests/butler will be skipped"; }

AUDIT := .cache/audit
audit:  ## Known vulnerabilities of the pinned packages, as far as the package index tells
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1; } || \
	echo "skipped: pip-audit cannot be installed here, see above"
	@if test -x $(AUDIT)/bin/pip-audit; then .ci/audit $(AUDIT)/bin/pip-audit ops/constraints.txt; fi

SEEDS ?= 1
REGIMES ?= ordinary
OUT ?= .cache/quality
quality: $(VENV)/.installed-bench  ## Science quality against truth and peers: SEEDS=11-15 SIZE=4096 REGIMES=all OUT=DIR, or DATA=DIR
	$(BIN)/python tests/benchmarks/quality --seeds $(SEEDS) --size $(or $(SIZE),1024) --regimes $(REGIMES) --out $(OUT) $(if $(DATA),--real $(DATA)) $(ARGS)

BENCH_OUT ?= .cache/speed
# All of it takes a while; what names a SIZE is measured at that one, with 400 transients in 4096 squared and two threads.
BENCH_SIZES := 4096,1024,2048,8192
BENCH_SOURCES := 400,130,1300,4000,13000
BENCH_THREADS := 2,1
bench: $(VENV)/.installed-bench  ## Speed and memory beside peers; quick: SIZE=1024 REPEAT=1 STAGES=exposure; SOURCES=… THREADS=… BASE=…
	$(BIN)/python tests/benchmarks/speed --out $(BENCH_OUT) --sizes $(or $(SIZE),$(BENCH_SIZES)) \
	  --sources $(or $(SOURCES),$(if $(SIZE),400,$(BENCH_SOURCES))) --threads $(or $(THREADS),$(if $(SIZE),2,$(BENCH_THREADS))) \
	  --repeat $(or $(REPEAT),3) --parts $(or $(STAGES),all) $(if $(BASE),--base $(BASE)) $(ARGS)

bench-compare: $(VENV)/.installed-bench  ## Ratios of the newest figures of make bench to stored ones: BASE=FILE or a commit that was measured
	$(BIN)/python tests/benchmarks/speed --out $(BENCH_OUT) --only-compare --base $(BASE) $(ARGS)

container-packages: $(VENV)/.installed-dev  ## Whether what the container image installs can be had in the pinned versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed -c ops/constraints.txt \
	  "$$(sed -n "s/.*-c ops\/constraints.txt '\(.*\)'.*/\1/p" ops/container/Dockerfile)"

TOOLS := $(CURDIR)/.cache/tools
KEDA := github.com/kedacore/keda/v2@v2.17.0
deployment-tools:  ## What checks the deployment, from Go's proxy (Go 1.22 or newer) and npm; without it those tests are skipped
	GOBIN=$(TOOLS)/bin go install sigs.k8s.io/kustomize/kustomize/v5@v5.6.0
	GOBIN=$(TOOLS)/go go install github.com/compose-spec/compose-go/v2/cmd@v2.6.0
	cp $(TOOLS)/go/cmd $(TOOLS)/bin/compose-go
	mkdir -p $(TOOLS)/keda
	cp -f "$$(go mod download -json $(KEDA) | sed -n 's/.*"Dir": "\(.*\)",/\1/p')"/config/crd/bases/keda.sh_*.yaml $(TOOLS)/keda/
	chmod u+w $(TOOLS)/keda/*
	@if command -v npm >/dev/null; then npm install --prefix $(TOOLS)/grafana --no-audit --no-fund --ignore-scripts \
	  @grafana/schema@11.6.0 typescript@5.5.4; else echo "no npm: the dashboard is not held against Grafana's types" >&2; fi

format: $(VENV)/.installed-dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.installed-dev  ## Write the versions that were tested together
	$(BIN)/pip list --format=freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|uv)==' > ops/constraints.txt

clean:  ## Remove the environment and every cache
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "alertprod needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml ops/constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ops/constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml ops/constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ops/constraints.txt -e '.[test,dev,parquet,postgres]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml ops/constraints.txt | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ops/constraints.txt -e '.[test,dev,parquet,postgres,bench]'
	@touch $@

$(VENV)/.installed-lsst: pyproject.toml ops/constraints.txt | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ops/constraints.txt -e '.[test,dev,parquet,postgres,lsst]'
	@touch $@
