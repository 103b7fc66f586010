"""Every system on a GPU does what it does on the CPU: `pytest -m gpu`. Without one, the same tests run there, slow.

The noise is drawn on the CPU in both, as a GPU's generators give other numbers for the same seed.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dformer.d2.engine.optimizer import build_optimizer, clip_gradients
from tests import ROOT, run_script
from tests.d2.systems import SYSTEMS, build, full_request
from tests.d2.tiny import small_shapes, tiny_batch
from tests.fake_cuda import HostGenerator

STEPS = 20
QUICK = sorted(path.stem for path in (ROOT / "configs/quick").glob("*.yaml") if path.stem.endswith("_shapes"))
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
each = pytest.mark.parametrize("system", SYSTEMS)
on_each_device = pytest.mark.parametrize("device", [CUDA, pytest.param("cpu", marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


class _HostNoise(TorchDispatchMode):
    """Draw on the CPU what is random, and copy it to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs.get("device") or "cpu")


@contextmanager
def host_noise(device: str) -> Iterator[None]:
    if device == "cpu":
        yield
        return
    with mock.patch.object(torch, "Generator", HostGenerator), _HostNoise():
        yield


class Run:
    """A training of a tiny system."""

    def __init__(self, system: str, device: str, dtype: torch.dtype = torch.float32) -> None:
        self.cfg, self.device, self.dtype = SYSTEMS[system](), device, dtype
        self.model = build(system).to(device).train()
        self.optimizer = build_optimizer(self.cfg, self.model)
        # no overflow in the first steps, which would be left out
        self.scaler = torch.amp.GradScaler(device, init_scale=64.0, enabled=dtype == torch.float16)

    def step(self) -> Tensor:
        """Return the sum of the losses; it stays on the device."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            total = sum(self.model(tiny_batch((3, 1))).values())
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.cfg, self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total.detach()

    def steps(self, count: int) -> Tensor:
        with host_noise(self.device):
            return torch.stack([self.step() for _ in range(count)]).cpu()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


@each
@on_each_device
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 5e-2), (torch.bfloat16, 5e-2)], ids=str
)
def test_losses_follow_those_of_the_cpu(system, device, dtype, tolerance):
    expected = Run(system, "cpu").steps(STEPS)
    together = 1
    if system == "DiffusionInst" and dtype != torch.float32:
        # An object gets as many boxes as their IoUs add up to: in half precision, a pair more or less now and then.
        together, tolerance = 5, 0.1
    pairs = [x.view(-1, together).mean(1) for x in (Run(system, device, dtype).steps(STEPS), expected)]
    torch.testing.assert_close(*pairs, rtol=tolerance, atol=0)
    assert expected[-5:].mean() < expected[:5].mean()


@each
@on_each_device
def test_inference_is_that_of_the_cpu(system, device):
    found = []
    for place in ("cpu", device):
        model = build(system).to(place).eval()
        with host_noise(place):
            *_, step = model.steps(tiny_batch((1, 1)), full_request(model))
            found.append(step.results)
    for expected, result in zip(*found, strict=True):
        assert expected.keys() == result.keys()
        if "sem_seg" in result:
            torch.testing.assert_close(result["sem_seg"].cpu(), expected["sem_seg"], rtol=0, atol=1e-3)
        if "panoptic_seg" in result:
            (ours, _), (theirs, _) = result["panoptic_seg"], expected["panoptic_seg"]
            assert (ours.cpu() == theirs).float().mean() > 0.999
        if "instances" in result:
            ours, theirs = result["instances"], expected["instances"]
            torch.testing.assert_close(ours.scores.cpu(), theirs.scores, rtol=0, atol=1e-3)


@each
@on_each_device
def test_a_resumed_run_is_the_same(system, device, tmp_path):
    """Bit for bit on a CPU. On a GPU, the backward of grid_sample has no deterministic form."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = Run(system, device).steps(8)
        first, second = Run(system, device), Run(system, device)
        first.steps(4)
        torch.save(first.state(), tmp_path / "state.pth")
        state = torch.load(tmp_path / "state.pth", weights_only=True)
        second.model.load_state_dict(state["model"])
        second.optimizer.load_state_dict(state["optimizer"])
        second.model.iteration = 4
        rest = second.steps(4)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(rest, whole[4:], rtol=0 if device == "cpu" else 1e-4, atol=0)


@each
@on_each_device
def test_compiled_parts_do_the_same(system, device):
    """Each part that has parts, and is called as a whole."""
    torch._dynamo.reset()
    model = build(system).to(device).eval()

    def scores() -> list[Tensor]:
        with host_noise(device), torch.no_grad():
            *_, step = model.steps(tiny_batch((1,)), full_request(model))
            return [x.float() for result in step.results for x in _tensors(result)]

    expected = scores()
    for name, part in model.named_modules():
        if name.count(".") <= 1 and any(part.children()) and name:
            part.compile()
    for ours, theirs in zip(scores(), expected, strict=True):
        differs = ((ours - theirs).abs() > 1e-3).float().mean().nan_to_num()  # a result may be empty
        assert ours.shape == theirs.shape and differs < 1e-3


@each
@on_each_device
def test_a_compiled_training_goes_as_without(system, device):
    """As SOLVER.COMPILE compiles it; the losses of the later steps depend on the gradients of the first."""
    expected = Run(system, device).steps(3)
    torch._dynamo.reset()
    run = Run(system, device)
    for name in run.model.compilable:
        run.model.get_submodule(name).compile(backend="inductor" if device == "cuda" else "aot_eager")
    torch.testing.assert_close(run.steps(3), expected, rtol=1e-3, atol=0)


def _tensors(result: dict[str, Any]) -> list[Tensor]:
    found = [result["sem_seg"]] if "sem_seg" in result else []
    found += [result["panoptic_seg"][0]] if "panoptic_seg" in result else []
    return found + ([result["instances"].scores] if "instances" in result else [])


@each
@pytest.mark.gpu
def test_memory_does_not_grow(system, record_property):
    run, peaks = Run(system, "cuda"), []
    for _ in range(STEPS):
        torch.cuda.reset_peak_memory_stats()
        run.step()
        peaks.append(torch.cuda.max_memory_allocated())
    record_property("peak_mib", peaks[-1] / 2**20)
    assert peaks[-1] <= 1.01 * max(peaks[2:5])


@each
@pytest.mark.gpu
def test_a_training_step_waits_for_the_matching_at_most(system):
    """As tests/d2/modeling/test_fake_cuda.py, by what PyTorch itself counts."""
    run = Run(system, "cuda")
    run.steps(2)  # copies of tables, tuning of kernels
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in found if "synchronizing" in str(w.message)]
    assert len(waits) <= 1, waits


@on_each_device
@pytest.mark.parametrize("config", QUICK)
def test_the_trainer_with_all_gpus(config, device, tmp_path):
    """With NCCL where there are several; half precision, workers, pinned memory, evaluation."""
    if "moving" in config:
        pytest.importorskip("trackeval")
        for name in ("moving_shapes_train", "moving_shapes"):
            clips = ("--clips", 2, "--frames", 4, "--size", 64)
            assert run_script("datasets/moving_shapes.py", "--root", tmp_path, "--name", name, *clips) == 0
    else:
        small_shapes(tmp_path, f"gpu_{config}_{device}", train=8, val=4)
    count = torch.cuda.device_count() if device == "cuda" else 0
    command = ["tools/train_net.py", "--num-gpus", count, "--config-file", f"configs/quick/{config}.yaml"]
    command += ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2 * max(count, 1)]
    command += ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "TEST.EVAL_PERIOD", 0]
    command += ["MODEL.MASK_AUTOENCODER.WEIGHTS", ""]  # LDMSeg's first stage: not trained
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "PYTHONPATH": path}
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment, check=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert all(torch.tensor(line["total_loss"]).isfinite() for line in lines if "total_loss" in line)
    assert (tmp_path / "run/results.json").exists()
