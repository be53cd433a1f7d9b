# `make demo` and `make test` do all of their own set-up; both may be interrupted and repeated.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test soak gpu check format clean

setup: $(READY)

# pip finishes before the mark is set, so an interrupted set-up simply goes on
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,dev,plot]'
	touch $(READY)

demo: setup
	$(BIN)/diffunet train configs/digits.toml
	$(BIN)/diffunet sample runs/digits --n 64 --out runs/digits/grid.png
	$(BIN)/diffunet evaluate runs/digits

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not soak" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m soak

gpu: setup
	$(BIN)/python -m pytest tests/gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
