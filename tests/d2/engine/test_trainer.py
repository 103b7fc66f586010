"""The training loop, on a model and data that are as small as can be."""

import errno
import json
import logging
import math
import os
import re
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dformer.d2.config import get_cfg
from dformer.d2.engine import trainer
from dformer.d2.engine.hooks.history import NOT_KEPT
from dformer.d2.engine.interruption import RESUME_ME
from dformer.d2.engine.nonfinite import running_statistics
from dformer.d2.engine.run import run, set_up
from dformer.d2.engine.trainer import MAX_BAD_STEPS, Trainer
from dformer.d2.evaluation.evaluate import evaluate
from dformer.utils.errors import UserError
from dformer.weights.checkpoint import read_checkpoint
from tests.d2.engine.interrupt import signalled
from tests.d2.tiny import own_loggers


@pytest.fixture(autouse=True)
def loggers():
    with own_loggers():
        yield


@META_ARCH_REGISTRY.register()
class LineModel(nn.Module):
    """Fits a line. `iteration` counts, as that of our models."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)
        self.iteration = 0
        self.seen: list[int] = []  # iterations
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch):
        if not self.training:
            self.dtypes.append(self.backbone(torch.zeros(1, 4)).dtype)
            return [{"answer": 42.0} for _ in batch]
        self.seen.append(self.iteration)
        self.iteration += 1
        x = torch.stack([item["x"] for item in batch])
        y = self.head(self.backbone(x))
        self.dtypes.append(y.dtype)
        loss = (y.float() - 1).square().mean()
        return {"loss_ce": 0.5 * loss * batch[0]["factor"], "loss_ce_0": 0.5 * loss}


class Answers(DatasetEvaluator):
    def process(self, inputs, outputs):
        self.answer = outputs[0]["answer"]

    def evaluate(self):
        metrics = {f"{name}{part}": 1.0 for name in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st")}
        return {"panoptic_seg": metrics | {"PQ": self.answer, "PQ_th": 41.0, "PQ_st": math.nan}}


class Data:
    """The batch of an iteration depends on its number alone; `factors` replaces the loss' factor at some."""

    def __init__(self, stop: int | None = None, factors: dict[int, float] | None = None) -> None:
        self.stop, self.factors, self.start = stop, factors or {}, 0

    def __call__(self, cfg):
        return self

    def __iter__(self):
        index = self.start
        while index != self.stop:
            x = torch.randn(4, generator=torch.Generator().manual_seed(index))
            yield [{"x": x, "factor": self.factors.get(index, 1.0)}]
            index += 1
        raise RuntimeError("the plug is pulled")


@pytest.fixture
def data(monkeypatch):
    data = Data()
    monkeypatch.setattr(trainer, "build_train_loader", data)
    monkeypatch.setattr("dformer.d2.evaluation.evaluate.build_test_loader", lambda cfg, name: [[{}]] * 3)
    monkeypatch.setattr("dformer.d2.evaluation.evaluate.build_evaluators", lambda cfg, name, output_dir: Answers())
    return data


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "LineModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("somewhere",)
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    cfg.SEED = 1
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def start(cfg, resume: bool = False) -> Trainer:
    torch.manual_seed(0)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    line = Trainer(cfg)
    line.resume_or_load(resume)
    return line


def metrics(cfg) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]


def weights(line: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in line.model.parameters()])


def test_a_resumed_run_goes_on_where_it_was(cfg, data, tmp_path):
    whole = start(cfg)
    whole.train()

    cfg.OUTPUT_DIR = str(tmp_path / "pieces")
    data.stop = 4  # the last checkpoint is after the steps 0, 1, 2
    with pytest.raises(RuntimeError, match="plug"):
        start(cfg).train()
    data.stop, data.start = None, 3
    rest = start(cfg, resume=True)
    assert rest.start_iter == 3
    seconds = rest.train_seconds
    rest.train()

    assert rest.model.seen == [3, 4, 5]
    assert 0 < seconds < rest.train_seconds
    assert torch.equal(weights(rest), weights(whole))
    for ours, theirs in zip(rest.optimizer.param_groups, whole.optimizer.param_groups, strict=True):
        assert ours["lr"] == theirs["lr"] == ours["initial_lr"] * (1 - 5 / 6) ** 0.9
        for a, b in zip(ours["params"], theirs["params"], strict=True):
            assert all(torch.equal(rest.optimizer.state[a][k], v) for k, v in whole.optimizer.state[b].items())


def test_resume_without_a_checkpoint_begins_at_the_beginning(cfg, data):
    assert start(cfg, resume=True).start_iter == 0


def test_a_finished_run_that_is_resumed_only_evaluates(cfg, data):
    start(cfg).train()
    again = start(cfg, resume=True)
    again.train()
    assert again.model.seen == []
    assert again.results["somewhere"]["panoptic_seg"]["PQ"] == 42.0


def test_weights_are_loaded_without_the_rest(cfg, data, tmp_path):
    first = start(cfg)
    first.train()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "second")
    second = start(cfg)
    assert torch.equal(weights(second), weights(first))
    assert second.start_iter == 0 and not second.optimizer.state


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(cfg, data, dtype):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, dtype
    line = start(cfg)
    before = weights(line)
    line.train()
    assert set(line.model.dtypes[:6]) == {getattr(torch, dtype)}
    assert set(line.model.dtypes[6:]) == {torch.float32}  # of the evaluation, on a CPU
    assert weights(line).dtype == torch.float32
    assert line.grad_scaler.is_enabled() == (dtype == "float16")
    assert not torch.equal(weights(line), before)


def test_an_overflow_in_fp16_lowers_the_scale_and_is_no_fault(cfg, data, caplog):
    cfg.SOLVER.AMP.ENABLED = True
    data.factors = {0: 1e36}  # finite, but not times the scale
    cfg.SOLVER.MAX_ITER = 1
    line = start(cfg)
    before, scale = weights(line), line.grad_scaler.get_scale()
    with caplog.at_level(logging.WARNING, "dformer"):
        line.train()
    assert line.grad_scaler.get_scale() < scale
    assert torch.equal(weights(line), before)
    assert line.bad_steps == 0 and "not finite" not in caplog.text


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_left_out_and_told(cfg, data, caplog, amp, factor):
    cfg.SOLVER.AMP.ENABLED = amp
    data.factors = {0: factor}
    cfg.SOLVER.MAX_ITER = 1
    line = start(cfg)
    before = weights(line)
    with caplog.at_level(logging.WARNING, "dformer"):
        line.train()
    assert torch.equal(weights(line), before)
    assert "iteration 0: loss_ce" in caplog.text

    cfg.SOLVER.MAX_ITER = 6  # fp16 begins with overflows, until its scale is low enough
    line = start(cfg)
    line.train()
    assert line.bad_steps == 0
    assert torch.isfinite(weights(line)).all() and not torch.equal(weights(line), before)


def test_training_stops_after_many_bad_steps_in_a_row(cfg, data):
    cfg.SOLVER.MAX_ITER = 100
    data.factors = dict.fromkeys([*range(1, MAX_BAD_STEPS), *range(20, 100)], math.nan)
    line = start(cfg)
    with pytest.raises(FloatingPointError, match=r"loss_ce.* 10 steps in a row.*BASE_LR"):
        line.train()
    assert line.iter == 20 + MAX_BAD_STEPS - 1
    assert torch.isfinite(weights(line)).all()


def test_a_bad_batch_does_not_spoil_running_statistics(cfg, data):
    line = start(cfg)
    line.model.backbone = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.BatchNorm1d(1), nn.Flatten())
    line.running_statistics = running_statistics(line.model)
    seen = []
    forward = line.model.backbone.forward

    def spoilt(x):
        seen.append([statistic.item() for statistic in line.running_statistics])
        return forward(x * math.nan if line.iter == 2 else x)

    line.model.backbone.forward = spoilt
    data.stop = 4
    with pytest.raises(RuntimeError, match="plug"):
        line.train()
    first, second, third, *_, fourth = seen  # the third step is bad, and run again to be traced
    assert first != second != third == fourth


def test_evaluation_during_training(cfg, data, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        trainer, "evaluate", lambda cfg, model: evaluated.append(model.iteration) or evaluate(cfg, model)
    )
    cfg.TEST.EVAL_PERIOD = 2
    line = start(cfg)
    line.train()
    assert evaluated == [2, 4, 6]
    assert line.model.training


def test_evaluation_has_the_precision_of_inference(cfg, data, monkeypatch):
    monkeypatch.setattr(
        "dformer.d2.evaluation.evaluate.inference_autocast", lambda cfg: torch.autocast("cpu", torch.bfloat16)
    )
    line = start(cfg)
    evaluate(cfg, line.model)
    assert set(line.model.dtypes) == {torch.bfloat16}


def test_what_a_run_leaves_behind(cfg, data, capsys):
    run(cfg)
    output = Path(cfg.OUTPUT_DIR)
    assert yaml.safe_load((output / "config.yaml").read_text())["MODEL"]["META_ARCHITECTURE"] == "LineModel"
    assert sorted(path.name for path in output.glob("*.pth")) == [
        "model_0000002.pth",
        "model_final.pth",
    ]
    assert list(output.glob("events.out.tfevents.*"))
    line = metrics(cfg)[0]
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


@pytest.fixture
def scores(monkeypatch):
    """PQ of the evaluations to come, in turn; a signal in place of a number stops one."""
    scores = []

    def build(cfg, name, folder):
        evaluator = Answers()

        def process(inputs, outputs):
            if scores and isinstance(scores[0], signal.Signals):
                os.kill(os.getpid(), scores.pop(0))
            evaluator.answer = scores[0]

        def evaluate():
            scores.pop(0)
            return Answers.evaluate(evaluator)

        evaluator.process, evaluator.evaluate = process, evaluate
        return evaluator

    monkeypatch.setattr("dformer.d2.evaluation.evaluate.build_evaluators", build)
    return scores


def checkpoints(cfg) -> list[str]:
    return sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth"))


def test_the_best_and_the_newest_are_kept(cfg, data, scores):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP, cfg.TEST.EVAL_PERIOD = 10, 2, 2, 4
    scores += [40.0, 50.0, 30.0]
    run(cfg)
    assert checkpoints(cfg) == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]
    best = read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")
    assert best["iteration"] == 7 and best["trainer"]["hooks"]["Checkpoints"]["best"] == 50.0
    assert torch.__version__.startswith(best["origin"]["versions"]["torch"])

    cfg.SOLVER.MAX_ITER, cfg.TEST.BEST_METRIC = 12, "PQ_things"  # always 41.0, which is less than what it was
    scores += [60.0]
    run(cfg, resume=True)
    assert checkpoints(cfg)[-2:] == ["model_best.pth", "model_final.pth"]
    assert read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_best.pth")["iteration"] == 7


def test_a_signal_in_an_evaluation_stops_it_and_it_is_made_up_for(cfg, data, scores, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "LOG_PERIOD", 2)
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 3
    scores += [40.0, 50.0, 60.0]
    run(cfg)
    whole = metrics(cfg)

    cfg.OUTPUT_DIR = str(tmp_path / "pieces")
    scores += [40.0, signal.SIGTERM, 50.0, 60.0]
    with pytest.raises(SystemExit) as end:
        run(cfg)
    assert end.value.code == RESUME_ME and scores == [50.0, 60.0]
    run(cfg, resume=True)
    assert scores == []
    times = NOT_KEPT
    for ours, theirs in zip(metrics(cfg), whole, strict=True):
        assert {k: v for k, v in ours.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}


@pytest.mark.parametrize("stop", [None, 4])
def test_a_full_disk_costs_a_checkpoint_but_not_the_run(cfg, data, monkeypatch, capsys, stop):
    save = torch.save

    def save_unless_full(content, file):
        if content["iteration"] in (2, stop):
            file.write(b"as much as there was room for")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", save_unless_full)
    words = r"model_000000%d\.pth cannot be written: No space left on device"
    with pytest.raises(UserError, match=words % 4) if stop else nullcontext(), signalled(stop):
        run(cfg)
    assert re.search(words % 2 + ". Training goes on", capsys.readouterr().out)
    assert checkpoints(cfg) == ([] if stop else ["model_final.pth"])
    assert not list(Path(cfg.OUTPUT_DIR).glob(".*.partial"))


def test_a_full_disk_elsewhere_is_told(cfg, data, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("detectron2.utils.events.JSONWriter.write", fail)
    with pytest.raises(UserError, match=r"OUTPUT_DIR .* No space left on device.*--resume"):
        run(cfg)


def test_what_torchrun_starts_again_goes_on(cfg, data, monkeypatch):
    with signalled(3), pytest.raises(SystemExit):
        run(cfg)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run(cfg)
    assert read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")["trainer"]["iteration"] == 5
    assert data.start == 4


def test_the_average_is_evaluated_and_saved(cfg, data, monkeypatch, tmp_path):
    cfg.MODEL.EMA_DECAY = 0.5
    evaluated = []
    for place in ("dformer.d2.engine.trainer.evaluate", "dformer.d2.engine.run.evaluate"):
        monkeypatch.setattr(place, lambda cfg, model: evaluated.append(model.state_dict()["head.weight"].clone()) or {})
    line = start(cfg)
    line.train()
    final = read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert torch.equal(evaluated[0], final["model_ema"]["head.weight"])
    assert torch.equal(line.model.head.weight, final["model"]["head.weight"])
    assert not torch.equal(final["model"]["head.weight"], final["model_ema"]["head.weight"])

    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    run(cfg, eval_only=True)
    assert torch.equal(evaluated[1], evaluated[0])
    cfg.OUTPUT_DIR = str(tmp_path / "fine-tuned")
    again = start(cfg)
    assert torch.equal(again.average.state_dict()["head.weight"], final["model"]["head.weight"])


def test_a_drawn_seed_is_that_of_the_run_that_goes_on(cfg, data):
    cfg.SEED = -1
    with signalled(3), pytest.raises(SystemExit):
        run(cfg)
    seed = yaml.safe_load((Path(cfg.OUTPUT_DIR) / "config.yaml").read_text())["SEED"]
    run(cfg, resume=True)
    assert yaml.safe_load((Path(cfg.OUTPUT_DIR) / "config.yaml").read_text())["SEED"] == seed


def test_evaluation_only(cfg, data, tmp_path):
    run(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "evaluation")
    run(cfg, eval_only=True)
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text())["PQ"] == 42.0
    assert not (tmp_path / "evaluation" / "config.yaml").exists()


def test_predictions_of_an_interrupted_evaluation_do_not_replace_whole_ones(cfg, data, monkeypatch):
    folder, line = Path(cfg.OUTPUT_DIR) / "inference" / "somewhere", start(cfg)

    class Writer(Answers):
        def __init__(self, folder: Path, text: str) -> None:
            self.folder, self.text = folder, text

        def process(self, inputs, outputs):
            super().process(inputs, outputs)
            (self.folder / self.text).touch()

        def evaluate(self):
            if self.text == "bad":
                raise UserError("annotation missing")
            return super().evaluate()

    for text, left in (("first", ["first"]), ("second", ["second"]), ("bad", ["second"])):
        monkeypatch.setattr(
            "dformer.d2.evaluation.evaluate.build_evaluators", lambda cfg, name, folder, text=text: Writer(folder, text)
        )
        with pytest.raises(UserError) if text == "bad" else nullcontext():
            evaluate(cfg, line.model)
        assert [path.name for path in folder.iterdir() if path.name != "config.yaml"] == left
        assert [path.name for path in folder.parent.iterdir()] == ["somewhere"]


def test_evaluation_only_needs_weights(cfg, data):
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS"):
        run(cfg, eval_only=True)


def test_a_seed_that_is_not_given_is_drawn_and_written_down(cfg, data):
    cfg.SEED = -1
    run(cfg)
    assert yaml.safe_load((Path(cfg.OUTPUT_DIR) / "config.yaml").read_text())["SEED"] >= 0


@pytest.mark.parametrize(("dtype", "enabled"), [("float16", False), ("bfloat16", True)])
def test_fp16_on_a_cpu_is_left_out(cfg, data, dtype, enabled):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, dtype
    assert enabled == set_up(cfg, write_config=False).SOLVER.AMP.ENABLED


def test_an_unknown_amp_type_is_told(cfg, data):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "float8"
    with pytest.raises(UserError, match=r"SOLVER\.AMP\.DTYPE.*float8.*bfloat16"):
        start(cfg)
