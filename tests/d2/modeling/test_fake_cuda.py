"""Every system on a GPU, without one: no operation on two devices, no waiting where there is nothing to wait for."""

import pytest
import torch

from dformer.d2.engine.optimizer import build_optimizer, clip_gradients
from tests.d2.systems import SYSTEMS, build, full_request
from tests.d2.tiny import tiny_batch
from tests.fake_cuda import fake_cuda

each = pytest.mark.parametrize("system", SYSTEMS)


def test_what_fails_or_waits_on_a_gpu_is_found():
    with fake_cuda() as gpu:
        x = torch.zeros(3, device="cuda")
        noise = torch.randn(2, generator=torch.Generator("cuda"), device="cuda")
        assert x.device.type == noise.device.type == "cuda"
        with pytest.raises(RuntimeError, match="cpu"):
            x + torch.zeros(3)
        for wait in (lambda: x[0].item(), x.tolist, x.nonzero, lambda: x[x > 0], lambda: bool(x.any())):
            with pytest.raises(RuntimeError):
                wait()
        torch.zeros(3).to("cuda", non_blocking=True)
        assert torch.zeros(3).tolist() == [0, 0, 0] and gpu.waits == []
        assert x.cpu().tolist() == [1, 1, 1]
        torch.tensor([1.0], device="cuda")
        assert [wait.split(":")[0] for wait in gpu.waits] == ["to the host", "to the device"]


@each
def test_a_training_step_waits_for_the_matching_at_most(system):
    """And not for what goes to the device. What a step copies to the host beside it are the losses, at its end."""
    batch, cfg = tiny_batch((2, 0)), SYSTEMS[system]()
    with fake_cuda() as gpu:
        model = gpu.move(build(system)).train()
        optimizer = build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler("cuda")
        scaler.scale(sum(model(batch).values())).backward()
        scaler.unscale_(optimizer)
        clip_gradients(cfg, optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert {p.grad.device.type for p in model.parameters() if p.requires_grad} == {"cuda"}
    assert len(gpu.waits) <= 1 and all(wait.startswith("to the host") for wait in gpu.waits), gpu.waits


@pytest.mark.slow
@each
def test_mixed_precision_mixes_no_types(system):
    """By the rules of CUDA, which are others than those of the CPU."""
    with fake_cuda() as gpu, torch.no_grad(), torch.autocast("cuda", torch.float16):
        model = gpu.move(build(system))
        x = torch.zeros(2, 2, device="cuda")
        assert (x @ x).dtype == torch.float16
        assert {loss.dtype for loss in model.train()(tiny_batch((1,))).values()} == {torch.float32}


@each
def test_inference_waits_for_results_only(system):
    """Not between the steps: what is found is copied to the host when it is asked for; in float16, too."""
    batch = tiny_batch((1, 1))
    with fake_cuda() as gpu, torch.autocast("cuda", torch.float16):
        model = gpu.move(build(system)).eval()
        for step in model.steps(batch, full_request(model)):  # noqa: B007
            assert gpu.waits == []
        assert len(step.results) == 2
    assert all(wait.startswith("to the host") for wait in gpu.waits) and len(gpu.waits) <= 3 * len(batch), gpu.waits
