# Stateless Fleet. `make` prints what there is to do.
.DEFAULT_GOAL := help
.PHONY: help demo run test test-machines test-server test-rows-fleet test-rows-agents test-fast test-fast-fleet test-fast-rest check lock clean bench-boot bench-build bench-cycle bench-fleet bench-fanout setup-run setup-lab setup-test setup-bench
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup-run:
	@scripts/setup run
setup-lab:
	@scripts/setup run lab
setup-test:
	@scripts/setup run lab test
setup-bench:
	@scripts/setup run lab bench

demo: setup-lab ## build an image, boot two virtual PCs from it and show them on the board
	@$(PYTHON) -m tests.lab.demo

run: setup-run ## the server alone: web, gateway, workers, clock and a private Redis
	@$(PYTHON) manage.py up

# Two lanes side by side, one for each processor that a small machine has, and the next where one has ended; each line with the name of
# its lane.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
LANES := $(MAKE) --no-print-directory --keep-going -j2
PYTEST := $(PYTHON) -u -m pytest -v -p tests.failures --durations=20
FAILURES := $(CURDIR)/var/failures
MACHINES := tests/lab tests/initrd tests/daemon
AS_LANE = 2>&1 | (trap '' INT; exec sed -u 's/^/$(@:test-%=%) | /')
FAST := -m "not slow and not lab and not build and not browser"
ROWS := $(PYTHON) -m tests.postgres -- $(PYTEST) -m "not lab and not build and not browser and not once"

test: setup-test ## the whole suite, on SQLite and PostgreSQL, with real builds, boots and browsers
	@rm -rf $(FAILURES) && mkdir -p $(FAILURES)
	@export FLEET_TEST_FAILURES=$(FAILURES); $(LANES) test-machines test-server test-rows-fleet test-rows-agents || $(PYTHON) -m tests.failures $(FAILURES) $$? 4 # runs of pytest
test-machines:
	@$(PYTEST) $(MACHINES) $(AS_LANE)
test-server:
	@$(PYTEST) $(MACHINES:%=--ignore=%) $(AS_LANE)
test-rows-fleet:
	@$(ROWS) tests/fleet tests/images tests/board tests/trust $(AS_LANE)
test-rows-agents:
	@$(ROWS) tests/agents $(AS_LANE)

test-fast: setup-test ## what takes less than a minute
	@$(LANES) test-fast-fleet test-fast-rest
test-fast-fleet:
	@$(PYTEST) $(FAST) tests/fleet tests/images tests/board $(AS_LANE)
test-fast-rest:
	@$(PYTEST) $(FAST) --ignore=tests/fleet --ignore=tests/images --ignore=tests/board $(AS_LANE)

check: setup-test ## linters, types, imports, shell, templates, migrations, deploy checks
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	shellcheck -x scripts/setup scripts/check-deploy .ci/run images/initrd/init images/initrd/mkroot images/initrd/mkroot-bind images/initrd/mkroot-overlay images/initrd/modprobe images/checker/guest/trace images/checker/guest/report $$(git ls-files 'images/initrd/*.sh')
	djade --check --target-version 5.2 $$(git ls-files 'templates/*.html')
	@mkdir -p var # where the database would be: the history of one that cannot be opened is a warning
	$(PYTHON) manage.py makemigrations --check --dry-run
	scripts/check-deploy

bench-boot: setup-bench ## a boot beside live-boot, LTSP and dracut
	@$(PYTHON) -m tests.bench.boot
bench-build: setup-bench ## a build beside plain mmdebstrap and mksquashfs
	@$(PYTHON) -m tests.bench.build
bench-cycle: setup-lab ## a cycle of a full home beside that of an empty one
	@$(PYTHON) -m tests.bench.cycle
DATABASE := postgres
bench-fleet: CLIENTS := 10000
bench-fleet: setup-test ## a fleet of CLIENTS=10000 on DATABASE=postgres (or sqlite): cold start, idle, a cycle of all, a killed gateway
	@$(PYTHON) -m tests.bench.fleet --clients $(CLIENTS) --database $(DATABASE)
bench-fanout: CLIENTS := 5000
bench-fanout: setup-test ## one message to CLIENTS=5000 clients, beside mosquitto, NATS and Salt
	@$(PYTHON) -m tests.bench.fanout --clients $(CLIENTS)

lock: ## write requirements*.txt anew from pyproject.toml (needs uv)
	uv pip compile -q pyproject.toml --generate-hashes --no-header --no-emit-index-url --annotation-style line --python-version 3.11 -o requirements.txt
	uv pip compile -q pyproject.toml --group dev -c requirements.txt --generate-hashes --no-header --no-emit-index-url --annotation-style line --python-version 3.11 -o requirements-dev.txt

clean: ## remove what was built, the demo's data and the virtual environment
	rm -rf var .venv
