"""The inputs that fuzzing kept (`fuzz/README.md`): each reads, as its own slow reading says, or raises DensityFileError."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, examine_bytes

CORPUS = Path(__file__).parent / "fuzz_corpus"
MOST_SECONDS, MOST_MEGABYTES = 20, 500  # for all files of a parser


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_reads_or_is_refused(name):
    files = sorted((CORPUS / name).iterdir())
    assert files
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for file in files:
        try:
            examine_bytes(name, file.read_bytes())
        except Exception as error:
            error.add_note(str(file))
            raise
    assert time.perf_counter() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024 < MOST_MEGABYTES


def test_the_corpus_is_small():
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 300_000
