# Two commands, each alone on a fresh Linux machine (Python 3.11 or newer, make, PyPI reachable, no GPU):
#
#   make serve    install, fetch the demo model, start the cluster, print its URLs
#   make test     install, then lint, types and every test that needs no GPU
#
# ARGS             handed to `glm-cluster serve`:      make serve ARGS="--tp 3"
# PYTHON           the interpreter .venv is made from: make test PYTHON=python3.12
# TORCH_INDEX_URL  where torch comes from, for machines without a GPU on which PyPI's torch is the (large) CUDA build:
#                  make serve TORCH_INDEX_URL=<an index with CPU builds>

PYTHON ?= python3
TORCH_INDEX_URL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A test that hangs is a failure, never a wait.
PYTEST := $(BIN)/python -m pytest --timeout=600
TORCH_PIN := $(shell sed -n '/^torch==/p' constraints.txt)
PROTO := glm_cluster/api/proto
# A second transformers with what it alone needs, beside the installed one: PYTHONPATH puts it first.
RC1 := $(VENV)/rc1
# Clients that others wrote, as an older openai among them wants it.
CLIENTS := $(VENV)/clients
# Schemas that others wrote.
STRUCTURED := $(VENV)/structured
RC1_PINS := transformers==5.0.0rc1 huggingface_hub==1.33.0 tokenizers==0.22.2 hf-xet==1.8.0

.DELETE_ON_ERROR:
.PHONY: serve test test-all lint smoke test-gpu test-install test-rc1 test-hostile test-structured test-clients fmt stubs install clean

serve: $(VENV)/.installed
	$(BIN)/glm-cluster serve $(ARGS)

# Fastest first. Every line must succeed; an empty selection (pytest's exit status 5) is a failure like any other.
test: lint
	$(PYTEST) tests/unit tests/contract -n 2
	$(PYTEST) tests/parallel -n 0
	$(PYTEST) tests/cluster -n 0 --durations=10 --ignore=tests/cluster/test_hostile.py
	$(MAKE) smoke

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# `python -O` strips assertions, pytest's too: a script that raises shows that nothing of ours hangs on one.
smoke: $(VENV)/.installed-test
	$(BIN)/python -O tests/smoke.py

test-gpu: $(VENV)/.installed-test
	$(PYTEST) tests/gpu -n 0

# `pip install .` into an empty environment: minutes, or many where torch is the CUDA build, so apart from `make test`.
test-install: $(VENV)/.installed-test
	$(PYTEST) tests/install -n 0 --timeout=3000

# The oracle of `make test` is transformers 5.23; the page that the classes follow is of 5.0.0rc1.
test-rc1: $(RC1)/.installed
	PYTHONPATH=$(RC1) $(PYTEST) tests/oracle -n 2

# A thousand requests that nobody should send, beside a stream that must not notice.
test-hostile: $(VENV)/.installed-test
	$(PYTEST) tests/cluster/test_hostile.py -n 0

# Hundreds of real schemas, each kept by what the demo model writes: greedy in an engine, then streamed through a cluster.
test-structured: $(STRUCTURED)/.installed
	PYTHONPATH=$(STRUCTURED) $(PYTEST) tests/structured -n 2 --ignore=tests/structured/test_streams.py
	PYTHONPATH=$(STRUCTURED) $(PYTEST) tests/structured/test_streams.py -n 0

# openai for Python and Node, LiteLLM, LangChain, Instructor, Pydantic AI, plain reflection and schemathesis drive a cluster.
test-clients: $(CLIENTS)/.installed
	PYTHONPATH=$(CLIENTS) $(PYTEST) tests/clients -n 0

test-all: test test-hostile test-structured test-clients test-rc1

fmt: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The committed stubs of the wire protocol, made with the oldest supported generator so that they load on every supported
# runtime; a contract test compares them with what the installed one makes.
stubs:
	$(PYTHON) -m venv --clear $(VENV)/stubs
	$(VENV)/stubs/bin/python -m pip install grpcio-tools==1.78.0
	$(VENV)/stubs/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)/*.proto
	rm -rf $(VENV)/stubs

install: $(VENV)/.installed-test

clean:
	rm -rf $(VENV)

# A stamp is removed before anything changes and made after everything worked: an interrupted install leaves none.
$(VENV)/.installed: pyproject.toml constraints.txt
	rm -f $(VENV)/.installed $(VENV)/.installed-test
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	test -z "$(TORCH_INDEX_URL)" || $(PIP) install --no-deps --index-url "$(TORCH_INDEX_URL)" "$(TORCH_PIN)"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	rm -f $@
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@

$(RC1)/.installed: Makefile | $(VENV)/.installed-test
	rm -rf $(RC1)
	$(PIP) install --no-deps --target $(RC1) $(RC1_PINS)
	touch $@

$(CLIENTS)/.installed: tests/clients/requirements.txt | $(VENV)/.installed-test
	rm -rf $(CLIENTS)
	$(PIP) install --no-deps --target $(CLIENTS) -r tests/clients/requirements.txt
	touch $@

$(STRUCTURED)/.installed: tests/structured/requirements.txt | $(VENV)/.installed-test
	rm -rf $(STRUCTURED)
	$(PIP) install --no-deps --target $(STRUCTURED) -r tests/structured/requirements.txt
	touch $@
