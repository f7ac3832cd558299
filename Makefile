# make demo · make test · make test-matrix · make check · make sanitize · make install

PYTHON ?= python3
BIN := .venv/bin

MATRIX := 4.57.6 5.23.0  # versions of transformers: the last 4.x, and the newest

.PHONY: demo test test-matrix check sanitize install clean

demo: .venv/installed
	$(BIN)/quant-dllm demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-matrix: $(MATRIX:%=.venv-%/installed)
	for version in $(MATRIX); do \
	  .venv-$$version/bin/python -m pytest tests/contract/test_families.py \
	    tests/contract/test_transformers.py || exit 1; done

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

sanitize: .venv/installed
	$(BIN)/python -m tests.native.sanitized address,undefined

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is wanted; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

.venv-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	grep -v '^transformers=\|^huggingface_hub=\|^tokenizers=' constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet --constraint .venv-$*/constraints.txt torch
	.venv-$*/bin/pip install --quiet --constraint .venv-$*/constraints.txt --editable . \
	  transformers==$* accelerate pytest beartype
	touch .venv-$*/installed

clean:
	rm -rf .venv .venv-* build dist .pytest_cache .ruff_cache .import_linter_cache
