# make demo | test | lab      each sets up what it needs (once, in .venv) and runs. Python 3.11+ and pip are all it asks for.
# Windows, or no make: the same three steps by hand are in README.md ("Without make").
#
# PYTHON=/path/to/python3.12   another Python        VENV=folder   another virtual environment

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
              $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN     = $(VENV)/bin/python
PIP     = $(RUN) -m pip install --disable-pip-version-check --no-compile $(if $(CI),--quiet) --constraint constraints.txt
CPU     = https://download.pytorch.org/whl/cpu

.PHONY: help demo test lab check mini clean

help:
	@echo "make demo   videos from the shipped weights on one page  (first time: 2 to 5 minutes of downloads; then under 1)"
	@echo "make test   every test, and every notebook as a test     (first time: some minutes more of downloads; then 2 to 4)"
	@echo "make lab    the chapters in JupyterLab"
	@echo "make check  what this machine can do, and what is missing"
	@echo "make mini   every choice of ours and every difference from the paper"
	@echo "make clean  removes $(VENV) and what the commands above wrote"

demo: $(VENV)/demo.stamp
	@echo "== demo: image model and video model from the same noise; no data, no network; under a minute"
	$(RUN) -m vldm_mini demo

test: $(VENV)/test.stamp
	@echo "== test: pytest on tests/ and notebooks/, at size xs; some minutes on two cores"
	$(RUN) -m vldm_mini test

lab: $(VENV)/lab.stamp
	@echo "== lab: JupyterLab opens in the browser; stop it with Ctrl-C"
	$(RUN) -m vldm_mini lab

check: $(VENV)/demo.stamp
	@$(RUN) -m vldm_mini check

mini:
	@$(PYTHON) -m vldm_mini check --mini

clean:
	rm -rf $(VENV) build demo_out sample_out .pytest_cache .ruff_cache *.egg-info

# The environment, and torch first. On Linux without an NVIDIA driver PyTorch's own index has the CPU build (190 MB instead of
# some 2.5 GB); where that index cannot be reached within seconds, the plain package from PyPI follows with the rest.
$(VENV)/torch.stamp:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "== set-up 1 of 2: a virtual environment in $(VENV) (nothing outside of it is touched), and torch"
	@$(PYTHON) -m venv $(VENV) || { echo "error: this Python has no venv module; on Debian or Ubuntu: apt install python3-venv"; exit 2; }
	@if [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	    echo "   no NVIDIA driver here: the CPU build of torch, about 190 MB"; \
	    timeout 5 $(RUN) -c "import urllib.request as u; u.urlopen('$(CPU)/torch/', timeout=4).read(1)" 2>/dev/null \
	      && $(PIP) --no-deps --index-url $(CPU) torch \
	      || echo "   its index is out of reach; the plain package comes with the rest (up to 2.5 GB)"; \
	else echo "   torch comes with the rest (Linux with CUDA: some 2.5 GB; macOS: 90 MB)"; fi
	@touch $@

$(VENV)/demo.stamp: WHAT = .[video]
$(VENV)/test.stamp: WHAT = .[test]
$(VENV)/lab.stamp: WHAT = .[notebooks]
$(VENV)/%.stamp: $(VENV)/torch.stamp pyproject.toml constraints.txt
	@echo "== set-up 2 of 2: the packages of \"$(WHAT)\" at the versions in constraints.txt"
	@$(PIP) --editable "$(WHAT)"
	@touch $@
