# make figures: run every notebook, write figures/     make test: run the tests     make test-slow: those that take long
# Another interpreter: make figures PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODE ?= fast
SIZE ?= small
# notebooks side by side; those that measure time come first, each alone
JOBS ?= 2
# TORCH=cpu takes PyTorch's processor-only build (200 MB) where the default index has the one with CUDA (2.7 GB: Linux);
# TORCH=cu130 or another of its names takes a build for a GPU
TORCH ?=
INDEX := $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))
# modules are compiled when they are first imported: two minutes less than compiling all of them
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt $(INDEX)

.PHONY: figures test test-slow notebooks site profile train-mini assignments grade format lint mutants soak clean

figures: $(VENV)/.installed
	$(BIN)/python scripts/run_notebooks.py --mode $(MODE) --jobs $(JOBS)

test: $(VENV)/.extras
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"
	@echo "make test-slow runs the others: servers, browsers, kernels, kills, classes, trainings"

test-slow: $(VENV)/.extras
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

# the same as figures, but writes the outputs into notebooks/ for committing
notebooks: $(VENV)/.installed
	$(BIN)/python scripts/run_notebooks.py --mode $(MODE) --jobs $(JOBS) --in-place

$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, not %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (a few minutes) …"
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	@touch $@

# the optional extras: nbgrader for classes, Dask for clusters, Ray for several edges
$(VENV)/.extras: $(VENV)/.installed
	$(INSTALL) -e ".[assignments,cluster,ray]"
	@touch $@

# the notebooks, the pages under docs/ and the library's docstrings as a static site, build/site/index.html
site: $(VENV)/.site
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . build/site
	@echo "open build/site/index.html"

$(VENV)/.site: $(VENV)/.installed
	$(INSTALL) -e ".[site,serve]"
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(INSTALL) -e ".[lint]"
	@touch $@

format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# what a change must pass before its tests are worth running
lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# tests of the tests: a sample of the wrong lines that a tool makes where bounds and optima live, then the hand-picked ones
MUTANTS ?= 500
mutants: $(VENV)/.installed
	$(INSTALL) -e ".[mutants]"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/sample_mutants.py $(MUTANTS)
	$(BIN)/python scripts/mutations.py

# measure this machine's denoising latency; every notebook that reads profiles finds it
profile: $(VENV)/.installed
	$(BIN)/splitpoint profile --out results/my_machine.csv

# train the miniature again (SIZE=large: a bigger one, for a GPU, into checkpoints/)
train-mini: $(VENV)/.installed
	$(BIN)/splitpoint train-mini --size $(SIZE) --resume \
	    --out $(if $(filter small,$(SIZE)),data/models/mini,checkpoints/mini_$(SIZE))

# write the students' notebooks; grade what is in notebooks/assignments/submitted
assignments: $(VENV)/.extras
	$(BIN)/python notebooks/assignments/grade.py release

grade: $(VENV)/.extras
	$(BIN)/python notebooks/assignments/grade.py grade

# what a running edge survives: kills, a flood, half an hour of work (75 minutes)
soak: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/soak.py

clean:
	rm -rf figures build results
