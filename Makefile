# Every target sets up what it needs by itself; `make setup` again is quick when nothing is to do.
# scripts/ has the work, so that the same commands run without make.

.PHONY: help setup demo check test test-unit test-vm bench docs lock clean

help:
	@echo 'make demo       run a first sandbox'
	@echo 'make setup      install everything needed; the command is then .venv/bin/hutch'
	@echo 'make check      lint, types, import contracts'
	@echo 'make test       all tests: Rust, unit, real VMs, faults'
	@echo 'make test-unit  the tests that need no VM'
	@echo 'make test-vm    only those with real VMs'
	@echo 'make bench      measure; writes bench-results/*.json'
	@echo 'make docs       write what docs/ and spec/ generate from the code'
	@echo 'make lock       write the lock files anew'

setup:
	@scripts/setup all

demo:
	@scripts/setup run
	.venv/bin/hutch run --rm busybox uname -a

check: setup
	@scripts/check

test: setup
	@scripts/test

test-unit: setup
	@scripts/test rust unit

test-vm: setup
	@scripts/test vm

bench: setup
	-@scripts/packages bench
	.venv/bin/python -m tests.bench

docs: setup
	.venv/bin/python scripts/docs.py
	.venv/bin/python scripts/openapi.py
	.venv/bin/python scripts/golden_frames.py

lock:
	@scripts/lock --upgrade
	@python3 scripts/crates.py --record

clean:
	rm -rf .venv guest-agent/target build dist
