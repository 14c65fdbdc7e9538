# The few commands of the house, each of which runs without make as well. (make, and not just: it is everywhere.)


help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup:  ## make .venv, with all that the tests and the linters need
	sh scripts/venv .venv dev

test:  ## the quick suite
	sh scripts/test

test-all:  ## with the harnesses of docs/reliability.md
	sh scripts/test --all

lint: setup  ## ruff, its format, and the types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup  ## have ruff put the sources into form
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

demo:  ## the whole path on real input
	sh scripts/demo

bench:  ## how fast it is, beside others; two minutes
	sh scripts/bench

docs: setup  ## the site, at http://127.0.0.1:8000 while you write
	.venv/bin/mkdocs serve -f docs/mkdocs.yml

gate:  ## all that a change has to pass
	bash .ci/run

.PHONY: help setup test test-all lint format demo bench docs gate
