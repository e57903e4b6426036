# Every target sets up what it needs in .venv; only Python 3.10+ and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CAMVID ?= $(or $(VSS_HF_CAMVID),../shared/data/camvid_vspw)
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: help demo demo-camvid test test-all chromium lint docs clean
help:
	@echo "make demo         sample videos -> training -> evaluation -> model folder with card -> overlay video"
	@echo "make demo-camvid  the same on CamVid in VSPW layout: make demo-camvid CAMVID=path"
	@echo "make test         quick tests        make test-all  all of them, slow and GPU ones too"
	@echo "make lint         ruff and pyright    make docs       the site, in site/"

# One stamp per state of pyproject.toml: a changed dependency installs anew, nothing else does.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m vss_hf.quickstart --out demo

demo-camvid: $(VENV)/installed
	$(BIN)/python -m vss_hf.quickstart --out demo/camvid --recipe camvid-ocrnet --data "$(CAMVID)"

# Two processes of one thread each: small models gain nothing from more threads.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu"

# Some tests click through the demo page in Chromium; where it is not there and cannot be installed, they are skipped.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	{ [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
	echo "no Chromium: the tests of the demo page in a browser are skipped"

$(VENV)/installed-slow-tests: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[slow-tests]"
	touch $@

test-all: $(VENV)/installed-slow-tests chromium
	OMP_NUM_THREADS=1 $(PYTEST)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf demo runs build site *.egg-info
