"""The scripts on small models and inputs, as a user runs them; none may leave a case out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from dformer.apps import shapes
from dformer.d2.checkpoint.checkpointer import ASSETS
from dformer.d2.config import get_cfg, merge_config
from tests import ROOT, run_script

SMALL = ["--device", "cpu", "--rounds", "1", "--sizes", "64x50", "--masks", "12", "--opts"]
SMALL += ["MODEL.MASK_DECODER.NUM_LAYERS", "1", "MODEL.PIXEL_DECODER.NUM_LAYERS", "1"]
SMALL += ["MODEL.CRITERION.NUM_POINTS", "64"]


def run(folder: Path, script: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """Run a script of benchmarks/ and return the rows of its record."""
    record = folder / "record.json"
    command = [sys.executable, f"benchmarks/{script}", "--json", str(record), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == record.with_suffix(".md").read_text().strip()
    *rows, _ = json.loads(record.read_text())
    return rows


@pytest.mark.slow
def test_all_modes(tmp_path: Path) -> None:
    rows = run(tmp_path, "model.py", "--models", "dformer", "--steps", "1", "4", "--no-peak", "--profile", *SMALL)
    inference = [(mode, steps) for mode in ("forward", "inference") for steps in (1, 4)]
    assert [(row["mode"], row["steps"]) for row in rows] == [*inference, ("train", 1)]
    more = {"forward": (), "inference": ("post-processing",), "train": ("matching", "losses", "backward", "optimizer")}
    for row in rows:
        parts = ("backbone", "pixel decoder", "mask decoder", *more[row["mode"]], "other", "median")
        assert {key for key in row if key.endswith("_ms")} == {f"{part}_ms" for part in parts}
        assert row["median_ms"] > 0 and row["peak_mib"] is None and row["size"] == "64x50" and row["masks"] == 12
    assert rows[0]["gflop"] < rows[1]["gflop"] and rows[2]["gflop"] < rows[3]["gflop"]


def test_beside_transformers(tmp_path: Path) -> None:
    """The peer has as much to do as our Mask2Former: as many FLOPs and parameters, but for details."""
    pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[bench]'")
    rows = run(tmp_path, "model.py", "--models", "mask2former", "transformers", "--no-peak", *SMALL)
    ours, theirs = ({r["mode"]: r for r in rows if r["model"] == model} for model in ("mask2former", "transformers"))
    assert list(ours) == list(theirs) == ["forward", "inference", "train"]
    for mode in ("forward", "train"):
        assert theirs[mode]["gflop"] == pytest.approx(ours[mode]["gflop"], rel=0.05)
        assert theirs[mode]["million_parameters"] == pytest.approx(ours[mode]["million_parameters"], rel=0.01)


@pytest.mark.slow
def test_peak_memory(tmp_path: Path) -> None:
    (row,) = run(tmp_path, "model.py", "--models", "mask2former", "--modes", "forward", *SMALL)
    assert 1 < row["peak_mib"] < 1000


def test_loading(data_dir: Path, tmp_path: Path) -> None:
    """The script itself checks that both mappers give the same."""
    arguments = ["--dataset", "coco_2017_val_panoptic", "--images", "3", "--rounds", "1"]
    rows = run(tmp_path, "loading.py", *arguments, DETECTRON2_DATASETS=str(data_dir / "coco_panoptic"))
    assert [row["mapper"] for row in rows] == ["dformer", "detectron2"]


@pytest.mark.slow
def test_startup(data_dir: Path, tmp_path: Path) -> None:
    rows = run(tmp_path, "startup.py", "--processes", "2", DETECTRON2_DATASETS=str(data_dir / "coco_panoptic"))
    starts = [(row["start"], row["processes"], row["launcher"]) for row in rows]
    many = [(1, "-"), (2, "--num-gpus"), (2, "torchrun")]
    assert starts == [*(("train", *x) for x in many), *(("bare", *x) for x in many), ("detectron2", 1, "-")]
    assert all(row["cpu_s"] > 1 and row["pss_gib"] > 0.1 for row in rows)


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    (row,) = run(tmp_path, "demo.py", "--weights", "dformer://shapes", "--input", str(ASSETS / "examples"))
    assert row["frames"] == 6 and len(row["MiB"]) == 4
    assert all(row[part] > 0 for part in ("model", "drawing", "reading and writing"))


@pytest.mark.slow
def test_tiles(tmp_path: Path) -> None:
    shapes.generate(tmp_path, shapes.Parameters(train=1, val=2), progress=False)
    arguments = ["--grids", "2x1", "--overlaps", "64"]
    alone, tiled = run(tmp_path, "inference/tiles.py", *arguments, DETECTRON2_DATASETS=str(tmp_path))
    assert alone["PQ"] > 60 and tiled["PQ"] > alone["PQ"] - 20 and tiled["picture"] == "1200x667"


def test_all_that_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without one, it is refused; the commands are those of this checkout."""
    assert run_script("benchmarks/gpu.py", "--dry-run", "--output", tmp_path) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all((ROOT / command[1]).exists() or command[1:5] == ["-m", "pytest", "-m", "gpu"] for command in commands)
    assert len(commands) == 3 and all(Path(command[-1]).parent == tmp_path for command in commands)
    if not torch.cuda.is_available():
        assert run_script("benchmarks/gpu.py") == 2


def test_deformable_attention(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--rounds", "1", "--cases", "512x512, batch 1", "--dtypes", "float32"]
    ours, plain = run(tmp_path, "ms_deform_attn.py", *arguments)
    assert ours["implementation"].startswith("dformer") and plain["implementation"] == "reference"


@pytest.mark.slow
def test_ldmseg(tmp_path: Path) -> None:
    small = ["parts", "--device", "cpu", "--rounds", "1", "--sizes", "128", "--steps", "1", "2"]
    small += ["--channels", *["32"] * 4]
    rows = [row for row in run(tmp_path, "ldmseg.py", *small) if row["implementation"] == "dformer"]
    assert [(row["part"], row["steps"]) for row in rows] == [("U-Net", 1), ("U-Net", 2), ("decoder", "-")]
    assert all(row["cpu_ms"] > 0 and row["peak_mib"] >= 0 for row in rows)


@pytest.mark.slow
def test_diffusioninst_beside_a_plain_build(tmp_path: Path) -> None:
    """Both find the same instances, with the same masks."""
    small = ["--sizes", "96x128", "--boxes", "20", "--rounds", "1", "--no-peak"]
    rows = run(tmp_path, "diffusioninst.py", *small, "--opts", "MODEL.ROI_DECODER.NUM_STAGES", "2")
    assert [(row["build"], row["steps"]) for row in rows] == [("plain", 1), ("ours", 1), ("plain", 4), ("ours", 4)]
    assert all(
        row["instances"] > 0 and row["same_instances"] > 0.9 and row["differing_pixels"] < 1e-3 and row["cpu_ms"] > 0
        for row in rows
    )
    (row,) = run(tmp_path, "diffusioninst.py", "--memory", "--sizes", "96x128", "--boxes", "100")
    assert row["decoder_recomputed_mib"] < row["decoder_kept_mib"] / 2


@pytest.mark.slow
def test_pix2seqd(tmp_path: Path) -> None:
    small = {"ENCODER_DIM": 32, "ENCODER_LAYERS": 1, "ENCODER_HEADS": 4, "UNET_DIM": 16, "DECODER_LAYERS": 1}
    opts = [word for key, value in small.items() for word in (f"MODEL.PIX2SEQD.{key}", str(value))]
    opts += ["MODEL.PIX2SEQD.DECODER_HEADS", "4"]
    arguments = ["--device", "cpu", "--rounds", "1", "--sizes", "64", "--steps", "1", "3", "--bits", "4", "6"]
    rows = run(tmp_path, "pix2seqd.py", *arguments, "--opts", *opts, "MODEL.SIZE_DIVISIBILITY", "64")
    assert [(row["bits"], row["steps"]) for row in rows] == [(12, 1), (12, 3), (14, 1), (14, 3)]
    assert all(row["inference_ms"] > 0 and row["peak_mib"] >= 0 for row in rows)
    assert rows[0]["decoder_gflop"] < rows[2]["decoder_gflop"] and rows[0]["encoder_gflop"] == rows[2]["encoder_gflop"]


@pytest.mark.slow
def test_ids_of_past_maps(tmp_path: Path) -> None:
    """A model with random weights keeps no id, and knows none without a past."""
    assert run_script("datasets/moving_shapes.py", "--root", tmp_path, "--clips", 2, "--frames", 4) == 0
    cfg, weights = get_cfg(), tmp_path / "model.pth"
    merge_config(cfg, "configs/quick/pix2seqd_moving_shapes.yaml", ["MODEL.DEVICE", "cpu", "MODEL.EMA_DECAY", "0.0"])
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump()}, weights)
    arguments = [str(weights), "--frames", "8", "--steps", "2"]
    rows = run(tmp_path, "video/past_maps.py", *arguments, DETECTRON2_DATASETS=str(tmp_path))
    assert [row["ids"] for row in rows] == ["kept", "permuted", "without", "class right"]
    assert all(row["pixels"] < 50 and row["things"] < 50 for row in rows[:3])
