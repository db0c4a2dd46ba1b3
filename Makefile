# make figures: run every notebook, write figures/     make test: run the tests
# Another interpreter: make figures PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODE ?= fast
SIZE ?= small
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: figures test notebooks profile train-mini assignments grade clean

figures: $(VENV)/.installed
	$(BIN)/python scripts/run_notebooks.py --mode $(MODE)

test: $(VENV)/.extras
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# the same as figures, but writes the outputs into notebooks/ for committing
notebooks: $(VENV)/.installed
	$(BIN)/python scripts/run_notebooks.py --mode $(MODE) --in-place

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, not %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (a few minutes) …"
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	@touch $@

# the optional extras: nbgrader for classes, Dask for clusters
$(VENV)/.extras: $(VENV)/.installed
	$(INSTALL) -e ".[assignments,cluster]"
	@touch $@

# measure this machine's denoising latency; every notebook that reads profiles finds it
profile: $(VENV)/.installed
	$(BIN)/python -m splitpoint.diffusion.profile --out results/my_machine.csv

# train the miniature again (SIZE=large: a bigger one, for a GPU, into checkpoints/)
train-mini: $(VENV)/.installed
	$(BIN)/python -m splitpoint.diffusion.mini_training --size $(SIZE) --resume \
	    --out $(if $(filter small,$(SIZE)),data/models/mini,checkpoints/mini_$(SIZE))

# write the students' notebooks; grade what is in notebooks/assignments/submitted
assignments: $(VENV)/.extras
	$(BIN)/python notebooks/assignments/grade.py release

grade: $(VENV)/.extras
	$(BIN)/python notebooks/assignments/grade.py grade

clean:
	rm -rf figures build results
