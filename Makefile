# make demo   eight workers train one model on this machine, some vanish, two lie
# make test   the tests
# make soak   the long proofs: hundreds of kills, many seeds, millions of inputs
# make senses what a worker can tell of a desktop, with a real X server and D-Bus daemon (xvfb, xdotool, dbus-daemon)
# make check  lint, types, import directions, generated code and tables, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test soak senses lint check format generate clean
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
	$(BIN)/python -m pytest -m soak -s

senses: $(READY)
	@for tool in Xvfb xdotool dbus-daemon; do command -v $$tool > /dev/null || { echo "make senses needs $$tool: sudo apt-get install xvfb xdotool dbus-daemon"; exit 1; }; done
	$(BIN)/python -m pytest -m senses

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
