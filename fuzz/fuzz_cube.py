#!/usr/bin/env python
"""Fuzz the parser of Gaussian cubes: ``python fuzz/fuzz_cube.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("cube")
