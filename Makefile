# Every target works in a fresh clone: the first one makes the environment, later ones find it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH ?= all
# Compiled Python files are kept even where the environment forbids it: tests start hundreds of processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: run test check format bench peers peers-inference clean .venv

run: .venv                      ## build a language model, evaluate it and chat with it, in ten minutes
	$(BIN)/groundup build --budget 10m

test: .venv                     ## every test, the slow ones too (GPU tests skip, with a reason, where there is no GPU)
	$(PYTEST) --dist worksteal -ra

check: .venv                    ## what a change must pass before it is committed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST) -m 'not slow and not gpu'

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv                    ## measure and save to benchmarks/results; `make bench BENCH=train-step` for one
	$(BIN)/groundup bench $(BENCH) --save

peers: .peers/.installed        ## the programs that benchmarks compare with, in an environment of their own

peers-inference: .peers/.inference  ## other engines for `bench decode`: builds llama.cpp, which takes a while

.peers/.inference: benchmarks/peers/requirements-inference.txt
	test -d .peers || $(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.peers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .peers .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' here: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "groundup needs Python 3.11 or newer, but %s is %d.%d; name another: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@echo "installing groundup and its development tools into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
