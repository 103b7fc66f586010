"""tools/train_net.py as a user calls it: from a data set on disk to results.json, and what it says when it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from dformer.d2.data import register_shapes
from tests import ROOT, load_script
from tests.d2.tiny import own_loggers

shapes_script = load_script("datasets/shapes.py")
main = load_script("tools/train_net.py").main

# A model of seconds; SOLVER as in a recipe, but for its length.
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
    """The folder of a small Shapes."""
    root = tmp_path_factory.mktemp("data")
    shapes_script.generate(root, shapes_script.Parameters(train=4, val=5, size=64), progress=False)
    return root


@pytest.fixture(scope="module")
def data(root) -> list[str]:
    """Overrides that name it in this process, where DETECTRON2_DATASETS was read long ago."""
    register_shapes(root, "small_shapes")
    return ["DATASETS.TRAIN", "('small_shapes_train',)", "DATASETS.TEST", "('small_shapes_val',)"]


@pytest.fixture(scope="module")
def trained(config, root, tmp_path_factory) -> Path:
    """The output of a training by two processes under torchrun."""
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


def test_evaluation_by_one_process_of_what_two_trained(monkeypatch, capsys, trained, config, data, tmp_path):
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--eval-only", "--config-file", config, *data, *weights])
    main()
    one, two = results(tmp_path)["metrics"]["small_shapes_val"], results(trained)["metrics"]["shapes_val"]
    assert one.keys() == two.keys() == {"panoptic_seg", "segm", "sem_seg"}
    assert all(one[task] == pytest.approx(two[task]) for task in one)
    printed = capsys.readouterr().out
    assert "PQ" in printed and "mIoU" in printed and str(tmp_path / "results.json") in printed


def test_saved_predictions_are_evaluated_without_a_model(monkeypatch, capsys, trained, config, data, tmp_path):
    arguments = ["train_net.py", "--eval-only", "--config-file", config]
    options = [*data, "TEST.BOUNDARY", "True", "TEST.CLASS_AGNOSTIC", "True", "OUTPUT_DIR"]
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    monkeypatch.setattr(sys, "argv", [*arguments, *options, str(tmp_path / "first"), *weights])
    main()
    predictions = ["--predictions", str(tmp_path / "first" / "inference")]
    monkeypatch.setattr(sys, "argv", [*arguments, *predictions, *options, str(tmp_path / "again")])
    monkeypatch.setattr("dformer.d2.engine.run.build_model", None)
    main()
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "again" / name).read_text()
    assert not (tmp_path / "again" / "inference").exists()
    assert "PQ_agnostic" in results(tmp_path / "again")["metrics"]["small_shapes_val"]["panoptic_seg"]


def test_an_interruption_is_one_line():
    """Also in the seconds of the imports."""
    command = [sys.executable, "tools/train_net.py", "--config-file", "configs/quick/dformer_shapes.yaml"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """What is said when the arguments are refused."""
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["SOLVER.BASE_LRR", "1"], ["SOLVER.BASE_LRR", 'did you mean "SOLVER.BASE_LR"']),
        (["SOLVER.MAX_ITER"], ["KEY VALUE"]),
        (["SOLVER.MAX_ITER", "many"], ["MAX_ITER"]),
        (["--config-file", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["DATASETS.TRAIN", "('shape_train',)"], ["shape_train", 'did you mean "shapes_train"']),
        (["--predictions", "output/inference"], ["--predictions", "--eval-only"]),
        (["--eval-only"], ["DATASETS.TEST is empty"]),
    ],
)
def test_what_is_misspelt_is_told(monkeypatch, capsys, arguments, parts):
    said = refused(monkeypatch, capsys, *arguments)
    assert all(part in said for part in parts), said


def test_a_missing_data_root_is_told(monkeypatch, capsys, config, tmp_path):
    root = tmp_path / "nothing"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_shapes(root, "missing_shapes")
    names = ["DATASETS.TRAIN", "('missing_shapes_train',)", "DATASETS.TEST", "('missing_shapes_val',)"]
    said = refused(monkeypatch, capsys, "--config-file", config, *names, "OUTPUT_DIR", str(tmp_path / "output"))
    assert said.startswith("error: ")
    assert all(part in said for part in ("DETECTRON2_DATASETS", str(root), "panoptic_train")), said
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["MODEL.NUM_CLASSES", "5"], ["MODEL.NUM_CLASSES is 5", "7 classes"]),
        (["MODEL.DEVICE", "cuda"], ["MODEL.DEVICE cuda", "no GPU"]),
        (["MODEL.WEIGHTS", __file__], [__file__, "cannot be read as a checkpoint"]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "does not exist"]),
        (["OUTPUT_DIR", __file__], ["OUTPUT_DIR", __file__]),
        (["TEST.TASKS", "('depth',)"], ["nothing to evaluate", "small_shapes_val", "depth"]),
        (["TEST.AUG.ENABLED", "True"], ["TEST.AUG.ENABLED", "TEST.TASKS"]),
        (["SOLVER.OPTIMIZER", "ADAM"], ["SOLVER.OPTIMIZER", "ADAMW"]),
    ],
)
def test_what_cannot_be_run_is_told(monkeypatch, capsys, config, data, tmp_path, overrides, parts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = ["OUTPUT_DIR", str(tmp_path / "output")]
    said = refused(monkeypatch, capsys, "--config-file", config, *data, *output, *overrides)
    assert all(part in said for part in parts), said
    assert not list((tmp_path / "output").glob("*.pth"))  # told before the training
