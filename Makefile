# `make demo` and `make test` do all set-up themselves; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BUDGET ?= 540
PY := $(VENV)/bin/python
READY := $(VENV)/ready
NATIVE := $(wildcard setup.py csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bugs defects lint format bench kernels sanitize race pictures gpu clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(READY)  ## the environment: the torch that is there, or the pinned one
$(READY): pyproject.toml constraints.txt $(NATIVE)
	@test -x $(PY) || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q "$$(grep ^torch== constraints.txt)"
	@# torchvision, which timm asks for, would otherwise bring the newest torch along.
	@$(PY) -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VENV)/torch.txt
	@! grep -q "$$(grep ^torch== constraints.txt)" $(VENV)/torch.txt || cp constraints.txt $(VENV)/torch.txt
	@$(PY) -m pip install -q "setuptools>=77" pybind11 ninja
	$(PY) -m pip install -q -c $(VENV)/torch.txt --no-build-isolation -e ".[triton,cli,test,lint]"
	@touch $(READY)

demo: setup  ## accelerate a real model, verify every block, time it, one table (ARGS="--model s2mlp_deep")
	@$(PY) -m shiftmlp demo $(ARGS)

test: setup  ## the whole suite on every backend that can run here (ARGS="-k token_mlp")
	@$(PY) -m pytest -n auto --dist loadgroup -p no:benchmark $(ARGS)

bugs: setup  ## plants every bug in the CUDA kernels, of which `make test` takes a fifth
	@SHIFTMLP_EVERY_BUG=1 $(PY) -m pytest -n auto -p no:benchmark tests -k planted_bug $(ARGS)

defects: setup  ## plants known defects one by one; each must turn the suite red (ARGS=--cuda)
	@$(PY) tests/planted_defects.py $(ARGS)

lint: setup  ## ruff and clang-format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(PY) docs/tables.py --check
	@$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

format: setup  ## what lint asks for
	@$(VENV)/bin/ruff check --fix -q .
	@$(VENV)/bin/ruff format -q .
	@$(VENV)/bin/clang-format -i $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

bench: setup  ## every op against eager and torch.compile, into benchmarks/results (ARGS="token_mlp --dtype bf16")
	@$(PY) benchmarks/run.py $(ARGS)
	@$(PY) -m pytest benchmarks

kernels: setup  ## registers, spills, shared memory and matrix instructions of every kernel and GPU
	@$(PY) benchmarks/kernels.py $(ARGS)
	@$(PY) benchmarks/predict.py
	@$(PY) benchmarks/predict_cuda.py

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -g1
# Not exported: `setup` must not build the package itself with them.
FLAGS := CXXFLAGS="$(SANITIZE) -O1" LDFLAGS="$(SANITIZE)"
SANITIZED := $(FLAGS) PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
  LD_PRELOAD="$$(for l in asan ubsan stdc++; do $(CXX) -print-file-name=lib$$l.so; done | xargs)"
sanitize: setup  ## the C++ kernels, and the CUDA ones in the emulator, under AddressSanitizer and UBSan
	@$(FLAGS) SHIFTMLP_BUILD=1 SHIFTMLP_CUDA=0 \
	  $(PY) setup.py -q build --build-base build/sanitize/base --build-lib build/sanitize/lib
	@$(SANITIZED) $(PY) -m pytest tests/test_kernels.py tests/test_memory.py tests/test_cpu_survival.py \
	  tests/test_wrong_tensors.py \
	  -k "cpu and not triton and not reference and not emulated and not forked" $(ARGS)
	@$(SANITIZED) ATEN_CPU_CAPABILITY=default $(PY) -m pytest tests/test_kernels.py \
	  -k "cpu and not triton and not reference and not emulated" $(ARGS)
	@# One asks for "auto"; one compares values that a LayerNorm of three channels magnifies too much.
	@$(SANITIZED) SHIFTMLP_BACKEND=cpu $(PY) -m pytest tests/test_gradients.py \
	  -k "not equals_autograd and not left_to_pytorch" $(ARGS)
	@# Python's own pools would land on marked stacks of fibers that have ended.
	@$(SANITIZED) PYTHONMALLOC=malloc $(PY) -m pytest tests/test_emulator.py tests/test_primitives.py \
	  tests/test_product.py tests/test_passes.py tests/test_hopper.py tests/test_product_sm90.py \
	  tests/test_token_mlp_backward.py tests/test_product_norm.py \
	  -k "not planted and not compiles and not machine" \
	  $(ARGS)
	@$(SANITIZED) PYTHONMALLOC=malloc $(PY) -m pytest tests/test_kernels.py tests/test_wrong_tensors.py \
	  tests/test_emulated.py -k emulated $(ARGS)

race: setup  ## the CUDA kernels in the emulator, compiled by clang: no two of their threads race
	@PYTHONPATH=tests $(PY) -c "import races, sys; sys.exit(races.missing())"
	@SHIFTMLP_RACES=1 $(PY) -m pytest -n auto -p no:benchmark tests/test_emulator.py tests/test_primitives.py \
	  tests/test_passes.py tests/test_product.py tests/test_hopper.py tests/test_product_sm90.py \
	  tests/test_token_mlp_backward.py tests/test_product_norm.py tests/test_emulated.py \
	  -k "not planted and not report and not compiles and not as_good and not only_what and not told" $(ARGS)

pictures: setup  ## draws the pictures of the README and its generated tables
	@$(PY) docs/draw.py
	@$(PY) docs/tables.py

gpu:  ## on a GPU machine, with what is there: build, GPU tests, compute-sanitizer, bench table, within BUDGET seconds
	@BUDGET=$(BUDGET) $(PYTHON) benchmarks/gpu.py

clean:  ## removes what was built
	rm -rf build $(VENV) shiftmlp/*.so *.egg-info
