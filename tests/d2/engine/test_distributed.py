"""Two real processes do what one does, under torchrun and under our own launcher, with gloo."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from dformer.d2.engine.launch import launch, own_gpu
from dformer.d2.engine.trainer import MAX_BAD_STEPS
from dformer.utils.errors import UserError
from tests import ROOT, load_script
from tests.d2.engine.distributed import gradients

replay = load_script("tools/replay.py")

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(launcher: str, task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a task of tests/d2/engine/distributed.py in two processes."""
    torchrun, processes = (TORCHRUN, "1") if launcher == "torchrun" else ([], "2")
    command = [sys.executable, *torchrun, "-m", "tests.d2.engine.distributed", task, str(folder), processes]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of two processes."""
    folder = tmp_path_factory.mktemp("two")
    process = start("--num-gpus", "measure", folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def measured(two):
    return torch.load(two / "measured.pth", weights_only=True)


@pytest.mark.parametrize("meta_architecture", ["DFormer", "Mask2Former"])
def test_two_processes_have_the_gradients_of_one(measured, meta_architecture, tmp_path):
    two, two_loss = measured[meta_architecture]
    one, one_loss = gradients(tmp_path, meta_architecture)
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    assert one.keys() == two.keys()
    # The norm of all gradients together: a bias before a group norm has only rounding errors as its gradient.
    norm = torch.stack([gradient.norm() for gradient in one.values()]).norm().item()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-5, atol=1e-5 * norm, msg=name)
    assert sum(gradient.norm() > 0 for gradient in one.values()) > 0.9 * len(one)


def test_processes_begin_with_the_weights_of_the_first_and_the_others_draw_none(measured):
    """Parameters, trained or frozen, buffers and the moving average. (Some are made by `torch.randn` in all.)"""
    (drawn,), (drawn_by_other,) = measured["first"]["drawn"]
    assert 0 < drawn_by_other < 0.1 * drawn
    first, other = measured["first"]["weights"]
    for group in ("model", "average"):
        assert first[group].keys() == other[group].keys() and "random" in first[group]
        for name, tensor in first[group].items():
            assert torch.equal(tensor, other[group][name]), name
    assert all(torch.equal(tensor, first["model"][name]) for name, tensor in first["average"].items())


@pytest.mark.parametrize(
    "fault, images, found",
    [
        ("image", [1], "its image; first the output of backbone.stages.res2; losses: "),
        ("loss", [1, 3], "losses: loss_dice_0"),
        ("gradient", [1, 3], "gradients: head.mask_decoder.class_embed.weight"),
        ("cost", [1, 3], "losses: loss_ce"),
    ],
)
def test_a_nonfinite_step_of_one_process_is_skipped_by_all_and_traced(measured, fault, images, found):
    """The last process has the fault, and the images 1 and 3."""
    skipped, log = measured[fault]
    assert skipped == [[True, False], [True, False]]
    lines = log.splitlines()
    assert "iteration 0" in lines[0] and "(1 in a row" in lines[0]
    assert (fault == "gradient") == ("grad_norm (gradients of head.mask_decoder.class_embed.weight)" in lines[0])
    for image in range(4):
        (line,) = [line for line in lines[1:] if f"image {image}: " in line]
        assert line.strip().startswith(f"rank {image % 2}")
        assert (found if image in images else "finite on its own") in line


def test_all_processes_stop_together_and_save_batches_for_a_replay(measured, two, monkeypatch, capsys):
    for rank, message in enumerate(measured["stop"]):
        file = two / f"bad_step_{MAX_BAD_STEPS - 1:07d}" / f"rank{rank}.pth"
        assert f"{MAX_BAD_STEPS} steps in a row" in message and f"dformer replay {file}" in message
        monkeypatch.setattr(sys, "argv", ["replay.py", str(file), "--device", "cpu"])
        replay.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("image ")]
        assert [("its image" in line) for line in lines] == [rank == 1, False]
        assert lines[1].startswith(f"image {2 + rank}: finite")


def test_losses_have_the_same_names_with_and_without_objects(measured):
    first, last = measured["loss_names"]
    assert first == last == [f"loss_{term}{layer}" for layer in ("", "_0") for term in ("ce", "mask", "dice")]


@pytest.mark.parametrize(
    "launcher, task, message",
    [
        ("--num-gpus", "fail_of_user", "error: one of 2 processes cannot read it"),
        ("torchrun", "fail_of_all", "error: all of them cannot read it"),
        pytest.param("--num-gpus", "fail_of_all", "error: all of them cannot read it", marks=pytest.mark.slow),
        pytest.param(
            "torchrun", "fail_of_ours", "RuntimeError: one of 2 processes cannot read it", marks=pytest.mark.slow
        ),
    ],
)
def test_a_failure_of_one_process_ends_all_and_is_printed(tmp_path, launcher, task, message):
    process = start(launcher, task, tmp_path)
    is_user_error = task in ("fail_of_user", "fail_of_all") and launcher != "torchrun"
    assert process.returncode == (2 if is_user_error else 1)
    assert process.stderr.count(message) == 1 or not message.startswith("error: ") and message in process.stderr


@pytest.mark.slow
def test_a_long_evaluation_is_waited_for_and_a_process_that_hangs_in_training_is_named(tmp_path):
    """Waiting for each other is limited to 3 s in the steps; the evaluation takes 4 s."""
    process = start("--num-gpus", "hang", tmp_path)
    assert process.returncode == 1
    assert "evaluated by 0" in process.stdout and "evaluated by 1" in process.stdout
    assert "Ranks 1 failed to pass" in process.stderr


def test_the_first_process_of_a_node_works_for_all(measured):
    once = measured["once"]
    assert once["calls"] == [["first"], []] and once["values"] == [{"classes": 0}] * 2
    assert once["errors"] == ["refused by 0"] * 2
    assert once["loaded"] == [["records"], []]
    assert once["records"] == [[{"file_name": f"{k}.jpg"} for k in range(9)]] * 2
    assert once["gathered"] == [0, 1]
    assert once["cores"] == [max(1, len(os.sched_getaffinity(0)) // 2)] * 2


@pytest.mark.parametrize("environment, gpu", [({"SLURM_PROCID": "3"}, 0), ({"TORCHELASTIC_RUN_ID": "1"}, None)])
def test_a_task_of_slurm_with_one_gpu_takes_that(monkeypatch, environment, gpu):
    """Of torchrun's processes, each sees all; so one is too few."""
    for name in ("SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert own_gpu(local_rank=3, local_size=8, found=8) == 3
    with pytest.raises(UserError, match=r"MODEL\.DEVICE") if gpu is None else nullcontext():
        assert own_gpu(local_rank=3, local_size=8, found=1) == gpu


@pytest.mark.slow
def test_processes_that_srun_starts_find_each_other(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.d2.engine.distributed", "measure", str(tmp_path), "1"]
    environments = [os.environ | common | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"} for rank in "01"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for environment in environments]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert (tmp_path / "measured.pth").is_file()


def test_many_machines_need_a_place_to_meet():
    with pytest.raises(UserError, match="--dist-url"):
        launch(print, (), device="cpu", num_machines=2)
