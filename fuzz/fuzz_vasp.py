#!/usr/bin/env python
"""Fuzz the parser of CHGCARs and POSCARs: ``python fuzz/fuzz_vasp.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("vasp")
