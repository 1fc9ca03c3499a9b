# Everything that is done with this project from a command line; `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(sort $(wildcard protos/cunho/v1/*.proto))
GOOGLEAPIS := .build/googleapis
# What was released, for the tests of upgrades.
RELEASED := tests/robustness/released
# Where generated code goes: client, or a folder to compare with it.
OUT := client

# A worker for each core, with a PostgreSQL of its own; whole files, since most of them share a service. Files in their
# order: the shortest come last.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

export VIRTUAL_ENV := $(CURDIR)/.venv
export GRPC_ENABLE_FORK_SUPPORT := 0
# Without bytecode that is kept, each start of a server compiles a hundred files.
unexport PYTHONDONTWRITEBYTECODE
# A warning about newer versions would ask a registry for them.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# Generated with an old compiler on purpose: generated code runs on its own protobuf and newer, never on an older one,
# so the compiler's age is the client's reach.
PROTOC = $(BIN)/uvx -q --from grpcio-tools==1.76.0 --with mypy-protobuf==5.1.0 --with 'setuptools<81' \
         python -m grpc_tools.protoc

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS=":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- using it

.PHONY: setup
setup: .venv/installed ## install everything into .venv; the others do it when needed

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cunho needs Python 3.11 or newer; name one with make PYTHON=...")'
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: requirements.lock pyproject.toml client/pyproject.toml | $(BIN)/uv
	@$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --build-constraints requirements.lock requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e client -e .
	@touch $@

.PHONY: run
run: .venv/installed ## serve on 127.0.0.1:50051; what it needs it brings
	@exec $(BIN)/cunho-server serve

.PHONY: demo
demo: .venv/installed ## watch two accounts make, share, launch and delete an image, on the running server or one of its own
	@$(BIN)/python client/demo.py

# --- changing it

.PHONY: test
test: lint check-protos ## lint, check the generated code, run every test
	$(BIN)/pytest $(PARALLEL)

.PHONY: robustness
robustness: .venv/installed ## attack the service for as long as it takes: docs/robustness.md says how
	ROBUSTNESS=long $(BIN)/pytest tests/robustness

.PHONY: bench
bench: .venv/installed ## measure what calls cost beside what they must: docs/performance.md
	@$(BIN)/python -m bench $(BENCH)

.PHONY: bench-growth
bench-growth: .venv/installed ## measure what calls cost at 10,000, 100,000 and 1,000,000 images
	@$(BIN)/python -m bench --growth $(BENCH)

.PHONY: lint
lint: .venv/installed $(GOOGLEAPIS) ## check style, types, layers and protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	@for each in $(RELEASED)/*.binpb; do $(BIN)/buf breaking protos --against $$each || exit; done
	$(MAKE) --no-print-directory --jobs=2 mypy pyright

# At once: each is mostly one thread.
.PHONY: mypy pyright
mypy pyright: .venv/installed
	$(BIN)/$@

$(GOOGLEAPIS): .venv/installed
	@rm -rf $@
	@$(BIN)/python protos/googleapis.py $@

# Lines may be too long until ruff has formatted them, which comes last.
.PHONY: protos
protos: .venv/installed $(GOOGLEAPIS) ## regenerate the client's code from protos/
	@rm -rf $(OUT)/cunho/v1 && mkdir -p $(OUT)/cunho/v1
	@$(PROTOC) -I protos -I $(GOOGLEAPIS) --python_out=$(OUT) --mypy_out=quiet:$(OUT) \
	  --grpc_python_out=$(OUT) --mypy_grpc_out=quiet:$(OUT) \
	  --include_source_info --include_imports --descriptor_set_out=.build/cunho.binpb $(PROTOS)
	@find $(OUT)/cunho/v1 -name '*_pb2_grpc.py*' ! -name '*_service_pb2_grpc.py*' -delete
	@$(BIN)/python protos/client.py .build/cunho.binpb $(OUT)/cunho
	@$(BIN)/ruff check --quiet --fix --ignore E501 \
	  $(OUT)/cunho/methods.py $(OUT)/cunho/aio/methods.py $(OUT)/cunho/v1/__init__.py
	@$(BIN)/ruff format --quiet $(OUT)/cunho/methods.py $(OUT)/cunho/aio/methods.py $(OUT)/cunho/v1/__init__.py

.PHONY: check-protos
check-protos: ## fail if the client's code is not what protos/ says
	@$(MAKE) --no-print-directory protos OUT=.build/client
	@diff client/cunho/methods.py .build/client/cunho/methods.py \
	  && diff client/cunho/aio/methods.py .build/client/cunho/aio/methods.py \
	  && diff -r -x __pycache__ client/cunho/v1 .build/client/cunho/v1 \
	  || { echo "client/cunho is not what protos/ says: run make protos"; exit 1; }

.PHONY: docs
docs: .venv/installed $(GOOGLEAPIS) ## rewrite the pages that say what the code says
	@$(BIN)/python -m docs.generate docs

.PHONY: site
site: .venv/installed ## build the documentation into .build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: lock
lock: $(BIN)/uv ## renew requirements.lock from the pyproject files
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-package cunho \
	  --group dev --group site --all-extras client/pyproject.toml pyproject.toml -o requirements.lock

.PHONY: wheels
wheels: .venv/installed ## build both distributions into dist/
	@for each in client .; do $(BIN)/uv build --quiet --wheel --no-build-isolation --out-dir dist $$each || exit; done

.PHONY: release
release: wheels $(GOOGLEAPIS) ## keep the wheels and the API of this version, for the tests of upgrades
	@version=$$($(BIN)/cunho-server version); \
	if [ -e $(RELEASED)/cunho-$$version.binpb ]; then \
	  echo "$$version was released before: raise the version in both pyproject.toml files"; exit 1; \
	fi; \
	cp dist/cunho-$$version-*.whl dist/cunho_server-$$version-*.whl $(RELEASED) \
	  && $(BIN)/buf build --exclude-source-info -o $(RELEASED)/cunho-$$version.binpb
