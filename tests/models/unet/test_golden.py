"""The parts of Pix2Seq-D against tensors of the published code."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dformer.layers.embedding import sine_encoding, sine_token_position
from dformer.layers.pre_norm import PreNormLayer
from dformer.models.unet.image_encoder import FeaturePyramidMerge
from dformer.models.unet.transunet import DownBlock, ResBlock, TransUNet, UpBlock
from tests.models.unet.tensorflow import load, nchw, weights_of

pytestmark = pytest.mark.golden


def close(value, expected):
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_embeddings(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_embeddings.safetensors")
    dim, height, width = (golden[f"config.{key}"].item() for key in ("dim", "height", "width"))
    encoding = sine_encoding(golden["gamma"] * golden["config.scaling"], dim)
    close(encoding, golden["encoding"])
    layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim), nn.SiLU())
    load(layers, weights_of(golden), "denoiser/time_emb/", "head.decoder.time_embed.")
    close(layers(encoding), golden["time"])
    cpu = torch.device("cpu")
    close(sine_token_position(height, width, dim, cpu), golden["position"])
    close(sine_token_position(1, width, dim, cpu), golden["row"])


def test_blocks(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_unet_blocks.safetensors")

    def weights(part):
        found = weights_of(golden, f"{part}.")
        block = found.get("conv_0/kernel", found.get("resnet_blocks/0/conv_0/kernel"))
        emb = found.get("emb_proj/kernel", found.get("resnet_blocks/0/emb_proj/kernel")).shape[0]
        return found, block.shape[2], block.shape[3], emb

    for part in ("same", "wider"):
        found, in_channels, channels, emb = weights(part)
        block = ResBlock(in_channels, channels, emb)
        load(block, found, "denoiser/dn_units/0/resnet_blocks/0/", "head.decoder.down.0.blocks.0.")
        close(block(nchw(golden["x"]), golden["emb"]), nchw(golden[f"{part}.output"]))

    found, in_channels, channels, emb = weights("down")
    count = len([name for name in golden if name.startswith("down.lateral.")])
    down = DownBlock(in_channels, channels, emb, count - 1, downsample=True)
    load(down, found, "denoiser/dn_units/0/", "head.decoder.down.0.")
    maps = down(nchw(golden["x"]), golden["emb"])
    assert len(maps) == count
    for i, x in enumerate(maps):
        close(x, nchw(golden[f"down.lateral.{i}"]))
    close(maps[-1], nchw(golden["down.output"]))

    found, _, channels, emb = weights("up")
    x = nchw(golden["x"])
    laterals = [nchw(golden[name]) for name in sorted(name for name in golden if name.startswith("up.lateral."))]
    up = UpBlock(x.shape[1], [lateral.shape[1] for lateral in reversed(laterals)], channels, emb, upsample=True)
    load(up, found, "denoiser/up_units/1/", "head.decoder.up.1.")
    close(up(x, laterals, golden["emb"]), nchw(golden["up.output"]))


def test_transformer_layers(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_transformer.safetensors")
    x, memory, heads = golden["x"], golden["memory"], golden["config.heads"].item()
    dim, ffn_dim = x.shape[2], x.shape[2] * golden["config.mlp_ratio"].item()
    theirs = {"encoder": "encoder/transformer_encoder/"} | dict.fromkeys(
        ("decoder", "decoder_alone"), "denoiser/transformer/transformer_decoder/"
    )
    for part, prefix in theirs.items():
        weights = weights_of(golden, f"{part}.")
        count = len({name.split("/")[1] for name in weights})
        layers = nn.ModuleList(
            PreNormLayer(dim, heads, ffn_dim, cross_attention=part == "decoder") for _ in range(count)
        )
        ours = "head.encoder.layers." if part == "encoder" else "head.decoder.transformer.layers."
        load(layers, weights, prefix, ours)
        y = x
        for layer in layers:
            y = layer(y, layer.encode_memory(memory) if part == "decoder" else None)
        close(y, golden[f"{part}.output"])


def fuse_of(maps, out_side, dim):
    sides = [x.shape[2] for x in maps]
    strides = [out_side * 4 // side for side in sides]  # relative to the result, which has 4
    return FeaturePyramidMerge([x.shape[1] for x in maps], strides, 4, dim)


def test_fuse(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_fuse.safetensors")
    maps = [nchw(golden[name]) for name in sorted(name for name in golden if name.startswith("maps."))]
    for part in ("double", "same"):
        expected = nchw(golden[f"{part}.output"])
        fuse = fuse_of(maps, expected.shape[2], golden["config.dim"].item())
        load(fuse, weights_of(golden, f"{part}."), "encoder_fuse/", "head.fuse.")
        value = fuse(maps)
        assert value.shape[1] == fuse.out_channels
        close(value, expected)


@pytest.mark.parametrize("name", ["transunet", "transunet_l2"])
def test_transunet(golden_dir, name):
    golden = load_file(golden_dir / f"pix2seqd_{name}.safetensors")
    config = {key.removeprefix("config."): x.tolist() for key, x in golden.items() if key.startswith("config.")}
    weights = weights_of(golden)
    cross = bool(config["cross_attention"])
    _, _, in_channels, dim = weights["conv_in/kernel"].shape
    unet = TransUNet(
        in_channels=in_channels,
        out_channels=weights["conv_out/kernel"].shape[3],
        dim=dim,
        multipliers=config["ch_multipliers"],
        num_blocks=config["n_res_blocks"][0],
        transformer_dim=config["transformer_dim"],
        num_layers=config["transformer_blocks"],
        num_heads=config["transformer_dim"] // config["per_head_dim"],
        time_scaling=config["time_scaling"],
        cross_attention=cross,
    )
    load(unet, weights, "denoiser/", "head.decoder.")
    seen = {}

    def keep(key):
        def hook(module, inputs, output):
            seen[key] = output[-1] if isinstance(output, list) else output

        return hook

    unet.norm_in.register_forward_hook(keep("in"))
    unet.time_embed.register_forward_hook(keep("time"))
    unet.transformer.register_forward_hook(keep("transformer"))
    for way in ("down", "up"):
        for i, block in enumerate(getattr(unet, way)):
            block.register_forward_hook(keep(f"{way}.{i}"))
    memories = unet.encode_memory(golden["memory"]) if cross else [None] * len(unet.transformer.layers)
    output = unet(nchw(golden["x"]), golden["gamma"], memories)
    for key, value in seen.items():
        if f"inside.{key}" in golden:
            close(value if key == "time" else value.movedim(1, -1), golden[f"inside.{key}"])
    expected = golden["logits"].flatten(3) if cross else golden["output"]
    close(output, nchw(expected))
