# make demo    faces in the sample photographs, words in the sample lines, by embedded INT8 models (no torch)
# make test    linters, types and all tests (everything installed)
# make lint    only the linters and types          make clean    remove what these made
#
# Needs Python 3.10 or newer, pip and make. Each environment is made once and again when its inputs change.

PYTHON ?= python3
PHOTOS := src/octavo/samples

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

# Some systems ship venv without ensurepip: then this Python's own pip fills the new environment.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Octavo needs Python 3.10 or newer; this is $$($(PYTHON) --version). Try: make $@ PYTHON=python3.12"; exit 1; }
	rm -rf $(1)
	$(PYTHON) -m venv $(1) 2>/dev/null || \
	    { rm -rf $(1); $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip -q --python $(1)/bin/python install pip; }
endef

# A real install, not an editable one: it shows that the wheel holds the models and photographs.
SOURCES := $(shell find src -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*')

.venv-demo/made: pyproject.toml
	$(call make_venv,.venv-demo)
	touch $@

.venv-demo/stamp: .venv-demo/made $(SOURCES)
	@echo "Installing octavo into .venv-demo ..."
	@rm -rf build  # setuptools would pack what an older build left there
	.venv-demo/bin/python -m pip install -q --disable-pip-version-check .
	touch $@

demo: .venv-demo/stamp
	.venv-demo/bin/octavo predict mtcnn-relu $(PHOTOS)/*.jpg --min-face 12 --save out/demo
	.venv-demo/bin/octavo predict vietocr-small $(PHOTOS)/text
	@echo "Annotated photographs: out/demo"

.venv-test/stamp: pyproject.toml
	$(call make_venv,.venv-test)
	@echo "Installing octavo and everything its tests use into .venv-test (some minutes) ..."
	.venv-test/bin/python -m pip install -q --disable-pip-version-check -e '.[train,test,openvino,coco,report]'
	touch $@

lint: .venv-test/stamp
	.venv-test/bin/ruff check
	.venv-test/bin/ruff format --check
	.venv-test/bin/mypy

test: lint
	.venv-test/bin/python -m pytest

clean:
	rm -rf .venv-demo .venv-test out build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
