"""Faults in a training: a few, and with `-m slow` as many as docs/reliability.md reports (-s prints outcomes)."""

import pytest

from tests.faults.harness import killed, rank_killed, repeat, terminated, worker_killed


@pytest.mark.parametrize(
    "fault, count",
    [
        (killed, 2),
        (terminated, 1),
        pytest.param(killed, 50, marks=pytest.mark.slow),
        pytest.param(terminated, 20, marks=pytest.mark.slow),
        pytest.param(worker_killed, 10, marks=pytest.mark.slow),
        pytest.param(rank_killed, 5, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_ends_as_an_undisturbed_one(fault, count, tmp_path):
    outcomes = repeat(fault, count, tmp_path, seed=1)
    assert outcomes.total() >= count
    print(fault.__name__, dict(outcomes))
