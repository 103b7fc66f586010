"""On systems that lack what Linux has: inference works, training says what it needs."""

import os
import subprocess
import sys

from tests import ROOT

HIDE = """
import os, sys
import torch, detectron2.engine  # which may use what they like
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # an ImportError
del os.sched_getaffinity
import multiprocessing, signal
multiprocessing.get_all_start_methods = lambda: ["spawn"]
del signal.SIGUSR1, signal.pthread_sigmask, signal.sigwaitinfo
"""
USE = """
import numpy as np
import dformer
model = dformer.load("dformer://shapes")
assert model(np.zeros((64, 64, 3), np.uint8)).panoptic.shape == (64, 64)
import dformer.apps.demo, dformer.apps.interactive, dformer.apps.report, dformer.apps.data_report
from dformer.utils.processes import parallel_map
assert parallel_map(abs, range(-99, 0)) == [*range(99, 0, -1)]
from tests import load_script
sys.platform = "darwin"
sys.argv = ["train_net.py", "--config-file", "configs/quick/dformer_shapes.yaml"]
load_script("tools/train_net.py").main()
"""


def test_without_what_only_linux_has():
    process = subprocess.run(
        [sys.executable, "-c", HIDE + USE],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ") and "Linux" in process.stderr
