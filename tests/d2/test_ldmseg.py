"""LDMSeg from both trainings to pictures and completed masks, by the tools."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dformer
from dformer.apps.interactive import as_json, load_model, segment
from dformer.d2.modeling.meta_arch import Request
from tests import run_script
from tests.d2.tiny import CONFIG, OF_SYSTEM, own_loggers, small_shapes


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("ldmseg")
    small_shapes(folder, "latents", train=8, val=3)
    (folder / "tiny.yaml").write_text(CONFIG)
    files = {}
    for system in ("MaskAutoencoder", "LDMSeg"):
        keys = {
            **yaml.safe_load(OF_SYSTEM[system]),
            "_BASE_": "tiny.yaml",
            "VERSION": 2,
            "DATASETS": {"TRAIN": ["latents_train"], "TEST": ["latents_val"]},
            "SOLVER": {"MAX_ITER": 4, "CHECKPOINT_PERIOD": 2, "BASE_LR": 0.001},
            "DETERMINISTIC": True,
            "VIS_PERIOD": 4,
        }
        keys["MODEL"] |= {"META_ARCHITECTURE": system, "EMA_DECAY": 0.9}
        keys["INPUT"] |= {"AUGMENTATION": "square"}
        keys["TEST"] |= {"CLASS_AGNOSTIC": True}
        (folder / f"{system}.yaml").write_text(yaml.safe_dump(keys))
        files[system] = str(folder / f"{system}.yaml")
    return files


def call(script: str, *arguments: object) -> int:
    with own_loggers():
        return run_script(script, *arguments)


def trained_and_resumed(config: str, folder, *options: object) -> dict:
    """Train, resume from the first half, and return the results; both end with the same weights."""
    train, again = ["tools/train_net.py", "--config-file", config], folder.with_name(f"{folder.name}_again")
    assert call(*train, *options, "OUTPUT_DIR", folder) == 0
    shutil.copytree(folder, again)
    (again / "model_final.pth").unlink()
    (again / "last_checkpoint").write_text("model_0000001.pth")
    assert call(train[0], "--resume", *train[1:], *options, "OUTPUT_DIR", again) == 0
    ends = [torch.load(path / "model_final.pth", weights_only=True) for path in (folder, again)]
    for part in ("model", "model_ema"):
        whole, resumed = (end[part] for end in ends)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    return json.loads((folder / "results.json").read_text())


def test_from_both_trainings_to_pictures(configs, tmp_path):
    first, run, data = tmp_path / "first", tmp_path / "run", Path(configs["LDMSeg"]).parent
    annotations = sorted(data.rglob("*"))
    results = trained_and_resumed(configs["MaskAutoencoder"], first)
    assert 0 <= results["metrics"]["latents_val"]["panoptic_seg"]["PQ_agnostic"] <= 100
    stage1 = ("MODEL.MASK_AUTOENCODER.WEIGHTS", first / "model_final.pth")
    results = trained_and_resumed(configs["LDMSeg"], run, *stage1)
    assert all(0 <= results[name] <= 100 for name in ("PQ", "AP", "mIoU"))
    weights, before = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (run, first))
    assert all(torch.equal(weights[f"head.{name}"], x) for name, x in before.items())  # stage 1 stays as it was
    events = next(run.glob("events.out.tfevents.*")).read_bytes()
    assert b"annotated" in events and b"at t = " in events and b"predicted" in events

    # without the file of stage 1, which is in the checkpoint
    (first / "model_final.pth").unlink()
    weights, image = run / "model_final.pth", np.zeros((48, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    evaluate = ["tools/train_net.py", "--eval-only", "--config-file", configs["LDMSeg"], "MODEL.WEIGHTS", weights]
    assert call(*evaluate, "OUTPUT_DIR", tmp_path / "eval") == 0
    again = json.loads((tmp_path / "eval/results.json").read_text())
    assert again["PQ"] == pytest.approx(results["PQ"])

    # the Python API, the demo, the page, the figures
    known = np.zeros((48, 80), np.uint8)
    known[:24, :40], known[:24, 40:] = 1, 6
    Image.fromarray(known).save(tmp_path / "known.png")
    predictor = dformer.load(str(weights))
    ids = predictor(image, known=known, steps=2).panoptic
    assert ids.shape == (48, 80) and len(np.unique(ids[:20, :36])) == 1 and ids[0, 0] > 0
    demo = ["--weights", weights, "--input", tmp_path / "image.png", "--output", tmp_path / "demo", "--steps", 2]
    assert call("tools/demo.py", *demo) == 0
    assert call("tools/demo.py", *demo, "--inpaint", tmp_path / "known.png") == 0
    assert json.loads((tmp_path / "demo/segments.json").read_text())["images"][0]["segments"]
    request = Request(("panoptic",), steps=4, seed=2)
    answer = segment(load_model(str(weights)), image, request, seconds=600)
    assert [stage.t for stage in answer] == [999, 749, 499, 249]
    assert json.loads(as_json(answer[-1], vars(request)))["steps"] == 4
    left = answer[-1].panoptic.astype(np.uint8)
    left[:, 40:] = 0
    again = segment(load_model(str(weights)), image, request, seconds=600, known=left)
    after = again[-1].panoptic
    kept = [np.unique(after[left == number], return_counts=True)[1].max() for number in np.unique(left[left > 0])]
    assert sum(kept) >= 0.9 * (left > 0).sum()  # but at borders, which are resized
    assert sorted(data.rglob("*")) == annotations  # class-agnostic evaluation writes nothing there
    figures = [tmp_path / "steps.png", tmp_path / "steps.gif"]
    data = ["--weights", weights, "--dataset", "latents_val"]
    assert call("tools/visualize_diffusion.py", *data, "--output", *figures) == 0
    assert Image.open(figures[1]).n_frames == 2
    noise = ["--times", 0, 500, 999, "--output", tmp_path / "noise.png"]
    assert call("tools/visualize_diffusion.py", *data, *noise) == 0
    assert Image.open(tmp_path / "noise.png").width > 3 * 480 / 2


def test_training_in_mixed_precision_stays_finite(configs, tmp_path):
    train = ["tools/train_net.py", "--config-file", configs["MaskAutoencoder"], "OUTPUT_DIR", tmp_path]
    assert call(*train, "SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16") == 0
    stage1 = ("MODEL.MASK_AUTOENCODER.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "second")
    train = ["tools/train_net.py", "--config-file", configs["LDMSeg"], *stage1]
    assert call(*train, "SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16") == 0
    for line in (tmp_path / "second/metrics.json").read_text().splitlines():
        assert np.isfinite(json.loads(line).get("total_loss", 0.0))
