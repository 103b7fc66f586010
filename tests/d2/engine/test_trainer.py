"""The training loop: resuming, precision, nonfinite steps, evaluations, checkpoints."""

import logging
import math
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dformer.d2.engine.interruption import RESUME_ME
from dformer.d2.engine.nonfinite import running_statistics
from dformer.d2.engine.run import run
from dformer.d2.engine.trainer import MAX_BAD_STEPS, Trainer
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint
from tests.d2.engine.interrupt import signalled
from tests.faults.harness import logged


def start(cfg, resume: bool = False) -> Trainer:
    torch.manual_seed(0)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def train(cfg, resume: bool = False) -> Trainer:
    trainer = start(cfg, resume)
    trainer.train()
    return trainer


def final(cfg) -> dict[str, Any]:
    return read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")


def checkpoints(cfg) -> list[str]:
    return sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth") if path.is_file())


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_a_resumed_run_continues_where_it_was(cfg, data, tmp_path):
    whole = train(cfg)

    cfg.OUTPUT_DIR = str(tmp_path / "pieces")
    data.stop, data.start = 4, 0  # the last checkpoint is after the steps 0, 1, 2
    with pytest.raises(RuntimeError, match="no more data"):
        train(cfg)
    data.stop = None
    rest = start(cfg, resume=True)
    assert rest.start_iter == 3
    seconds = rest.train_seconds
    rest.train()

    assert rest.model.trained == [3, 4, 5]
    assert 0 < seconds < rest.train_seconds
    assert torch.equal(weights(rest), weights(whole))
    for ours, theirs in zip(rest.optimizer.param_groups, whole.optimizer.param_groups, strict=True):
        assert ours["lr"] == theirs["lr"] == ours["initial_lr"] * (1 - 5 / 6) ** 0.9
        for a, b in zip(ours["params"], theirs["params"], strict=True):
            assert all(torch.equal(rest.optimizer.state[a][k], v) for k, v in whole.optimizer.state[b].items())


def test_resume_without_a_checkpoint_begins_at_the_beginning(cfg, data):
    Path(cfg.OUTPUT_DIR).mkdir()
    (Path(cfg.OUTPUT_DIR) / "metrics.json").write_text('{"iteration": 0, "lr": 1}\n')  # stopped before a checkpoint
    assert train(cfg, resume=True).start_iter == 0
    assert 0 not in [line["iteration"] for line in logged(Path(cfg.OUTPUT_DIR))]


def test_a_finished_run_that_is_resumed_only_evaluates(cfg, data):
    train(cfg)
    again = train(cfg, resume=True)
    assert again.model.trained == []
    assert again.results["somewhere"]["panoptic_seg"]["PQ"] == 42.0


def test_weights_are_loaded_without_the_rest(cfg, data, tmp_path):
    first = train(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "second")
    second = start(cfg)
    assert torch.equal(weights(second), weights(first))
    assert second.start_iter == 0 and not second.optimizer.state


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(cfg, data, dtype):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, dtype
    trainer = start(cfg)
    before = weights(trainer)
    trainer.train()
    assert set(trainer.model.dtypes[:6]) == {getattr(torch, dtype)}
    assert set(trainer.model.dtypes[6:]) == {torch.float32}  # of the evaluation, on a CPU
    assert weights(trainer).dtype == torch.float32
    assert trainer.grad_scaler.is_enabled() == (dtype == "float16")
    assert not torch.equal(weights(trainer), before)


def test_an_overflow_in_fp16_lowers_the_scale_and_is_no_fault(cfg, data):
    cfg.SOLVER.AMP.ENABLED = True
    data.factors = {0: 1e36}  # finite, but not times the scale
    cfg.SOLVER.MAX_ITER = 1
    trainer = start(cfg)
    before, scale = weights(trainer), trainer.grad_scaler.get_scale()
    trainer.train()
    assert trainer.grad_scaler.get_scale() < scale
    assert torch.equal(weights(trainer), before)
    assert trainer.bad_steps == 0


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_nonfinite_step_is_skipped_and_logged(cfg, data, caplog, amp, factor):
    cfg.SOLVER.AMP.ENABLED = amp
    data.factors = {0: factor}
    cfg.SOLVER.MAX_ITER = 1
    trainer = start(cfg)
    before = weights(trainer)
    with caplog.at_level(logging.WARNING, "dformer"):
        trainer.train()
    assert torch.equal(weights(trainer), before)
    assert "iteration 0: loss_ce" in caplog.text

    cfg.SOLVER.MAX_ITER = 6  # fp16 begins with overflows, until its scale is low enough
    trainer = train(cfg)
    assert trainer.bad_steps == 0
    assert torch.isfinite(weights(trainer)).all() and not torch.equal(weights(trainer), before)


def test_training_stops_after_many_nonfinite_steps_in_a_row(cfg, data):
    cfg.SOLVER.MAX_ITER = 100
    data.factors = dict.fromkeys([*range(1, MAX_BAD_STEPS), *range(20, 100)], math.nan)
    trainer = start(cfg)
    with pytest.raises(FloatingPointError, match=r"loss_ce.*SOLVER\.BASE_LR"):
        trainer.train()
    assert trainer.iter == 20 + MAX_BAD_STEPS - 1
    assert torch.isfinite(weights(trainer)).all()


def test_a_nonfinite_batch_does_not_change_running_statistics(cfg, data):
    trainer = start(cfg)
    trainer.model.backbone = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.BatchNorm1d(1), nn.Flatten())
    trainer.running_statistics = running_statistics(trainer.model)
    statistics = []

    def spoil(module, inputs):
        statistics.append([statistic.item() for statistic in trainer.running_statistics])
        return inputs[0] * (math.nan if trainer.iter == 2 else 1)

    trainer.model.backbone.register_forward_pre_hook(spoil)
    data.stop = 4
    with pytest.raises(RuntimeError, match="no more data"):
        trainer.train()
    first, second, third, *_, fourth = statistics  # the third step is nonfinite, and run again to trace it
    assert first != second != third == fourth


def test_the_best_and_the_newest_checkpoints_are_kept(cfg, data):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP, cfg.TEST.EVAL_PERIOD = 10, 2, 2, 4
    data.scores = [40.0, 50.0, 30.0]
    run(cfg)
    assert [iteration for iteration, _ in data.evaluated] == [4, 8, 10]
    assert checkpoints(cfg) == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]
    best = read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")
    assert best["iteration"] == 7 and best["trainer"]["hooks"]["Checkpoints"]["best"] == 50.0
    assert torch.__version__.startswith(best["origin"]["versions"]["torch"])

    cfg.SOLVER.MAX_ITER, cfg.TEST.BEST_METRIC = 12, "PQ_things"  # always 41.0, which is less than the best
    run(cfg, resume=True)
    assert checkpoints(cfg)[-2:] == ["model_best.pth", "model_final.pth"]
    assert read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")["iteration"] == 7

    cfg.SOLVER.MAX_ITER, cfg.TEST.BEST_METRIC = 14, "PQ_agnostic"  # always 60.0
    run(cfg, resume=True)
    best = read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")
    assert best["trainer"]["hooks"]["Checkpoints"]["best"] == 60.0


def test_training_stops_early_and_a_resumed_run_only_evaluates(cfg, data):
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.TEST.PATIENCE = 20, 2, 2
    data.scores = [40.0, 50.0, 50.0, 45.0]
    run(cfg)
    assert [iteration for iteration, _ in data.evaluated] == [2, 4, 6, 8]
    assert final(cfg)["iteration"] == 7 and logged(Path(cfg.OUTPUT_DIR))[-1]["iteration"] == 7
    assert read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")["iteration"] == 3

    data.scores = [45.0]
    again = train(cfg, resume=True)
    assert again.model.trained == [] and len(data.evaluated) == 5
    cfg.TEST.PATIENCE, data.scores, data.start = 4, [60.0, 50.0, 50.0, 50.0, 50.0], 8
    run(cfg, resume=True)
    assert data.evaluated[-1][0] == 18 and final(cfg)["iteration"] == 17


@pytest.mark.parametrize("period", [15, 20])
def test_a_signal_stops_an_evaluation_which_the_resumed_run_repeats(cfg, data, tmp_path, period):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 3 * period, 7, period
    data.scores = [40.0, 50.0, 60.0]
    run(cfg)
    whole = logged(Path(cfg.OUTPUT_DIR))

    cfg.OUTPUT_DIR = str(tmp_path / "pieces")
    data.scores, data.start = [40.0, signal.SIGTERM, 50.0, 60.0], 0
    with pytest.raises(SystemExit) as end:
        run(cfg)
    assert end.value.code == RESUME_ME and data.scores == [50.0, 60.0]
    run(cfg, resume=True)
    assert data.scores == []
    assert logged(Path(cfg.OUTPUT_DIR)) == whole


@pytest.mark.parametrize("stop", [None, 4])
def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run_unless_it_is_the_last(cfg, data, capsys, stop):
    for name in ("model_0000002.pth", "model_0000004.pth"):
        (Path(cfg.OUTPUT_DIR) / name / "blocked").mkdir(parents=True)  # a folder is not replaced by a file
    with pytest.raises(UserError, match=r"model_0000004\.pth") if stop else nullcontext(), signalled(stop):
        run(cfg)
    assert "model_0000002.pth cannot be written" in capsys.readouterr().out
    assert checkpoints(cfg) == ([] if stop else ["model_final.pth"])
    assert not list(Path(cfg.OUTPUT_DIR).glob(".partial-*"))


def test_the_average_is_evaluated_and_saved(cfg, data, tmp_path):
    cfg.MODEL.EMA_DECAY = 0.5
    trainer = train(cfg)
    saved = final(cfg)
    assert torch.equal(data.evaluated[0][1], saved["model_ema"]["head.weight"])
    assert torch.equal(trainer.model.head.weight, saved["model"]["head.weight"])
    assert not torch.equal(saved["model"]["head.weight"], saved["model_ema"]["head.weight"])

    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    run(cfg, eval_only=True)
    assert torch.equal(data.evaluated[1][1], data.evaluated[0][1])
    cfg.OUTPUT_DIR = str(tmp_path / "fine-tuned")
    again = start(cfg)
    assert torch.equal(again.average.state_dict()["head.weight"], saved["model"]["head.weight"])
