"""DiffusionInst from training to pictures, by the tools."""

import json
import shutil

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
def config(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("diffusioninst")
    small_shapes(folder, "boxes", train=8, val=3)
    (folder / "tiny.yaml").write_text(CONFIG)
    keys = {
        **yaml.safe_load(OF_SYSTEM["DiffusionInst"]),
        "_BASE_": "tiny.yaml",
        "VERSION": 2,
        "DATASETS": {"TRAIN": ["boxes_train"], "TEST": ["boxes_val"]},
        "SOLVER": {"MAX_ITER": 4, "CHECKPOINT_PERIOD": 2, "BASE_LR": 0.001},
        "DETERMINISTIC": True,
        "VIS_PERIOD": 4,
    }
    keys["MODEL"]["META_ARCHITECTURE"] = "DiffusionInst"
    keys["MODEL"]["EMA_DECAY"] = 0.9
    keys["INPUT"] |= {"AUGMENTATION": "resize", "MIN_SIZE_TRAIN": [64]}
    keys["DIFFUSION"]["SAMPLING_STEPS"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    return str(folder / "config.yaml")


def call(script: str, *arguments: object) -> int:
    with own_loggers():
        return run_script(script, *arguments)


def test_from_training_to_pictures(config, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    train = ["tools/train_net.py", "--config-file", config]
    assert call(*train, "OUTPUT_DIR", run) == 0
    results = json.loads((run / "results.json").read_text())
    assert 0 <= results["AP"] <= 100 and "PQ" not in results
    events = next(run.glob("events.out.tfevents.*")).read_bytes()
    assert b"annotated" in events and b"at t = " in events and b"predicted" in events

    # resumed from its first half
    shutil.copytree(run, again)
    (again / "model_final.pth").unlink()
    (again / "last_checkpoint").write_text("model_0000001.pth")
    assert call(train[0], "--resume", *train[1:], "OUTPUT_DIR", again) == 0
    ends = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (run, again)]
    for part in ("model", "model_ema"):
        whole, resumed = (end[part] for end in ends)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    weights, image = run / "model_final.pth", np.zeros((48, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    evaluated = ["--eval-only", *train[1:], "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "eval"]
    assert call(train[0], *evaluated) == 0
    assert json.loads((tmp_path / "eval/results.json").read_text())["AP"] == pytest.approx(results["AP"])

    # the Python API, the demo, the page, the figures
    found = dformer.load(str(weights))(image, threshold=0.0)
    assert found.masks.shape == (len(found.names), 48, 80) and len(found.names) > 0
    demo = ["--weights", weights, "--input", tmp_path / "image.png", "--output", tmp_path / "demo"]
    assert call("tools/demo.py", *demo, "--steps", 2) == 0
    assert (tmp_path / "demo/segments.json").is_file()
    request = Request(("instance",), steps=3, seed=2, proposals=12)
    answer = segment(load_model(str(weights)), image, request, seconds=600)
    assert [stage.t for stage in answer] == [999, 665]  # the last of several steps does not count and is not run
    assert json.loads(as_json(answer[-1], vars(request)))["proposals"] == 12
    figures = [tmp_path / "steps.png", tmp_path / "steps.gif"]
    data = ["--weights", weights, "--dataset", "boxes_val"]
    assert call("tools/visualize_diffusion.py", *data, "--steps", 3, "--output", *figures) == 0
    assert Image.open(figures[1]).n_frames == 4  # two steps of two stages; the third does not count
    noise = ["--times", 0, 500, 999, "--output", tmp_path / "noise.png"]
    assert call("tools/visualize_diffusion.py", *data, *noise) == 0
    assert Image.open(tmp_path / "noise.png").width > 3 * 480 / 2
