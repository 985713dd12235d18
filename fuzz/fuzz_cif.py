#!/usr/bin/env python
"""Fuzz the parser of CIFs: ``python fuzz/fuzz_cif.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("cif")
