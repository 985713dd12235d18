#!/usr/bin/env python
"""Fuzz the parser of XSF files: ``python fuzz/fuzz_xsf.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("xsf")
