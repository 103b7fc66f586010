"""The wheel in a folder elsewhere: commands, configs, kernels and the quickstart, without the checkout."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from detectron2.modeling import build_model
from PIL import Image

import dformer
from dformer.d2.config import get_cfg, merge_config
from dformer.weights.published.convert import to_published
from tests import ROOT
from tests.ops.test_build import wheel
from tests.server import serving

pytestmark = pytest.mark.slow

SHORT = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.WARMUP_ITERS", 1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A fresh environment with the wheel, built without kernels, and the packages that the tests have."""
    folder = tmp_path_factory.mktemp("elsewhere")
    built, _ = wheel(folder, DFORMER_BUILD_OPS="0")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install"]
    subprocess.run([*install, "--no-deps", "--no-index", "--quiet", built], check=True)
    shutil.rmtree(folder / "source0")
    (folder / "work").mkdir()
    return folder


def run(environment: Path, *arguments: object, status: int = 0, program: Sequence[str] = ("dformer",)) -> str:
    """Run `dformer` in a folder without a checkout, and return what it prints."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DETECTRON2_DATASETS")}
    variables |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(environment / "cache")}
    command = [environment / "venv" / "bin" / program[0], *program[1:], *map(str, arguments)]
    done = subprocess.run(command, cwd=environment / "work", env=variables, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_the_wheels_and_builds_its_kernels(environment):
    told = run(environment, "env")
    (first,) = (line for line in told.splitlines() if line.startswith("dformer "))
    assert dformer.__version__ in first and str(environment / "venv") in first
    assert "Detectron2" in run(environment, "install-detectron2")  # there is one, which is kept
    if shutil.which("g++"):
        assert list((environment / "cache").rglob("ms_deform_attn-cpu*.so"))


def test_from_data_to_pictures(environment):
    """What the quickstart does, on few images and for two iterations, and the other commands."""
    work = environment / "work"
    run(environment, "shapes", "--train", 4, "--val", 2, "--size", 64)
    run(environment, "check", "shapes_train", "shapes_val")
    config = ["--config-file", "configs/quick/dformer_shapes.yaml"]
    run(environment, "train", *config, "OUTPUT_DIR", "output", *SHORT)
    weights = work / "output" / "model_final.pth"
    run(environment, "eval", *config, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", "evaluated")
    assert "PQ" in json.loads((work / "evaluated" / "results.json").read_text())
    images = sorted((work / "datasets" / "shapes" / "val").glob("*.jpg"))
    run(environment, "demo", "--weights", "dformer://shapes", "--input", *images, "--output", "pictures")
    found = json.loads((work / "pictures" / "segments.json").read_text())["images"]
    assert len(found) == 2 and all(record["segments"] for record in found)
    run(environment, "convert", weights, "half.safetensors", "--half")
    run(environment, "convert-dataset", "shapes_val", "--to", "instance_ids", "--output", "ids")
    run(environment, "analyze", "output", "--output", "report.html")
    run(environment, "visualize-data", *config, "--images", 1, "--draws", 1)
    run(environment, "visualize-diffusion", "--weights", weights, "--input", images[0], "--output", "steps.png")
    run(environment, "eval", *config, "MODEL.WEIGHTS", "no.pth", status=2)
    for name in ("half.safetensors", "ids/dataset.yaml", "report.html", "sheet.jpg", "steps.png"):
        assert (work / name).is_file(), name
    described = run(environment, "env").replace(sys.prefix, "")  # what runs the tests may lie in the checkout
    assert str(ROOT) not in described


NAME = "mask2former/coco/panoptic/r50"
# The command with another address of a published model.
ELSEWHERE = """
import sys
from dformer.apps.commands import main
from dformer.weights.published.downloads import MODELS
MODELS["{name}"] = MODELS["{name}"]._replace(url="{url}", md5="{md5}")
main()
"""


def test_from_nothing_to_a_segmented_photograph(environment, record_testsuite_property):
    """The second of the two commands, with a file of the published one's layout from a server on this machine."""
    cfg = get_cfg()
    merge_config(cfg, "configs/coco/panoptic/mask2former_r50_50ep.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    weights = {name: x.numpy() for name, x in to_published(build_model(cfg).state_dict()).items()}
    served = environment / "served"
    served.mkdir()
    with (served / "model_final_94dc52.pkl").open("wb") as file:
        pickle.dump({"model": weights, "__author__": "third_party", "matching_heuristics": True}, file)
    md5 = hashlib.md5((served / "model_final_94dc52.pkl").read_bytes()).hexdigest()[:6]
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(environment / "work" / "photo.jpg")
    demo = ["demo", "--weights", NAME, "--input", "photo.jpg", "--threshold", 0, "--output", "photo"]
    with serving(served) as server:
        script = ELSEWHERE.format(name=NAME, url=f"{server.url}/model_final_94dc52.pkl", md5=md5)
        start = time.monotonic()
        run(environment, *demo, program=("python", "-c", script))
        record_testsuite_property("seconds from the command to the picture", round(time.monotonic() - start))
    (found,) = json.loads((environment / "work" / "photo" / "segments.json").read_text())["images"]
    assert (found["height"], found["width"]) == (480, 640) and (environment / "work" / "photo" / "photo.png").is_file()
    assert all(segment["category"] for segment in found["segments"])
    run(environment, *demo)  # from the cache, without the server
