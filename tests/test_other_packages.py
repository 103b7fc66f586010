"""The suite beside packages that are called as our folders are: Detectron2's main installs a top-level `tools`."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

CORE = ["tests/tools", "tests/datasets", "tests/benchmarks/test_measure.py", "tests/apps/test_convert_dataset.py"]


@pytest.mark.slow
def test_packages_of_the_same_names_are_not_taken_for_ours(tmp_path):
    for package in ("tools", "datasets", "benchmarks"):  # regular packages, so they win over our folders everywhere
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "train_net.py").write_text("raise RuntimeError('of Detectron2')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    imported = "import tools.train_net"
    assert (
        b"of Detectron2"
        in subprocess.run(
            [sys.executable, "-c", imported], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        ).stderr
    )
    for arguments in (["--collect-only", "-qq"], ["-q", "-x", *CORE]):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, process.stdout[-3000:]
