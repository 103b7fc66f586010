"""A run from its cfg to the files that it leaves; evaluation only; restarts."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.modeling import build_model

from dformer.d2.engine.run import check, run, set_up
from dformer.d2.evaluation.evaluate import evaluate
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint
from tests.d2.engine.interrupt import signalled


def config(cfg) -> dict[str, Any]:
    return yaml.safe_load((Path(cfg.OUTPUT_DIR) / "config.yaml").read_text())


@pytest.mark.parametrize(("dtype", "enabled"), [("float16", False), ("bfloat16", True)])
def test_fp16_is_disabled_on_a_cpu(cfg, data, dtype, enabled):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, dtype
    assert enabled == set_up(cfg, write_config=False).SOLVER.AMP.ENABLED


def test_files_and_output_of_a_run(cfg, data, capsys):
    run(cfg)
    output = Path(cfg.OUTPUT_DIR)
    assert config(cfg)["MODEL"]["META_ARCHITECTURE"] == "LineModel"
    assert sorted(path.name for path in output.glob("*.pth")) == ["model_0000002.pth", "model_final.pth"]
    assert list(output.glob("events.out.tfevents.*"))
    line = json.loads((output / "metrics.json").read_text().splitlines()[0])
    assert {"total_loss", "loss_ce", "layer_0/ce", "grad_norm", "lr", "data_time", "time"} <= line.keys()
    assert line["lr"] == pytest.approx(0.01 * (1 - 5 / 6) ** 0.9)  # of the head
    assert line["total_loss"] == pytest.approx(2 * line["loss_ce"])
    results = json.loads((output / "results.json").read_text())
    assert (results["PQ"], results["PQ_things"], results["PQ_stuff"]) == (42.0, 41.0, None)
    assert results["metrics"]["somewhere"]["panoptic_seg"]["PQ"] == 42.0
    assert results["train_seconds"] > 0
    assert "somewhere,panoptic_seg,PQ,,42.0" in (output / "results.csv").read_text().splitlines()
    printed = capsys.readouterr().out
    assert "total_loss" in printed and "eta" in printed
    assert "42.0" in printed and str(output / "results.json") in printed


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("stop", [None, 3])
def test_a_new_training_leaves_an_earlier_one_alone(cfg, data, stop):
    """Be that finished, or stopped and to be resumed."""
    with signalled(stop), pytest.raises(SystemExit) if stop else nullcontext():
        run(cfg)
    before = contents(Path(cfg.OUTPUT_DIR))
    with pytest.raises(UserError, match=r"OUTPUT_DIR.*model_(final|0000003)\.pth.*--resume.*--overwrite"):
        run(cfg)
    assert contents(Path(cfg.OUTPUT_DIR)) == before


def test_a_new_training_replaces_an_earlier_one_if_asked_to(cfg, data):
    output = Path(cfg.OUTPUT_DIR)
    run(cfg)
    lines = len((output / "metrics.json").read_text().splitlines())
    (output / "model_0009999.pth").touch()
    (output / "mine.txt").touch()
    cfg.SOLVER.BASE_LR = 0.02
    run(cfg, overwrite=True)
    assert len((output / "metrics.json").read_text().splitlines()) == lines
    assert len(json.loads((output / "runs.json").read_text())) == len([*output.glob("events.*")]) == 1
    assert config(cfg)["SOLVER"]["BASE_LR"] == 0.02
    assert not (output / "model_0009999.pth").exists() and (output / "mine.txt").exists()


def test_what_failed_before_its_first_step_is_no_training(cfg, data):
    data.stop = 0
    with pytest.raises(RuntimeError):
        run(cfg)
    data.stop = None
    run(cfg)


def test_a_full_disk_is_named(cfg, data):
    Path(cfg.OUTPUT_DIR).mkdir()
    (Path(cfg.OUTPUT_DIR) / "metrics.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        run(cfg)


def test_a_run_that_torchrun_restarts_is_resumed(cfg, data, monkeypatch):
    with signalled(3), pytest.raises(SystemExit):
        run(cfg)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run(cfg)
    assert read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")["trainer"]["iteration"] == 5
    assert data.start == 4


def test_a_drawn_seed_is_written_and_used_by_the_resumed_run(cfg, data):
    cfg.SEED = -1
    with signalled(3), pytest.raises(SystemExit):
        run(cfg)
    seed = config(cfg)["SEED"]
    assert seed >= 0
    run(cfg, resume=True)
    assert config(cfg)["SEED"] == seed


@pytest.mark.parametrize("eval_only", [False, True])
def test_an_empty_list_of_training_sets_is_named(cfg, eval_only):
    cfg.DATASETS.TRAIN, cfg.MODEL.CLASSES = (), []
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN"):
        check(cfg, eval_only)


def test_evaluation_only(cfg, data, tmp_path):
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS"):
        run(cfg, eval_only=True)
    run(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "evaluation")
    run(cfg, eval_only=True)
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text())["PQ"] == 42.0
    assert not (tmp_path / "evaluation" / "config.yaml").exists()


def test_only_a_finished_evaluation_replaces_saved_predictions(cfg, data):
    folder, model = Path(cfg.OUTPUT_DIR) / "inference" / "somewhere", build_model(cfg)
    data.scores = [40.0, 50.0, UserError("annotation missing")]
    for expected in ("prediction_0", "prediction_1", "prediction_1"):
        with pytest.raises(UserError) if data.scores[0] not in (40.0, 50.0) else nullcontext():
            evaluate(cfg, model)
        assert [path.name for path in folder.iterdir() if path.name != "config.yaml"] == [expected]
        assert [path.name for path in folder.parent.iterdir()] == ["somewhere"]
