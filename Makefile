# make run    the quickstart suite on the embedded data and models
# make test   the tests
# make check  ruff, mypy, import-linter, docs
# make docs   the documentation, as build/docs/index.html; warnings are errors
# make mutants             single changes of the code that the tests should notice: all, many hours
# make mutants SAMPLE=400  a sample of them, drawn with SEED=0; WORKERS=1; MINUTES=60 begins none later
# Each sets up .venv when it is missing.

PYTHON ?= python3
BIN := .venv/bin
# torchattacks pins an old idna: the peers are installed without their dependencies
PEERS := torchattacks==3.5.1 foolbox==3.3.4 eagerpy==0.30.0 GitPython gitdb smmap

.PHONY: run test check docs mutants clean

run: .venv/ready
	$(BIN)/advens run quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n auto

check: .venv/dev docs
	$(BIN)/ruff check .
	rm -rf build/check
	$(BIN)/python -W ignore -c "import setuptools; setuptools.setup()" -q build_py --build-lib build/check
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p advens
	cd build/check && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

docs: .venv/dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

SEED ?= 0
WORKERS ?= 1
mutants: .venv/mutants
	$(BIN)/python tests/mutants.py $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(SEED) --workers $(WORKERS) $(if $(MINUTES),--minutes $(MINUTES))

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary ray -e '.[ray]' || echo "no Ray for this Python: its tests are skipped"
	touch $@

.venv/mutants: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
