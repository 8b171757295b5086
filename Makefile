# Everything the project needs, it installs itself: Python packages into .venv, Chromium on request.
.PHONY: demo test test-all check format browser wheels cluster test-cluster gpu test-gpu benchmark-peers clean
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.venv/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable ".[app,train]"
	touch $@

.venv/.dev: .venv/.demo
	$(INSTALL) --editable ".[app,train,surveys,dev]"
	touch $@

demo: .venv/.demo  ## simulated sky -> encoder -> index -> web page
	$(BIN)/skykin demo

# Tests go file by file to one process a core, so each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: .venv/.dev  ## the tests that take minutes, not hours
	$(PYTEST) -m "not slow"

test-all: .venv/.dev  ## all of them, with other random numbers in every run
	$(PYTEST) --fresh-seeds

check: .venv/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

browser:  ## Debian's Chromium, for the browser tests (needs root)
	command -v chromium >/dev/null || (apt-get update && apt-get install --yes --no-install-recommends chromium)

wheels: .venv/.demo  ## what training needs beside torch and numpy, for a machine without network
	rm -rf build/wheels
	$(BIN)/python -m pip download --quiet --constraint constraints.txt --no-deps \
		--dest build/wheels --requirement training/offline-requirements.txt

# Ray downloads 76 MiB. It is not part of .dev: its tests start processes that each import torch, and take minutes.
.venv/.cluster: .venv/.dev
	$(INSTALL) --editable ".[app,train,surveys,cluster,dev]"
	touch $@

cluster: .venv/.cluster  ## Ray, for searching and building on many machines (docs/cluster.md)

test-cluster: .venv/.cluster  ## segments on Ray actors, embedding by Ray Data, all on this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/index/test_cluster.py

# faiss-gpu (Linux x86-64, CUDA 12.6 or later) downloads 129 MiB and, as it cannot be imported without them, NVIDIA's
# libraries: cuBLAS (550 MiB), NVRTC (85 MiB), cuRAND (65 MiB), CUDA runtime (3 MiB). On disk 1.6 GiB. It owns the same
# module as faiss-cpu, so that one goes first; pip then says that skykin wants faiss-cpu, which cannot be helped.
FAISS_GPU := faiss-gpu==1.15.1

gpu: .venv/.demo  ## FAISS for a GPU in place of the one for CPUs
	$(BIN)/python -m pip uninstall --quiet --yes faiss-cpu
	$(BIN)/python -m pip install --quiet $(FAISS_GPU)
	$(BIN)/python -c "from index.faiss_distributions import check_one_faiss; check_one_faiss(); import faiss; \
		print('FAISS', faiss.__version__, 'finds', faiss.get_num_gpus(), 'GPUs')"

# Its own environment: what index/ needs, FAISS for a GPU, and nothing of the page, surveys or training.
GPU_BIN := .venv-gpu/bin

.venv-gpu/.gpu: pyproject.toml constraints.txt
	test -x $(GPU_BIN)/python || $(PYTHON) -m venv .venv-gpu
	$(GPU_BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(GPU_BIN)/python -m pip install --quiet --constraint constraints.txt --editable . \
		pytest beartype hypothesis
	$(GPU_BIN)/python -m pip uninstall --quiet --yes faiss-cpu
	$(GPU_BIN)/python -m pip install --quiet $(FAISS_GPU)
	touch $@

GPU_TESTS := gpu faiss_distributions exact_scan overfetch device_rows

test-gpu: .venv-gpu/.gpu  ## with FAISS for a GPU: what needs none, and where there is one, what is marked gpu
	OMP_NUM_THREADS=1 $(GPU_BIN)/python -m pytest -rs $(foreach test,$(GPU_TESTS),tests/index/test_$(test).py)

.venv-bench/.installed: benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	touch $@

benchmark-peers: .venv-bench/.installed  ## what benchmarks/index.py measures the index beside

clean:
	rm -rf .venv .venv-gpu .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis
