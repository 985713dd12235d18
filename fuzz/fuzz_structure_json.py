#!/usr/bin/env python
"""Fuzz the parser of structures in JSON: ``python fuzz/fuzz_structure_json.py CORPUS_FOLDER [libFuzzer options]``."""

from harness import run

run("structure_json")
