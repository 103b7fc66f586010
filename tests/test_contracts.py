"""The floors of the package: an import goes down, and the core stands without Detectron2."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run([sys.executable, "-c", script, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_imports_keep_the_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("dformer/losses/criterion.py", "import dformer.models"),  # up
        ("dformer/losses/criterion.py", "import dformer.postprocess.queries"),  # sideways
        ("dformer/diffusion/sampler.py", "import dformer.d2.config.defaults"),  # past the floors between
        ("dformer/visualize/color.py", "from detectron2.structures import Instances"),
        ("dformer/d2/data/mappers.py", "import dformer.d2.modeling.backbones"),  # up, inside d2
        ("dformer/d2/engine/trainer.py", "import dformer.apps.demo"),
        ("dformer/astray.py", ""),  # a module outside the rooms
    ],
)
def test_a_wrong_import_breaks_them(tmp_path: Path, module: str, statement: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "dformer", tmp_path / "dformer", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{statement}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr


TEXT = {".py", ".cpp", ".cu", ".cuh", ".h", ".md", ".yaml", ".toml", ".json"}


def test_files_and_folders_stay_small() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.splitlines()]
    if not files:
        pytest.skip("not a git checkout")
    assert not [file for file in files if file.suffix in TEXT and len(file.read_text().splitlines()) > 400]
    assert not [folder for folder, count in Counter(file.parent for file in files).items() if count > 12]
