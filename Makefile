.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
PYTHON ?= python3
export GRPC_ENABLE_FORK_SUPPORT := 0
BIN := .venv/bin
PROTOS := $(sort $(wildcard protos/cunho/v1/*.proto))
GOOGLEAPIS := .build/googleapis

# Generated with an old compiler on purpose: generated code runs on its own protobuf and newer, never on an older one,
# so the compiler's age is the client's reach.
PROTOC = $(BIN)/uvx -q --from grpcio-tools==1.76.0 --with mypy-protobuf==5.1.0 --with 'setuptools<81' \
         python -m grpc_tools.protoc

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS=":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cunho needs Python 3.11 or newer; name one with make PYTHON=...")'
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e client -e .
	@touch $@

.PHONY: setup
setup: .venv/installed ## install everything into .venv

.PHONY: lock
lock: ## renew requirements.lock from the pyproject files
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-package cunho --group dev \
	  client/pyproject.toml pyproject.toml -o requirements.lock

$(GOOGLEAPIS): .venv/installed
	@rm -rf $@
	@$(BIN)/python protos/googleapis.py $@

.PHONY: protos
protos: .venv/installed $(GOOGLEAPIS) ## regenerate client/cunho/v1 from protos/
	rm -rf client/cunho/v1 && mkdir -p client/cunho/v1
	$(PROTOC) -I protos -I $(GOOGLEAPIS) --python_out=client --mypy_out=quiet:client \
	  --grpc_python_out=client --mypy_grpc_out=quiet:client \
	  --include_source_info --include_imports --descriptor_set_out=.build/cunho.binpb $(PROTOS)
	find client/cunho/v1 -name '*_pb2_grpc.py*' ! -name '*_service_pb2_grpc.py*' -delete
	$(BIN)/python protos/client.py .build/cunho.binpb client/cunho
	$(BIN)/ruff check -q --fix client/cunho/methods.py client/cunho/v1/__init__.py
	$(BIN)/ruff format -q client/cunho/methods.py client/cunho/v1/__init__.py
