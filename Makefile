# Every target makes the virtual environment it needs; `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest

.PHONY: demo test test-slow lint docs bench studies clean

$(VENV)/.venv-stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and alone: under the constraint pip cannot be led to a larger build by another package
$(VENV)/.run-stamp: $(VENV)/.venv-stamp pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e '.[fast]'
	touch $@

# dependency groups are read with tomllib, so that an old pip serves as well
$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	$(BIN)/python -c "import tomllib; groups = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; \
	print('\n'.join(entry for name in ('test', 'docs', 'dev') for entry in groups[name] if isinstance(entry, str)))" \
	> $(VENV)/dev-requirements.txt
	$(PIP) -r $(VENV)/dev-requirements.txt
	touch $@

# abTEM (GPL-3) is the independent check of the simulator; nothing but the slow tests needs it
$(VENV)/.slow-stamp: $(VENV)/.dev-stamp
	$(PIP) -e '.[abtem]'
	touch $@

demo: $(VENV)/.run-stamp
	rm -rf demo
	$(BIN)/petomo simulate examples/demo_specimen.yaml --out demo/data
	$(BIN)/petomo run examples/demo.yaml --out demo/run
	$(BIN)/petomo score demo/run --truth demo/data/truth

test: $(VENV)/.dev-stamp
	$(PYTEST) -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/.slow-stamp
	$(PYTEST) -m "slow and not gpu"

lint: $(VENV)/.dev-stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs examples src tests benchmarks
	$(BIN)/sp-repo-review .

# offline; every warning is an error
docs: $(VENV)/.dev-stamp
	rm -rf docs/api/_generated
	$(BIN)/python -m sphinx -W --keep-going -q -a -j 2 -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

bench: $(VENV)/.run-stamp
	$(ONE_THREAD) $(BIN)/python benchmarks/pass_vs_fft.py

# the paper's studies at a size of minutes each; data and runs stay in runs/studies, and go on where they stopped
STUDIES := tilt_range ablation missing_wedge half_sets convergence held_out
studies: $(VENV)/.run-stamp
	for study in $(STUDIES); do $(ONE_THREAD) $(BIN)/python benchmarks/studies/$$study.py --quick || exit 1; done

clean:
	rm -rf $(VENV) demo
