# What one does with this project on one's own machine; `make` alone lists it.
# Needs uv, or a Python 3.13 with venv; nothing is installed outside .venv.

SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A .venv that was left half made is made anew.
.DELETE_ON_ERROR:

.PHONY: help start test lint format lock sbom deploy destroy infra-test bench soak fuzz screenshots clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

start: $(VENV)/.for-start local.settings.json ## the app and a simulated model on this machine; PORT=8080 for another port
	@$(PYTHON) -m local $(if $(PORT),--port $(PORT))

test: $(VENV)/.for-tests ## unit and end-to-end tests; ARGS="-k health" for some of them
	@$(PYTHON) -m pytest -n 3 --dist loadfile $(ARGS)

lint: $(VENV)/.for-tests ## ruff and mypy
	@failed=0; \
	$(PYTHON) -m ruff check . || failed=1; \
	$(PYTHON) -m ruff format --check . || failed=1; \
	$(PYTHON) -m mypy || failed=1; \
	exit $$failed

format: $(VENV)/.for-tests ## let ruff format and mend what it can
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

lock: $(VENV)/.for-lock ## pin and hash what is deployed, by pyproject.toml; ARGS=--upgrade for what has come since
	@$(COMPILE) --group deployed --output-file requirements.txt $(ARGS)
	@$(COMPILE) --group local --no-deps --output-file local/requirements.txt $(ARGS)

sbom: $(VENV)/.for-start ## relay.cdx.json: what is deployed, and under which licences (CycloneDX)
	@$(PYTHON) infra/bill_of_materials.py > relay.cdx.json
	@echo "Wrote relay.cdx.json."

deploy: ## make everything in Azure and publish the app; ARGS="-var-file env/prod.tfvars"
	@terraform -chdir=infra init -input=false
	@terraform -chdir=infra apply $(ARGS)

destroy: ## remove all of it from Azure
	@terraform -chdir=infra destroy $(ARGS)

infra-test: ## validate and test the deployment against a mocked Azure
	@terraform -chdir=infra init -backend=false -input=false
	@terraform -chdir=infra validate
	@terraform -chdir=infra test

bench: $(VENV)/.for-bench ## the relay beside the usual way of doing it; ARGS="--quick" or "flood requests"
	@$(PYTHON) -m tests.bench $(ARGS)

soak: $(VENV)/.for-tests ## 10,000 streams, all faults at once; STREAMS=300 for fewer, SOAK_SEED=… for the same again
	@SOAK_STREAMS=$(or $(STREAMS),10000) $(PYTHON) -m pytest -p no:xdist -s tests/end_to_end/test_soak.py

fuzz: $(VENV)/.for-fuzz ## anything at all into what reads the bytes of others; ARGS="chat --seconds 600"
	@$(PYTHON) -m tests.fuzz $(ARGS)

screenshots: $(VENV)/.for-tests ## the README's pictures of the chat page (needs Chromium)
	@$(PYTHON) -m tests.browser.screenshots

clean: ## remove .venv and what the tools leave behind; local.settings.json stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

local.settings.json:
	@cp local.settings.json.example $@
	@echo "Wrote local.settings.json from the example: it points at the simulated model."

# uv brings a Python 3.13 along; otherwise one must be there. A pyenv shim answers to its name without having it, so that
# each candidate is asked for its version.
$(PYTHON):
	@if command -v uv >/dev/null && uv venv --quiet --python 3.13 $(VENV); then \
		echo "Made $(VENV) with uv."; \
		exit 0; \
	fi; \
	for candidate in python3.13 python3 python; do \
		if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then \
			$$candidate -m venv --clear $(VENV) && echo "Made $(VENV) with $$($$candidate --version)." && exit 0; \
		fi; \
	done; \
	echo "Python 3.13 was not found. Install uv (https://docs.astral.sh/uv/), which brings it along," >&2; \
	echo "or Python 3.13 with its venv module (Debian and Ubuntu: python3.13-venv), and run make again." >&2; \
	exit 1

# One line names each package as it comes; errors are pip's or uv's own.
define install
	@set -o pipefail; \
	if command -v uv >/dev/null; then \
		uv pip install --python $(PYTHON) $(foreach file,$(1),-r $(file)); \
	else \
		echo "Installing what $(1) name:"; \
		$(PYTHON) -m pip --version &>/dev/null || $(PYTHON) -m ensurepip >/dev/null; \
		$(PYTHON) -m pip install --no-input $(foreach file,$(1),-r $(file)) \
			| awk '/^Collecting / { printf "  %s", $$2; fflush() } END { print "" }'; \
	fi
	@touch $@
endef

# For every system that a developer may have; without any address of where it was looked up.
COMPILE := $(PYTHON) -m uv pip compile --quiet --universal --python-version 3.13 --generate-hashes \
	--annotation-style line --custom-compile-command "make lock"

$(VENV)/.for-lock: | $(PYTHON)
	@$(PYTHON) -m pip --version &>/dev/null || $(PYTHON) -m ensurepip >/dev/null
	@$(PYTHON) -m pip install --quiet uv==0.13.9
	@touch $@

$(VENV)/.for-start: requirements.txt local/requirements.txt | $(PYTHON)
	$(call install,requirements.txt local/requirements.txt)

# On its own: pip asks for hashes of all or of none.
$(VENV)/.for-tests: $(VENV)/.for-start tests/requirements.txt tests/browser/requirements.txt
	$(call install,tests/requirements.txt tests/browser/requirements.txt)

$(VENV)/.for-bench: tests/bench/requirements.txt $(VENV)/.for-tests
	$(call install,tests/bench/requirements.txt)

$(VENV)/.for-fuzz: tests/fuzz/requirements.txt $(VENV)/.for-tests
	$(call install,tests/fuzz/requirements.txt)
