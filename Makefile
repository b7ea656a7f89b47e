# Two commands do everything: `make demo` and `make test`. Both set up .venv first; doing so again costs nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
WORKERS ?= 2
PYTHON_FOLDERS := policies config pipelines tuners evaluators deployers serving controller backtest demo

.PHONY: help
help: ## say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## install everything into .venv
	@scripts/setup.sh

.PHONY: demo
demo: setup ## watch a model decay and be renewed, on real flights, in five minutes
	@.venv/bin/ratchet demo

.PHONY: demo-stack
demo-stack: ## the same on PostgreSQL, Prometheus, Alertmanager and a registry (installs them by apt)
	@scripts/setup.sh --test
	@.venv/bin/ratchet demo --stack

.PHONY: test
test: ## run all tests (ARGS="-k images" for some, WORKERS=0 for one after the other)
	@scripts/setup.sh --test
	.venv/bin/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: check
check: setup ## style, types and import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(PYTHON_FOLDERS) bench
	.venv/bin/lint-imports --no-logo

.PHONY: bench
bench: setup ## measure, beside a peer, into bench-report/results.json (ONLY=name for one)
	.venv/bin/python -m bench $(if $(ONLY),--only $(ONLY))

.PHONY: lock
lock: ## resolve pyproject.toml into requirements.lock (UPGRADE=1 for the newest of everything)
	@UPGRADE=$(UPGRADE) scripts/lock.sh

.PHONY: clean
clean: ## delete reports and caches
	rm -rf demo-report bench-report build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find $(PYTHON_FOLDERS) bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## delete .venv as well
	rm -rf .venv
