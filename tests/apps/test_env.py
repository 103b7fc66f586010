"""The one screen on the environment."""

import subprocess
import sys
from pathlib import Path

import torch

import dformer
from dformer import ops
from dformer.apps import env
from tests import ROOT


def python(*arguments: str) -> str:
    """Run a fresh Python; return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def screen(*flags: str) -> dict[str, str]:
    """The screen that a fresh Python prints, as label -> text."""
    lines = python(*flags, "-m", "dformer.apps.env").splitlines()
    return {label: text for label, _, text in (line.partition("  ") for line in lines)}


def test_screen_shows_versions_devices_and_operators() -> None:
    lines = {label: text.strip() for label, text in screen().items()}
    assert lines["dformer"].startswith(dformer.__version__)
    assert torch.__version__.startswith(lines["torch"])
    assert f"PyTorch uses {torch.get_num_threads()} threads" in lines["CPU"]
    for kind in ("cpu", "cuda"):
        assert lines[f"ms_deform_attn, {kind}"].startswith(f"{ops.implementation(kind)}: ")
    assert ("GPU 0" in lines) == torch.cuda.is_available()


def test_screen_without_any_package_names_what_is_missing_and_the_commands() -> None:
    lines = screen("-S")  # without site-packages
    assert all(lines[name].strip() == "missing" for name in env.REQUIRED)
    assert "ms_deform_attn, cpu" not in lines
    assert lines["to get"].endswith("panopticapi-lite, detectron2: dformer install-detectron2")


def test_whose_detectron2(tmp_path: Path) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").touch()
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    script += "from dformer.apps import env; print(env.detectron2_state())"

    def state() -> str:
        return subprocess.check_output([sys.executable, "-S", "-c", script], cwd=ROOT, text=True).strip()

    assert state() == f"version unknown, your own, in {package}"
    metadata = tmp_path / "detectron2-0.5+dformer.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.5+dformer.1\n")
    state = python("-S", "-c", script).strip()
    assert state == f"0.5+dformer.1, pure Python build of dformer install-detectron2, in {package}"
