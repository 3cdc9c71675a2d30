# `make demo` and `make test` need Python >= 3.11 with its venv module, and a C compiler; all else goes into .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := demo
WAITING := tests/cloud tests/deploy tests/runs tests/serve tests/conformance/test_providers.py tests/test_example_notebook.py \
	tests/execution/dask/test_node_cluster.py tests/execution/dask/test_pages.py tests/relion tests/report \
	tests/jobs/test_abinitio.py tests/jobs/test_classify2d.py tests/jobs/test_classify3d.py tests/jobs/test_map_jobs.py \
	tests/jobs/test_traffic.py

ALL_VERSIONS := 3.11 3.12 3.13

# After `pip install .` in .venv, the kernels that it compiled stay there and would hide the code of this folder.
UNHIDE := rm -rf .venv/lib/python3.*/site-packages/cloudem

.PHONY: demo test test-all coverage lint clean
.DELETE_ON_ERROR:

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/cloudem simulate --demo --blind --count 1500 --out $(DEMO)/truth
	$(BIN)/cloudem refine3d --particles $(DEMO)/truth/particles.zarr --reference $(DEMO)/truth/start.mrc \
		--diameter-A 180 --out $(DEMO)/refine
	$(BIN)/cloudem export $(DEMO)/refine --out $(DEMO)/files
	@echo
	@echo "map:    $(CURDIR)/$(DEMO)/files/map.mrc"
	@echo "report: $(CURDIR)/$(DEMO)/refine/report.html"
	@echo "pages:  $(BIN)/cloudem serve $(DEMO)"

# Tests of rented machines mostly wait for processes to start and end: they run beside the others, and are shown after.
# With them run some that compute, so that both take about as long.
test: lint
	@$(BIN)/python -m pytest $(WAITING) >.venv/waiting.log 2>&1 & waiting=$$!; \
	$(BIN)/python -m pytest $(WAITING:%=--ignore=%); others=$$?; \
	wait $$waiting; status=$$?; cat .venv/waiting.log; exit $$((others + status))

# How much of cloudem the tests run, lines and branches; slower than the tests alone.
coverage: .venv/installed-test
	$(BIN)/python -m pytest --cov --cov-branch --cov-report=term --cov-report=html:.coverage-html
	@echo "line by line: $(CURDIR)/.coverage-html/index.html"

# The tests on every version of Python that is here (on the PATH, or from pyenv), each with an environment of its own;
# versions that are not here are named.
test-all:
	@failed=; absent=; for version in $(ALL_VERSIONS); do \
		found=; for python in python$$version $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python; do \
			if $$python -c 'import venv' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if test -z "$$found"; then absent="$$absent $$version"; continue; fi; \
		echo "--- Python $$version"; venv=.venv-$$version; \
		{ test -x $$venv/bin/python || $$found -m venv $$venv; } && \
		$$venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' && \
		$$venv/bin/python -m pytest $(TESTS) || failed="$$failed $$version"; \
	done; \
	for version in $$absent; do echo "SKIPPED: there is no Python $$version with its venv module here"; done; \
	if test -n "$$failed"; then echo "FAILED: Python$$failed"; exit 1; fi

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv $(ALL_VERSIONS:%=.venv-%) .coverage .coverage.* .coverage-html $(DEMO)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "cloudem needs Python 3.11 or later as python3; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) --editable .
	@$(UNHIDE)
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	$(PIP) --editable '.[test]'
	@$(UNHIDE)
	@touch $@ .venv/installed
