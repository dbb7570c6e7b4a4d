# goodparts. `make help` lists the targets; every target sets up what it needs.
PYTHON   ?= python3
HARDWARE ?= cpu#          cpu or gpu: which faiss is installed
VENV     := .venv
PY       := $(VENV)/bin/python
# Python compiles a module when it is first imported; compiling all of them doubles the work of pip.
PIP      := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
WORKERS  ?= 2#            test processes

# Threads that wait sleep, which leaves the cores to other programs; freed memory of activation maps
# stays with the process, which saves clearing its pages anew. Set them yourself outside of make.
export OMP_WAIT_POLICY        ?= PASSIVE
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_TOP_PAD_        ?= 67108864

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test test-all check docs format bench bench-peers reproduce-all reproduce-laptop reproduce-smoke clean

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.user-$(HARDWARE) ## create .venv with what a run needs (HARDWARE=gpu for faiss on the GPU)

dev: $(VENV)/.dev-$(HARDWARE) ## the same plus test tools, export, Ray and Optuna

demo: setup ## PatchCore on drawn parts: no network, no GPU; prints metrics and a report
	$(PY) -m src.run experiment=demo

test: dev ## the test suite (minutes on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-all: dev ## also the long proofs; MVTEC_AD_ROOT adds those on real images
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

check: dev ## ruff, mypy, and who may import whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

docs: dev ## write the table of data sets and the outputs of the notebook anew
	PYTHONPATH=. $(PY) docs/data_sets.py
	$(VENV)/bin/jupyter-execute --inplace examples/patchcore.ipynb

format: dev ## let ruff repair and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: dev ## every benchmark in tests/bench; prints ratios
	@for script in tests/bench/bench_*.py; do \
	  case $$script in *peers*) continue;; esac; \
	  echo "== $$script"; PYTHONPATH=. $(PY) $$script || exit 1; done

bench-peers: dev .venv-peer/.ready ## whole runs against anomalib in its own environment (needs MVTEC_AD_ROOT)
	PYTHONPATH=. $(PY) tests/bench/bench_patchcore_peers.py --peer-python .venv-peer/bin/python

reproduce-all: dev ## every method, category and seed of the paper tables; resumable
	$(PY) -m src.reproduce paper=[patchcore,patchcore_vit,uflow,haloae,crn,anomaly_dino,mvtec_ad_2]

reproduce-laptop: dev ## every method in minutes on the sets below DATA_DIR, beside the floor
	PYTHONPATH=. $(PY) tests/bench/bench_decisions.py methods

reproduce-smoke: dev ## the same code path, tiny and offline, all four methods
	$(PY) -m src.reproduce paper=[smoke]

reproduce-%: dev ## one method's tables: reproduce-patchcore, -uflow, -haloae, -crn, -patchcore_vit, -anomaly_dino, -aupimo
	$(PY) -m src.reproduce paper=[$*]

clean: ## remove environments and caches; runs and data stay
	rm -rf $(VENV) .venv-peer .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# The two faiss builds share one module name: the other one is removed first.
$(VENV)/.user-$(HARDWARE): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip uninstall --quiet --yes faiss-cpu faiss-gpu faiss-gpu-cu12 2>/dev/null || true
	$(PIP) --editable ".[$(HARDWARE)]" --constraint constraints.txt
	@rm -f $(VENV)/.user-* $(VENV)/.dev-*; touch $@

$(VENV)/.dev-$(HARDWARE): $(VENV)/.user-$(HARDWARE)
	$(PIP) --editable ".[$(HARDWARE),dev,export,serve,many]" --constraint constraints.txt
	@touch $@

.venv-peer/.ready: tests/bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --upgrade pip
	.venv-peer/bin/python -m pip install --quiet --requirement tests/bench/peers/requirements.txt
	@touch $@
