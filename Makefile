# make demo | test | lab | bench | gpu | coverage | soak | example | insight | finetune | help.  The first use makes .venv and installs the locked versions into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lab bench gpu coverage soak example insight finetune help

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: .venv/installed ## four small runs and a pretrained one on the practice photographs, and their report
	@$(BIN)/fruitlib sweep params/demo.yaml

test: .venv/installed ## the tests; PYTEST adds options, such as PYTEST="-k splits" or PYTEST="-m 'slow or not slow'"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(PYTEST)

# Pending kernels: what is run while the kernel is being changed is lost in JupyterLab, because the server answers only when
# the old kernel has ended; with them it answers at once.
lab: .venv/installed ## JupyterLab on notebook 00: the sweeps there are, and a form that starts the next one
	@$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb \
		--FileContentsManager.post_save_hook=fruitlib.kernels.saving.refresh_git \
		--MultiKernelManager.use_pending_kernels=True

bench: .venv/installed ## speed beside torch, timm, fastai, Lightning; sweeps beside papermill (half an hour); BENCH adds options
	@$(BIN)/python tests/benchmarks/data_path.py
	@$(BIN)/python tests/benchmarks/sweep_overhead.py
	@$(BIN)/python tests/benchmarks/scale.py
	@$(BIN)/python tests/benchmarks/photo_scale.py --photos 2500 --large 50
	@$(BIN)/python tests/benchmarks/precision.py
	@$(BIN)/python tests/benchmarks/bench.py $(BENCH)

gpu: ## tests and speed on a GPU, under eight minutes; PYTHON=python3 that has torch is taken as it is, nothing installed
	@if $(PYTHON) -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; \
		then $(PYTHON) tests/gpu; \
		else $(MAKE) --no-print-directory .venv/installed && $(BIN)/python tests/gpu; fi

coverage: .venv/installed ## what intervals and tests hold, simulated: the tables of the docstrings (three minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.simulations

soak: .venv/installed ## fifty kills, at random, over sweeps: none lost, none doubled (half an hour and more)
	@$(BIN)/python tests/soak.py

example: demo ## the demo's report as kept in git, executed/example (pages and tables, no models)
	@mkdir -p executed/example
	@rm -rf executed/example/lr=* executed/example/head=* executed/example/assets executed/example/*.html executed/example/*.csv executed/example/*.json
	@cd executed/demo && find . -name '*.html' -o -name '*.webp' -o -name results.csv -o -name history.csv -o -name predictions_val.csv -o -name sweep.json | \
		tar cf - -T - | tar xf - -C ../example
	@echo "executed/example holds the demo's report; executed/README.md quotes its results.csv"

insight: .venv/installed ## four claims put to the test, eight minutes:  make insight DATA=folder-of-photos;  08 joins the example
	@$(BIN)/fruitlib sweep params/insight.yaml --data $(DATA) --out insight
	@mkdir -p executed/example/insight
	@cp executed/insight/insight.csv executed/insight/08_insight.ipynb executed/example/insight/
	@$(BIN)/python -c 'from pathlib import Path; from fruitlib.reporting import site; \
		site.write_folder(Path("executed/example/insight"), "Example", "insight")'
	@rm executed/example/insight/08_insight.ipynb

finetune: .venv/installed ## frozen features, fine-tuned, from scratch, half an hour:  make finetune DATA=folder-of-photos
	@$(BIN)/fruitlib sweep params/finetune.yaml --data $(DATA) --out finetune
	@mkdir -p executed/example/finetune
	@cp executed/finetune/results_oof.csv executed/example/finetune/

# What notebooks show that are opened by hand stays in them, and git does not see it, nor which Python they ran on, nor the
# warm kernel: .gitattributes names this filter. Where it is not set, or .venv is gone, git takes notebooks as they are.
NOISE := $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)
CLEAN := if test -x $(BIN)/nbstripout; then $(BIN)/nbstripout --extra-keys "$(NOISE)" | \
	sed -e "s/fruitlib-warm/python3/" -e "s/fruitlib (warm)/Python 3 (ipykernel)/"; else cat; fi

# Bytecode is compiled at once: without it every notebook pays for it again where Python may not write it.
# The package is installed as a path (compat): by setuptools' other way, Python takes a clone named fruitlib for the package
# when it is started from the folder above.
.venv/installed: pyproject.toml requirements.lock Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "setting up .venv (some 5 GB with the CUDA libraries; once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --config-settings editable_mode=compat -e .
	@$(BIN)/python -m compileall -q fruitlib
	@$(BIN)/python -m fruitlib.kernels.kernelspec >/dev/null
	@test "$$(git rev-parse --show-toplevel 2>/dev/null)" != "$(CURDIR)" || git config filter.notebooks.clean '$(CLEAN)'
	@touch $@
