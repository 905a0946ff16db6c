# Needs make and Python 3.11 to 3.13, nothing else. `make demo` on a fresh machine shows the whole loop.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTO := liveshelf/v1/recommendation.proto
TFS_PROTO := serving/tfserving.proto
# $(PROTO) imports google/rpc/status.proto, which googleapis-common-protos carries
GOOGLEAPIS = $(shell $(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])')

.DEFAULT_GOAL := help
.PHONY: help install demo test test-compose check chaos chaos-trainer bench-features bench-serving bench-sessions bench-trainer faults proto lock clean

help:
	@echo "make demo     start every part, seed a shop, learn from three clicks; Ctrl-C stops all (ONCE=1: stop by itself)"
	@echo "make test     make check, then the whole test suite, by WORKERS=2 at once; it starts its own servers (ARGS='-k name' is passed to pytest)"
	@echo "make test-compose   docker-compose.yml on an engine of its own: the loop, faults, backup, dashboards (LIVESHELF_SKIP_COMPOSE=1: not)"
	@echo "make check    format, lint, types, import rules, and that generated code is current"
	@echo "make chaos    kill -9 of every part under load, then every feature row compared (KILLS=200 SEED=1 EVENTS=50000)"
	@echo "make chaos-trainer    kill -9 of the trainer at KILLS=20 moments, then every weight compared, bit for bit, with an undisturbed run"
	@echo "make bench-features   how fast and how small the features are, each figure beside its bar"
	@echo "make faults   break each part of scoring under load, and print the table: requests, failed, degraded, p99"
	@echo "make bench-serving    how fast scoring is, alone, under load, overloaded and while versions swap; one JSON object last"
	@echo "make bench-sessions   how long a question to the session index takes, over 500,000 sessions"
	@echo "make bench-trainer    100,000 new examples, from the log to a version that serves; one JSON object last"
	@echo "make proto    generate the Python code of $(PROTO)"
	@echo "make lock     choose and lock the versions of all dependencies again"
	@echo "make clean    remove $(VENV), caches and build output (not .liveshelf, which holds data)"

install: $(STAMP)

# Made again when the lock or the package's metadata changes; without changes this costs nothing.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON) here; install Python 3.11 to 3.13, or name it: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("Liveshelf needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Try: make $(MAKECMDGOALS) PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	@$(BIN)/liveshelf demo $(if $(ONCE),--once)

test: check
	$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder --ignore=tests/compose $(ARGS)

test-compose: $(STAMP)
	@tests/compose/run.sh $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m grpc_tools.protoc -I. -I$(GOOGLEAPIS) --python_out=$(VENV) --pyi_out=$(VENV) --grpc_python_out=$(VENV) $(PROTO)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(VENV) --pyi_out=$(VENV) $(TFS_PROTO)
	@for file in $(PROTO:.proto=_pb2.py) $(PROTO:.proto=_pb2.pyi) $(PROTO:.proto=_pb2_grpc.py) $(TFS_PROTO:.proto=_pb2.py) $(TFS_PROTO:.proto=_pb2.pyi); do \
		diff -u $$file $(VENV)/$$file || { echo "generated code is not current: make proto" >&2; exit 1; }; done

# OPTIONS: --lost-writes (the store also loses its last writes), --break MODE (broken agents: must go red).
chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos --kills $(or $(KILLS),200) --seed $(or $(SEED),1) --events $(or $(EVENTS),50000) $(OPTIONS)

# OPTIONS="--break offsets_first" (a trainer that is broken on purpose: must go red).
chaos-trainer: $(STAMP)
	@$(BIN)/python -m tests.chaos.trainer --kills $(or $(KILLS),20) --seed $(or $(SEED),1) $(OPTIONS)

bench-features: $(STAMP)
	@$(BIN)/python -m tests.bench.features

bench-serving: $(STAMP)
	@$(BIN)/python -m tests.bench.all_serving

# Every part is broken under load; prints the table of what shoppers saw.
faults: $(STAMP)
	@$(BIN)/python -m pytest -q -s tests/integration/test_faults.py

bench-sessions: $(STAMP)
	@$(BIN)/python -m tests.bench.sessions

bench-trainer: $(STAMP)
	@$(BIN)/python -m tests.bench.trainer $(OPTIONS)

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. -I$(GOOGLEAPIS) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(TFS_PROTO)

# The resolver is not itself in the lock: it would then hold back what it is to choose.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --python-version 3.11 --universal --all-extras --generate-hashes --no-header --upgrade \
		--no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.liveshelf/*' -prune -exec rm -rf {} +
