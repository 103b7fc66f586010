"""Faults in the middle of a training, a few; with `-m slow` as many as docs/reliability.md tells of."""

import os

import pytest

from tests.faults.harness import repeat


@pytest.mark.parametrize("fault, count", [("killed", 3), ("terminated", 2), ("worker", 1)])
def test_a_resumed_training_ends_as_an_undisturbed_one(fault, count, tmp_path):
    assert repeat(fault, count, tmp_path, seed=1).total() >= count


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, count", [("killed", 50), ("terminated", 20), ("worker", 10), ("full-disk", 5), ("rank", 5)]
)
def test_a_resumed_training_ends_as_an_undisturbed_one_each_time(fault, count, tmp_path):
    if fault == "full-disk" and os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    assert repeat(fault, count, tmp_path).total() >= count
