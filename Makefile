# The environment is .venv, made from requirements.lock. `make PYTHON=python3.12 ...` chooses the Python that makes it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.dformer-ready
# Marks an environment that is being changed: a later run that finds it was preceded by an interrupted one.
UNFINISHED := $(VENV)/.dformer-unfinished

ifneq ($(words $(VENV)),1)
$(error VENV="$(VENV)": the name of the environment must have no spaces)
endif

export PIP_DISABLE_PIP_VERSION_CHECK = 1

# On top of it, for the page in a browser: Gradio asks for older versions of what the environment has.
APP    := $(VENV)/app

.PHONY: help quickstart env test check app test-browser lock clean

help:
	@echo 'make quickstart   install, train a small DFormer on generated data, evaluate it, segment four pictures'
	@echo 'make env          only the environment ($(VENV))'
	@echo 'make test         the tests; ARGS="-k schedule" passes arguments to pytest'
	@echo 'make check        lint, format, types, import contracts'
	@echo 'make app          a page to try a model in; ARGS="--port 8000" passes arguments to tools/app.py'
	@echo 'make test-browser test that page in Chromium'
	@echo 'make lock         resolve the newest versions into requirements.lock (needs uv)'
	@echo 'make clean        remove caches and build products; the environment and output/ stay'

quickstart: $(READY)
	$(BIN)/python tools/quickstart.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dformer tools datasets
	$(BIN)/lint-imports

app: $(APP)/.with-app
	$(APP)/bin/python tools/app.py $(ARGS)

test-browser: $(APP)/.with-browser
	@command -v chromium chromium-browser google-chrome > /dev/null || \
		{ echo 'error: there is no Chromium to test with; on Debian: apt install chromium'; exit 2; }
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest tests/browser $(ARGS)

env: $(READY)

# An environment that sees the packages of the first, with an extra of pyproject.toml.
$(APP)/.with-%: $(READY)
	$(BIN)/python -m venv --without-pip $(APP)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(BIN)/python -c "$$purelib")')" \
		> "$$($(APP)/bin/python -c "$$purelib")/dformer-base.pth"
	$(APP)/bin/python -m pip install --no-build-isolation --editable '.[$*]'
	@touch $@

$(READY): requirements.lock pyproject.toml setup.py dformer/apps/install_detectron2.py
	@# Nothing is changed or removed but what has both Python's mark of an environment and ours.
	@if [ -e "$(VENV)" ] && ! { [ -e "$(VENV)/pyvenv.cfg" ] && { [ -e "$(READY)" ] || [ -e "$(UNFINISHED)" ]; }; }; then \
		echo 'error: "$(VENV)" exists and was not made by this Makefile: move it away, or name another folder:' \
			'make VENV=folder $(MAKECMDGOALS)' >&2; exit 2; \
	fi
	@if [ -e "$(UNFINISHED)" ] || { [ -e "$(VENV)" ] && ! "$(BIN)/python" -m pip --version > /dev/null 2>&1; }; then \
		echo '$(VENV) is half-made or broken: making it anew'; rm -rf "$(VENV)"; \
	fi
	@if [ ! -e "$(VENV)" ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
			{ echo 'error: dformer needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 2; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
			{ echo 'error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv'; exit 2; }; \
		echo 'making $(VENV) with $(PYTHON); about 5 GB of wheels follow'; \
		$(PYTHON) -m venv --without-pip "$(VENV)" && touch "$(UNFINISHED)" && "$(BIN)/python" -m ensurepip --default-pip; \
	fi
	@rm -f "$(READY)"; touch "$(UNFINISHED)"
	@# The locked setuptools first: it builds what has no wheel, so that no other build tool is fetched.
	$(BIN)/python -m pip install "$$(grep '^setuptools==' requirements.lock)"
	$(BIN)/python -m pip install --no-deps --no-build-isolation -r requirements.lock
	$(BIN)/python tools/install_detectron2.py
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@mv "$(UNFINISHED)" "$(READY)" && touch "$(READY)"

# The platform's marker, the same in each line, is left out.
lock:
	uv pip compile --quiet --universal --upgrade --python-version 3.10 --extra dev --no-annotate --no-header \
		--output-file requirements.lock.new pyproject.toml
	@sed -Ei -e "s/ (and|;) platform_machine == 'x86_64' and sys_platform == 'linux'//" \
		-e '1i # Made by `make lock`: what `make env` installs, on Linux x86-64 with Python 3.10 to 3.13.' requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf dformer/ops/lib
	find dformer tools datasets tests -name __pycache__ -type d -prune -exec rm -rf {} +
