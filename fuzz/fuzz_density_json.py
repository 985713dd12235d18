#!/usr/bin/env python
"""Fuzz the parser of densities in JSON (Chgcar and Density): ``python fuzz/fuzz_density_json.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("density_json")
