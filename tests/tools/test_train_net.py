"""tools/train_net.py as a user calls it: from a data set on disk to results.json, and its errors."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from dformer.d2.data import register_shapes
from tests import ROOT, load_script
from tests.d2.tiny import own_loggers, small_shapes

main = load_script("tools/train_net.py").main

# A model that trains in seconds; SOLVER as in a recipe, but shorter.
CONFIG = """
VERSION: 2
MODEL:
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: test_resnet}
  PIXEL_DECODER: {CONV_DIM: 32, MASK_DIM: 32, NUM_LAYERS: 1, NUM_HEADS: 4, FFN_DIM: 64}
  MASK_DECODER: {NUM_QUERIES: 8, HIDDEN_DIM: 32, NUM_HEADS: 4, FFN_DIM: 64, NUM_LAYERS: 2}
  CRITERION: {NUM_POINTS: 128}
DATASETS: {TRAIN: [shapes_train], TEST: [shapes_val]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {IMAGE_SIZE: 64, MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2, WARMUP_ITERS: 2, BASE_LR: 0.001}
TEST: {OBJECT_THRESHOLD: 0.0}
SEED: 1
"""


@pytest.fixture(autouse=True)
def loggers():
    with own_loggers():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    small_shapes(root, "small_shapes", train=4, val=5)
    return root


@pytest.fixture(scope="module")
def data(root) -> list[str]:
    """Return overrides that name it under another name: this process has read DETECTRON2_DATASETS already."""
    return ["DATASETS.TRAIN", "('small_shapes_train',)", "DATASETS.TEST", "('small_shapes_val',)"]


@pytest.fixture(scope="module")
def trained(config, root, tmp_path_factory) -> Path:
    """Train with two processes under torchrun and return OUTPUT_DIR."""
    output = tmp_path_factory.mktemp("trained") / "output"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*torchrun, "tools/train_net.py", "--config-file", config, "OUTPUT_DIR", str(output)],
        cwd=ROOT,
        env=os.environ | {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr
    return output


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def test_training_under_torchrun(trained):
    assert (trained / "model_final.pth").is_file()
    assert yaml.safe_load((trained / "config.yaml").read_text())["MODEL"]["DEVICE"] == "cpu"
    found = results(trained)
    assert all(0 <= found[name] <= 100 for name in ("PQ", "PQ_things", "PQ_stuff", "AP", "mIoU"))
    assert found["train_seconds"] > 0


def evaluate(monkeypatch, config: str, *options: str) -> None:
    """Run train_net.py --eval-only with these arguments in this process."""
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--eval-only", "--config-file", config, *options])
    main()


def test_evaluation_by_one_process_of_what_two_trained(monkeypatch, capsys, trained, config, data, tmp_path):
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    evaluate(monkeypatch, config, *data, *weights)
    one, two = results(tmp_path)["metrics"]["small_shapes_val"], results(trained)["metrics"]["shapes_val"]
    assert one.keys() == two.keys() == {"panoptic_seg", "segm", "sem_seg"}
    assert all(one[task] == pytest.approx(two[task]) for task in one)
    printed = capsys.readouterr().out
    assert "PQ" in printed and "mIoU" in printed and str(tmp_path / "results.json") in printed


def test_saved_predictions_are_evaluated_without_a_model(monkeypatch, trained, config, data, tmp_path):
    options = [*data, "TEST.BOUNDARY", "True", "TEST.CLASS_AGNOSTIC", "True", "OUTPUT_DIR"]
    first, again = tmp_path / "first", tmp_path / "again"
    evaluate(monkeypatch, config, *options, str(first), "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    no_model = ["MODEL.WEIGHTS", "nowhere.pth"]  # an error, were a model loaded
    evaluate(monkeypatch, config, "--predictions", str(first / "inference"), *options, str(again), *no_model)
    for name in ("results.json", "results.csv"):
        assert (first / name).read_text() == (again / name).read_text()
    assert not (again / "inference").exists()
    assert "PQ_agnostic" in results(again)["metrics"]["small_shapes_val"]["panoptic_seg"]


def test_an_interruption_is_one_line():
    """Even while modules are imported. (A process in the background of a shell would ignore ^C.)"""
    command = [sys.executable, "tools/train_net.py", "--config-file", "configs/quick/dformer_shapes.yaml"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and len(stderr.splitlines()) == 1


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """Return the error message about these arguments."""
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["SOLVER.BASE_LRR", "1"], ["SOLVER.BASE_LRR", '"SOLVER.BASE_LR"']),
        (["--config-file", "nowhere.yaml"], ["nowhere.yaml"]),
        (["DATASETS.TRAIN", "('shape_train',)"], ["shape_train", '"shapes_train"']),
        (["--predictions", "output/inference"], ["--predictions", "--eval-only"]),
        (["--eval-only"], ["DATASETS.TEST"]),
    ],
)
def test_errors_name_what_is_misspelt(monkeypatch, capsys, arguments, named):
    message = refused(monkeypatch, capsys, *arguments)
    assert all(name in message for name in named), message


def test_an_error_names_a_missing_data_root(monkeypatch, capsys, config, tmp_path):
    root = tmp_path / "nothing"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_shapes(root, "missing_shapes")
    names = ["DATASETS.TRAIN", "('missing_shapes_train',)", "DATASETS.TEST", "('missing_shapes_val',)"]
    message = refused(monkeypatch, capsys, "--config-file", config, *names, "OUTPUT_DIR", str(tmp_path / "output"))
    assert message.startswith("error: ")
    assert all(name in message for name in ("DETECTRON2_DATASETS", str(root), "panoptic_train")), message
    assert not (tmp_path / "output").exists()


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["MODEL.NUM_CLASSES", "5"], ["MODEL.NUM_CLASSES", "5", "7"]),
        pytest.param(["MODEL.DEVICE", "cuda"], ["MODEL.DEVICE", "cuda"], marks=no_gpu),
        (["MODEL.WEIGHTS", __file__], [__file__]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth"]),
        (["OUTPUT_DIR", __file__], ["OUTPUT_DIR", __file__]),
        (["TEST.TASKS", "('depth',)"], ["small_shapes_val", "depth"]),
        (["TEST.AUG.ENABLED", "True"], ["TEST.AUG.ENABLED", "TEST.TASKS"]),
        (["SOLVER.OPTIMIZER", "ADAM"], ["SOLVER.OPTIMIZER", "ADAMW"]),
    ],
)
def test_errors_name_what_cannot_be_run(monkeypatch, capsys, config, data, tmp_path, overrides, named):
    output = ["OUTPUT_DIR", str(tmp_path / "output")]
    message = refused(monkeypatch, capsys, "--config-file", config, *data, *output, *overrides)
    assert all(name in message for name in named), message
    assert not list((tmp_path / "output").glob("*.pth"))  # refused before the training
