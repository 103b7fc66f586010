"""torch.compile and torch.export go through the pixel decoder without a break; systems are compiled by part."""

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

import dformer
from dformer.models.pixel_decoder import MSDeformAttnPixelDecoder
from tests.d2.systems import SYSTEMS, build
from tests.d2.tiny import random_model

CHANNELS = (8, 16, 24, 32)
STRIDES = (4, 8, 16, 32)


@pytest.fixture
def decoder() -> MSDeformAttnPixelDecoder:
    torch.manual_seed(0)
    torch._dynamo.reset()
    sizes = dict(conv_dim=32, mask_dim=16, num_layers=2, num_heads=4, num_points=3, ffn_dim=64)
    return MSDeformAttnPixelDecoder(in_channels=CHANNELS, **sizes).eval()


def features(height: int, width: int) -> list[Tensor]:
    return [torch.randn(2, c, height // s, width // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def results(decoder: torch.nn.Module, x: list[Tensor]) -> list[Tensor]:
    """Embedding, and the gradients of its mean square by the parameters."""
    embedding = decoder(x).mask_features
    return [embedding, *torch.autograd.grad(embedding.square().mean(), list(decoder.parameters()))]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(decoder, backend):
    compiled = torch.compile(decoder, fullgraph=True, backend=backend)
    x = features(64, 96)
    torch.testing.assert_close(results(compiled, x), results(decoder, x), rtol=1e-3, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), decoder(x), rtol=0.05, atol=0.05)
    x = features(96, 128)  # another size: now as a variable
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), decoder(x), rtol=1e-3, atol=1e-5)


def test_export(decoder):
    h, w = Dim("h", min=2, max=64), Dim("w", min=2, max=64)
    sizes = [{2: 32 // s * h, 3: 32 // s * w} for s in STRIDES]
    program = export(decoder, (features(64, 96),), dynamic_shapes=(sizes,))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("dformer.ms_deform_attn.default") == 2
    x = features(96, 160)
    torch.testing.assert_close(program.module()(x), decoder(x))


@pytest.mark.parametrize("system", SYSTEMS)
def test_compilable_parts_exist(system):
    model = build(system)
    names = list(model.state_dict())
    model.compile_parts()
    assert list(model.state_dict()) == names
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert sorted(compiled) == sorted(model.compilable)


@pytest.mark.slow
def test_compiled_predictor(tmp_path):
    torch._dynamo.reset()
    random_model(tmp_path / "model.pth")
    weights, image = str(tmp_path / "model.pth"), (255 * torch.rand(64, 64, 3)).byte().numpy()
    expected = dformer.load(weights)(image).panoptic
    assert (dformer.load(weights, compile=True)(image).panoptic == expected).mean() > 0.99
