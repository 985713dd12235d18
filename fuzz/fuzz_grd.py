#!/usr/bin/env python
"""Fuzz the parser of VESTA's .grd: ``python fuzz/fuzz_grd.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("grd")
