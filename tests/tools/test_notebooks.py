"""The notebooks run from the first cell to the last, in a folder of their own."""

import os
from pathlib import Path

import pytest

from tests import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytestmark = pytest.mark.slow


def execute(name: str, folder: Path, monkeypatch, **values: int) -> dict:
    """Run a notebook with some numbers changed, and return it with its outputs."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    for variable, value in values.items():
        (cell,) = (cell for cell in notebook.cells if cell.source.startswith(f"{variable} = "))
        cell.source = f"{variable} = {value}\n" + cell.source.partition("\n")[2]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def pictures(notebook: dict) -> int:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_segment(tmp_path, monkeypatch):
    assert pictures(execute("segment.ipynb", tmp_path, monkeypatch)) == 3
    assert (tmp_path / "shapes.png").is_file() and (tmp_path / "shapes.json").is_file()


def test_own_data(tmp_path, monkeypatch):
    assert pictures(execute("own_data.ipynb", tmp_path, monkeypatch, ITERATIONS=2)) == 2
    assert (tmp_path / "output" / "model_final.pth").is_file()
