"""benchmarks/model.py on small models and images, as a user calls it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]
SMALL = ["MODEL.MASK_DECODER.NUM_LAYERS", "1", "MODEL.PIXEL_DECODER.NUM_LAYERS", "1"]
SMALL += ["MODEL.CRITERION.NUM_POINTS", "64"]
FIELDS = ["model", "mode", "size", "batch", "dtype", "steps", "compiled", "median_ms", "peak_mib"]


def run(script: Script, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """The script with these options, on the CPU; it must leave no case out."""
    common = ["--device", "cpu", "--rounds", "1", "--sizes", "64x50", "--masks", "12"]
    monkeypatch.setattr(sys, "argv", ["model.py", *common, *options, "--opts", *SMALL])
    with pytest.raises(SystemExit) as exit_:
        script("model").main()
    assert exit_.value.code == 0


def test_all_modes_of_our_models(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    models = ["--models", "dformer", "mask2former", "--steps", "1", "2", "3", "--no-peak", "--profile"]
    run(script, monkeypatch, *models, *files)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [list(row) for row in rows] == [FIELDS] * len(rows)
    dformer = [("dformer masks=12", mode, steps) for mode in ("forward", "inference") for steps in (1, 2, 3)]
    mask2former = [("mask2former masks=12", mode, 1) for mode in ("forward", "inference")]
    training = [("dformer masks=12", "train", 1), ("mask2former masks=12", "train", 1)]
    assert [(row["model"], row["mode"], row["steps"]) for row in rows] == [*dformer, *mask2former, *training]
    assert all(row["median_ms"] > 0 and row["peak_mib"] is None and row["size"] == "64x50" for row in rows)
    told = capsys.readouterr().out
    assert told.strip() == (tmp_path / "out.md").read_text().strip()
    for part in ("backbone", "pixel decoder", "mask decoder", "post-processing", "matching", "backward", "optimiser"):
        assert f"| {part}" in told
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_beside_transformers(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer has as much to do as our Mask2Former: as many FLOPs and parameters, but for details."""
    pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[bench]'")
    module = script("model")
    measured = []
    monkeypatch.setattr(module, "report", lambda results, _: measured.extend(results) or "")
    run(script, monkeypatch, "--models", "mask2former", "transformers", "--no-peak")
    ours, theirs = ({r.case.mode: r for r in measured if r.case.model == m} for m in ("mask2former", "transformers"))
    assert list(ours) == list(theirs) == ["forward", "inference", "train"]
    for mode in ("forward", "train"):
        assert theirs[mode].flops == pytest.approx(ours[mode].flops, rel=0.05)
        assert theirs[mode].parameters == pytest.approx(ours[mode].parameters, rel=0.01)


def test_peak_memory_is_that_of_a_fresh_process(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    json_file = str(tmp_path / "out.json")
    run(script, monkeypatch, "--models", "mask2former", "--modes", "forward", "--json", json_file)
    (row,) = json.loads(Path(json_file).read_text())
    assert 1 < row["peak_mib"] < 1000
