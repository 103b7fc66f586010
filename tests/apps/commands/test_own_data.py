"""From a folder of images to a report, by the commands of docs/fine_tuning.md."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests import ROOT

SHORT = ["SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1", "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0"]


def blocks(page: str, section: str) -> list[list[str]]:
    """The indented blocks of a section, as lines."""
    text = (ROOT / page).read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1].append(line[4:])
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:72, :96]
    for k in range(8):
        image = rng.integers(60, 90, (72, 96, 3)).astype(np.uint8)
        name = f"patient{k // 2}_slice{k}"
        (folder / "masks" / name).mkdir(parents=True)
        for number, (row, column) in enumerate(rng.uniform(8, 64, (5, 2))):
            inside = (y - row) ** 2 + (x - column) ** 2 < rng.uniform(3, 6) ** 2
            image[inside] = rng.integers(150, 255, 3)
            Image.fromarray(inside * np.uint8(255)).save(folder / "masks" / name / f"{number}.png")
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")


@pytest.mark.slow
def test_from_a_folder_to_a_report(tmp_path: Path) -> None:
    write_images(tmp_path)
    declaration, commands = blocks("docs/fine_tuning.md", "From a folder to a report")
    name = declaration[0].removeprefix("# ")
    (tmp_path / name).write_text("\n".join(declaration))
    assert len(commands) == 3
    for line in commands:
        program, verb, *arguments = shlex.split(line)
        assert program == "dformer"
        command = [sys.executable, "-m", "dformer", verb, *arguments, *(SHORT if verb == "train" else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr
    config = yaml.safe_load((tmp_path / "cells_config.yaml").read_text())
    assert config["INPUT"]["AUGMENTATION"] == "native" and config["TEST"]["TILE"] == 128
    results = yaml.safe_load((tmp_path / "output" / "cells" / "results.json").read_text())
    assert "AP" in results and list(results["metrics"]) == ["cells_val"]
    report = (tmp_path / "report.html").read_text()
    assert "cells_val" in report
    shown = {name for name in os.listdir(tmp_path / "images") if name in report}
    patients = {name.split("_")[0] for name in shown}  # of the images that were held out
    assert shown and shown == {name for name in os.listdir(tmp_path / "images") if name.split("_")[0] in patients}
