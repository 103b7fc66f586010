"""`make` removes an environment only where it has made it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `make env` with a Python that fails, so that nothing is installed."""
    command = ["make", "env", f"VENV={folder}", "PYTHON=false"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("files", [(), ("pyvenv.cfg",), (".dformer-unfinished",)], ids=["plain", "of uv", "no venv"])
def test_a_folder_that_is_not_ours_is_kept(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in (*files, "precious"):
        (tmp_path / name).touch()
    process = make_env(tmp_path)
    assert process.returncode == 2 and str(tmp_path) in process.stderr
    assert {file.name for file in tmp_path.iterdir()} == {*files, "precious"}


@pytest.mark.parametrize("mark", [".dformer-ready", ".dformer-unfinished"])
def test_a_broken_environment_of_ours_is_removed(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "env"
    folder.mkdir()
    for name in ("pyvenv.cfg", mark):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))  # older than requirements.lock
    make_env(folder)
    assert not folder.exists()


def test_a_name_with_a_space_is_refused(tmp_path: Path) -> None:
    for name in ("my", "my env"):
        (tmp_path / name).mkdir()
    process = make_env(tmp_path / "my env")
    assert process.returncode == 2 and "my env" in process.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"my", "my env"}
