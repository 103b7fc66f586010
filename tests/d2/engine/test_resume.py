"""An interrupted and resumed training equals an uninterrupted one bit for bit."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from dformer.d2.engine.interruption import RESUME_ME, SAME_SIGNAL_SECONDS, Interruption
from dformer.d2.engine.lock import locked
from dformer.d2.engine.run import run
from dformer.d2.engine.trainer import Trainer
from dformer.utils.errors import UserError
from tests.d2.engine.interrupt import damage, signalled
from tests.d2.engine.test_distributed import start
from tests.d2.tiny import own_loggers
from tests.faults.harness import difference
from tests.faults.training import configure, make_data


def exit_code(work) -> int:
    """Run a function in a forked process, and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(autouse=True)
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    make_data(root / "data")
    return root


@pytest.fixture(scope="module")
def whole(data):
    """The output of an uninterrupted training."""
    with own_loggers():
        run(configure(str(data / "data"), str(data / "whole"), workers=0))
    return data / "whole"


@pytest.mark.parametrize("workers", [0, 2])
def test_in_pieces_with_one_process(data, whole, workers, tmp_path):
    cfg = configure(str(data / "data"), str(tmp_path / "pieces"), workers)
    for stop, number in ((3, signal.SIGTERM), (4, signal.SIGINT), (11, signal.SIGUSR1)):
        with signalled(stop, number), pytest.raises(SystemExit) as end:
            run(cfg, resume=True)
        assert end.value.code == RESUME_ME
        assert newest(tmp_path).name == ("model_final.pth" if stop == 11 else f"model_{stop:07d}.pth")
    run(cfg, resume=True)
    assert difference(tmp_path / "pieces", whole) == ""


@pytest.mark.slow
def test_in_pieces_with_accumulated_gradients(data, tmp_path):
    cfg = configure(str(data / "data"), str(tmp_path / "whole"), workers=0)
    cfg.SOLVER.ACCUMULATE, cfg.SOLVER.ACTIVATION_CHECKPOINTING = 2, True
    run(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "pieces")
    with signalled(5), pytest.raises(SystemExit):
        run(cfg, resume=True)
    assert newest(tmp_path).name == "model_0000005.pth"  # iterations are steps of the optimizer
    run(cfg, resume=True)
    assert difference(tmp_path / "pieces", tmp_path / "whole") == ""


def newest(tmp_path):
    return tmp_path / "pieces" / (tmp_path / "pieces" / "last_checkpoint").read_text()


def test_in_pieces_with_two_processes(tmp_path):
    make_data(tmp_path / "data")
    process = start("--num-gpus", "resume", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "model_0000009.pth cannot be read" in process.stdout
    assert difference(tmp_path / "pieces", tmp_path / "whole") == ""


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(data, tmp_path, capsys):
    cfg = configure(str(data / "data"), str(tmp_path / "pieces"), 0)
    with signalled(8), pytest.raises(SystemExit):
        run(cfg)
    damage(newest(tmp_path))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert "model_0000008.pth cannot be read" in capsys.readouterr().out
    assert trainer.start_iter == 8  # model_0000007.pth
    for path in (tmp_path / "pieces").glob("*.pth"):
        damage(path)
    with pytest.raises(UserError, match="model_0000008.pth, model_0000007.pth"):
        run(cfg, resume=True)


def test_a_second_signal_ends_the_process():
    def work() -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # forwarded by a launcher
            assert interruption.received == "SIGTERM"
            time.sleep(1.1 * SAME_SIGNAL_SECONDS)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    assert exit_code(work) == -signal.SIGINT


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    def work() -> None:
        with pytest.raises(UserError, match=f"OUTPUT_DIR.* process {os.getppid()} on"):  # noqa: SIM117
            with locked(tmp_path):
                pass

    def hold() -> None:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    with locked(tmp_path):
        assert exit_code(work) == 0
    assert exit_code(hold) == -signal.SIGKILL
    (tmp_path / ".partial-model.pth").touch()
    with locked(tmp_path):  # the kernel has released it
        assert not list(tmp_path.glob(".partial-*"))
