PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-slow

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(VENV)/bin/fedtune simulate simulations/scenarios/demo.yaml \
		output.dir=runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	# three processes, also on two cores: end-to-end tests mostly wait
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses=3 --dist=loadfile \
		--cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow -rP
