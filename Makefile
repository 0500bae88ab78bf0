# make demo   eight workers train one model on this machine, some vanish, two lie
# make test   the tests
# make soak   the long proofs: hundreds of kills, many seeds, millions of inputs
# make senses what a worker can tell of a desktop, with a real X server and D-Bus daemon (xvfb, xdotool, dbus-daemon)
# make page   the run's page in a real browser, and its metrics in a real Prometheus (apt-get install chromium prometheus)
# make peers  the peer-to-peer network with real nodes (hivemind and its p2pd), some behind NATs in network namespaces (root)
# make check  lint, types, import directions, generated code and tables, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test soak senses page peers service-check lint check format generate clean
.DEFAULT_GOAL := check

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Barnraise needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# byzfl, which the rules are tested against, asks for torchvision and more for parts that nobody loads here
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps byzfl
	@touch $@

demo: $(READY)
	$(BIN)/barnraise demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

soak: $(READY)
	$(BIN)/python -m pytest -m soak -s -o faulthandler_timeout=0

senses: $(READY)
	@for tool in Xvfb xdotool dbus-daemon; do command -v $$tool > /dev/null || { echo "make senses needs $$tool: sudo apt-get install xvfb xdotool dbus-daemon"; exit 1; }; done
	$(BIN)/python -m pytest -m senses

# axe-core finds what somebody who cannot see, or has no mouse, would stumble over; used by these tests alone.
AXE := $(VENV)/axe-4.10.3.min.js

$(AXE): $(READY)
	cd $(VENV) && npm pack --silent axe-core@4.10.3 && tar -xzf axe-core-4.10.3.tgz package/axe.min.js
	echo "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb  $(VENV)/package/axe.min.js" | sha256sum --check --quiet
	mv $(VENV)/package/axe.min.js $@

page: $(READY) $(AXE)
	promtool check rules deploy/prometheus/alerts.yml
	AXE=$(AXE) $(BIN)/python -m pytest -m page

peers: $(READY)
	@$(BIN)/python -c 'import hivemind' 2>/dev/null || { echo "make peers needs hivemind, which make setup installs on Linux and macOS"; exit 1; }
	@if [ "$$(id -u)" != 0 ]; then echo "make peers makes network namespaces, so it needs root: sudo make peers"; exit 1; fi
	@if ! command -v ip > /dev/null || ! command -v nft > /dev/null; then \
	  echo "installing iproute2 and nftables"; \
	  apt-get update -q > /dev/null && apt-get install -y -q iproute2 nftables > /dev/null || \
	  { echo "make peers needs ip and nft; where there is apt: sudo apt-get install iproute2 nftables"; exit 1; }; \
	fi
	$(BIN)/python -m pytest -m peers -s
	$(BIN)/python -m pytest -s tests/peering/test_sidecar.py

# a worker's unit must not be more exposed than 3.0 of 10; needs systemd-analyze (Debian: apt-get install systemd)
service-check: $(READY)
	systemd-analyze security --offline=true --threshold=30 --no-pager tests/worker/golden/barnraise-worker.service

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protocol.generate --check
	$(BIN)/python -m benchmarks.tables --check
	$(BIN)/python -m coordinator.settings_reference --check
	$(BIN)/python -m moe.families.reference --check

check: lint test

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(READY)
	$(BIN)/python -m protocol.generate
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m coordinator.settings_reference
	$(BIN)/python -m moe.families.reference

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .hypothesis barnraise-demo barnraise-demo-[0-9]*
