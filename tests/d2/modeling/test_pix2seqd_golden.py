"""The whole Pix2Seq-D, small, against tensors of the published code: encoder, training, sampling, video."""

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from safetensors.torch import load_file
from torch import nn

from dformer.d2.modeling.backbones import SamePooledStem
from dformer.diffusion.continuous import continuous_schedule
from dformer.models.pix2seqd import BitDiffusion, Pix2SeqDHead
from dformer.models.unet.image_encoder import FeaturePyramidMerge, TokenEncoder
from dformer.models.unet.transunet import TransUNet
from dformer.postprocess.view import View
from dformer.weights.published.convert import from_published, our_system, published_system, to_published
from dformer.weights.published.pix2seqd import PIX2SEQD
from tests.models.unet.tensorflow import nchw, weights_of

pytestmark = pytest.mark.golden
BLOCKS = {18: (2, 2, 2), 34: (3, 4, 6), 50: (3, 4, 6), 101: (3, 4, 23)}


def close(value, expected):
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def config_of(golden):
    return {key.removeprefix("config."): x.tolist() for key, x in golden.items() if key.startswith("config.")}


def resnet(depth, width):
    """Detectron2's, `width` channels in the stem."""
    stages, in_channels, out_channels = [], width, width if depth < 50 else 4 * width
    for i, count in enumerate(BLOCKS[depth]):
        options = {"in_channels": in_channels, "out_channels": out_channels, "norm": "FrozenBN"}
        options |= {} if depth < 50 else {"bottleneck_channels": out_channels // 4, "stride_in_1x1": False}
        block = BasicBlock if depth < 50 else BottleneckBlock
        strides = [1 if i == 0 else 2] + [1] * (count - 1)
        stages.append(ResNet.make_stage(block, count, stride_per_block=strides, **options))
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(SamePooledStem(3, width, norm="FrozenBN"), stages, out_features=["res2", "res3", "res4"])


def encoder_of(config, weights, prefix=""):
    width = weights[f"{prefix}resnet/initial_conv_relu_max_pool/0/conv2d/kernel"].shape[3]
    backbone = resnet(config["depth"], width)
    in_channels, dim = weights[f"{prefix}stem_projection/kernel"].shape
    heads, layers = (config.get(f"encoder_{key}", config.get(key)) for key in ("heads", "layers"))
    ffn_dim = weights[f"{prefix}transformer_encoder/enc_layers/0/mlp/mlp_layers/0/dense1/bias"].numel()
    return backbone, TokenEncoder(in_channels, dim, layers, heads, ffn_dim)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class Model(nn.Module):
    """The parts as in our meta-architecture."""

    def __init__(self, golden, past_maps=0):
        super().__init__()
        config, weights = config_of(golden), weights_of(golden)
        self.backbone, encoder = encoder_of(config, weights, "encoder/")
        shapes = self.backbone.output_shape()
        stride = config["image_size"][0] // config["mask_size"][0]
        channels = [shapes["res2"].channels, shapes["res3"].channels, encoder.dim]
        fuse = FeaturePyramidMerge(channels, (4, 8, 16), stride, config["fuse_dim"])
        bits = config["n_bits"] // 2
        decoder = TransUNet(
            in_channels=2 * bits * (1 + past_maps) + fuse.out_channels,
            out_channels=2 * 2**bits,
            dim=config["dim"],
            multipliers=config["ch_multipliers"],
            num_blocks=config["n_res_blocks"][0],
            transformer_dim=config["transformer_dim"],
            num_layers=config["transformer_blocks"],
            num_heads=config["transformer_dim"] // config["per_head_dim"],
            time_scaling=config["time_scaling"],
        )
        schedule = continuous_schedule("cosine")
        self.head = Pix2SeqDHead(
            encoder=encoder,
            fuse=fuse,
            decoder=decoder,
            diffusion=BitDiffusion(schedule, config["b_scale"], (bits, bits), "softmax", stride),
            num_labels=(config["num_classes"], config["max_instances"]),
            past_maps=past_maps,
            weight_power=config["mask_weight_p"],
        )
        converted, dropped = from_published(weights, PIX2SEQD)
        assert not dropped
        self.load_state_dict(converted)
        self.eval()

    def encode(self, image):
        maps = self.backbone(nchw(image))
        return self.head.encode([maps[key] for key in ("res2", "res3", "res4")])


def test_encoder(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_encoder.safetensors")
    weights = weights_of(golden)
    backbone, encoder = encoder_of(config_of(golden), weights)
    converted, _ = from_published({f"encoder/{name}": x for name, x in weights.items()}, PIX2SEQD)
    for module, prefix in ((backbone, "backbone."), (encoder, "head.encoder.")):
        module.load_state_dict({n.removeprefix(prefix): x for n, x in converted.items() if n.startswith(prefix)})
    maps = backbone.eval()(nchw(golden["image"]))
    for i, key in enumerate(("res2", "res3", "res4")):
        close(maps[key], nchw(golden[f"hidden.{i}"]))
    close(encoder(maps["res4"]).flatten(2).mT, golden["output"])


def test_names_and_layouts_and_back(golden_dir):
    published = weights_of(load_file(golden_dir / "pix2seqd_model.safetensors"))
    assert published_system(published) is PIX2SEQD and our_system(published) is None
    converted, _ = from_published(published, PIX2SEQD)
    assert our_system(converted) is PIX2SEQD and published_system(converted) is None
    again = to_published({name: x for name, x in converted.items()})
    assert again.keys() == published.keys()
    for name, x in again.items():  # the small model's attention has other heads
        assert torch.equal(x.flatten(), published[name].flatten()), name


def test_image_model(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_model.safetensors")
    config, model = config_of(golden), Model(golden)
    memory = model.encode(golden["image"])
    close(memory.map, nchw(golden["encoded_map"]))

    labels, t, noise = nchw(golden["label_map"]).long(), golden["train.t"], nchw(golden["train.noise"])
    close(model.head.to_signal(labels), nchw(golden["train.bits"]))
    logits = model.head.denoise(memory, nchw(golden["train.x_t"]), t)
    close(logits, nchw(golden["train.logits"].flatten(3)))
    close(model.head.loss(memory, labels, t, noise), golden["train.loss"].squeeze())

    drawn = (nchw(golden[f"infer.noise.{i}"]) for i in range(99))
    steps = list(model.head.sample(memory, lambda: next(drawn), config["iterations"], config["td"]))
    for i, step in enumerate(steps):
        close(step.x_t, nchw(golden[f"infer.state.{i}.x_t"]))
        close(step.x0, nchw(golden[f"infer.state.{i}.data_pred"]))
    size = tuple(config["image_size"])
    found = model.head.to_labels(steps[-1].x0)
    enlarged = torch.stack([View(size, size, size).resize(x, "nearest-exact") for x in found])
    assert torch.equal(enlarged.int(), nchw(golden["infer.panoptic"]))


def test_video_model(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_video_model.safetensors")
    config = config_of(golden)
    past_maps = len(config["proceeding_frames"])
    model = Model(golden, past_maps)
    frames = [model.encode(golden["clip"][:, i]) for i in range(config["frames"])]

    past = nchw(golden["cond_map"]).unflatten(1, (past_maps, 2)).long()
    t, noise = golden["train.t"].view(-1), nchw(golden["train.noise"])
    labels = nchw(golden["label_map"][:, 2]).long()
    close(model.head.loss(frames[2], labels, t, noise, past), golden["train.loss"].squeeze())

    drawn = (nchw(golden[f"infer.noise.{i}"]) for i in range(99))
    steps = config["iterations"], config["iterations_2"]
    found = list(model.head.sample_video(frames, lambda: next(drawn), steps, config["td"]))
    assert torch.equal(torch.stack(found, dim=1).int(), golden["infer.panoptic"].movedim(-1, 2))


def test_resizing_of_labels(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_resize.safetensors")
    labels = nchw(golden["label_map"][None])[0]
    canvas = tuple(labels.shape[1:])
    for part in ("half", "odd", "double"):
        expected = golden[f"{part}.output"].movedim(-1, 0)
        found = View(canvas, canvas, tuple(expected.shape[1:])).resize(labels, "nearest-exact")
        assert torch.equal(found.int(), expected)
