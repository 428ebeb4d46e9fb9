# Everything from a clean clone: each target makes its virtual environment, .venv, and needs no compiler.
#
#   make demo      a held-out head in slices of 4 mm, restored: demo_out/report.png and a table
#   make test      the tests, and each benchmark once: seven to twelve minutes on two cores
#   make test-slow the tests that take longest: every kernel on every architecture, kills at random moments, ...
#   make weights   fetch and make the training data, train the bundled models; stop it and run it again to go on
#   make data      fetch every volume: held-out and training
#   make lint      ruff, mypy, and the direction of imports
#   make bench     the benchmarks, timed: at most ten minutes
#   make clean     remove what was built; data/ and runs/ stay
#
# LABELS=FOLDER of label maps (docs/phantom.md) is what `make weights` needs for brain-iso.
# PYTHON=python3.12 chooses the interpreter, Python 3.10 or newer; WORKERS=4 runs the tests in four processes.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# One thread in each process: in tests this small PyTorch's threads mostly wait for each other.
WORKERS ?= 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests benchmarks -n $(WORKERS) --dist loadfile
SOURCES := constraints.txt pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*)

.PHONY: demo test test-slow weights data lint bench clean
.DELETE_ON_ERROR:

demo: .venv/.run data/ds000031_t1.nii.gz
	$(BIN)/scorefusion demo

test: .venv/.dev
	$(TEST) -m "not slow"

test-slow: .venv/.dev
	$(TEST) -m slow

weights: .venv/.run
	$(BIN)/python tools/fetch_data.py training
	$(BIN)/scorefusion phantom -n 20 -o data/phantoms/train --contrasts t1 t2 flair --lesions
	$(BIN)/scorefusion train configs/t1-sr4.json -o runs/t1-sr4
	$(BIN)/scorefusion train configs/t1-t2.json -o runs/t1-t2
	$(BIN)/scorefusion train configs/t1sr4-t2.json -o runs/t1sr4-t2
	$(BIN)/scorefusion video data/bikes.mp4 --convert --frames :187 --pool 2 -o data/bikes.nii.gz
	$(BIN)/scorefusion video data/bigbuckbunny.mp4 --convert --pool 4 -o data/bigbuckbunny.nii.gz
	$(BIN)/scorefusion train configs/video-sr.json -o runs/video-sr
ifdef LABELS
	$(BIN)/scorefusion train configs/brain-iso.json --labels $(LABELS) -o runs/brain-iso
endif

data: .venv/.made
	$(BIN)/python tools/fetch_data.py all

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy scorefusion
	$(BIN)/lint-imports

bench: .venv/.dev
	$(BIN)/python -m pytest benchmarks --benchmark

clean:
	rm -rf .venv build dist *.egg-info scorefusion/_C*.so scorefusion/_C*.pyd scorefusion/_cuda*.so scorefusion/_cuda*.pyd demo_out
	rm -rf .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

data/oasis_t1.nii.gz: | .venv/.made
	$(BIN)/python tools/fetch_data.py demo

# A folder that is there but was not finished is made anew.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
	  || { echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.run: .venv/.made $(SOURCES)
	@echo "installing into .venv; a few minutes the first time"
	$(PIP) -e '.[train,video]' scikit-image
	@touch $@

.venv/.dev: .venv/.made $(SOURCES)
	@echo "installing into .venv; a few minutes the first time"
	$(PIP) -e '.[train,triton,tensorrt,dev]'
	@touch $@ .venv/.run
