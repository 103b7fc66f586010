"""Names and layouts of the published Pix2Seq-D, which is in TensorFlow. No weights of it were released, only of its
relatives; a file has the variables by their paths in the object graph, such as "denoiser/conv_in/kernel"."""

import re
from collections.abc import Mapping

from torch import Tensor

from dformer.weights.names import Table
from dformer.weights.published.system import Layout, PublishedSystem

_UNET = "head.decoder"
_LAYER = [
    ("mlp.layernorms.0", "ffn_norm"),
    ("mlp.mlp_layers.0.dense1", "linear1"),
    ("mlp.mlp_layers.0.dense2", "linear2"),
]
_BLOCK = [
    *((f"conv_{i}", f"conv{i + 1}") for i in (0, 1)),
    *((f"group_norm_{i}", f"norm{i + 1}") for i in (0, 1)),
    ("emb_proj", "emb_proj"),
    ("shortcut_layer", "shortcut"),
]
_CONVS = "conv_relu_dropblock_layers"


def _attention(theirs: str, ours: str) -> list[tuple[str, str]]:
    parts = [("_query_dense", "q_proj"), ("_key_dense", "k_proj"), ("_value_dense", "v_proj")]
    return [(f"{theirs}.{a}", f"{ours}.{b}") for a, b in [*parts, ("_output_dense", "out_proj")]]


# With dots for slashes. The first row that matches counts.
NAMES: Table = [
    ("denoiser.conv_in", f"{_UNET}.conv_in"),
    ("denoiser.group_norm_in", f"{_UNET}.norm_in"),
    ("denoiser.group_norm_out", f"{_UNET}.norm_out"),
    ("denoiser.conv_out", f"{_UNET}.conv_out"),
    ("denoiser.time_emb.dense_0", f"{_UNET}.time_embed.0"),
    ("denoiser.time_emb.dense_1", f"{_UNET}.time_embed.2"),
    ("denoiser.transformer.emb_proj", f"{_UNET}.transformer.emb_proj"),
    *(
        (f"denoiser.transformer.trans_conv_{end}{theirs}", f"{_UNET}.transformer.{ours}_{end}")
        for end in ("in", "out")
        for theirs, ours in [("_norm", "norm"), ("", "conv")]
    ),
    *(
        (f"denoiser.transformer.transformer_decoder.dec_layers.#.{theirs}", f"{_UNET}.transformer.layers.#.{ours}")
        for theirs, ours in [
            ("self_ln", "self_attn_norm"),
            ("cross_ln", "cross_attn_norm"),
            *_attention("self_mha", "self_attn"),
            *_attention("cross_mha", "cross_attn"),
            *_LAYER,
        ]
    ),
    *(
        (f"denoiser.{way[0]}_units.{i}.resnet_blocks.#.{theirs}", f"{_UNET}.{way[1]}.{i}.blocks.#.{ours}")
        for i in range(8)
        for way in (("dn", "down"), ("up", "up"))
        for theirs, ours in _BLOCK
    ),
    ("denoiser.dn_units.#.conv_dn", f"{_UNET}.down.#.downsample"),
    ("denoiser.up_units.#.conv_up", f"{_UNET}.up.#.upsample"),
    # image encoder
    ("encoder.stem_projection", "head.encoder.proj"),
    ("encoder.stem_ln", "head.encoder.norm_in"),
    ("encoder.output_ln", "head.encoder.norm_out"),
    *(
        (f"encoder.transformer_encoder.enc_layers.#.{theirs}", f"head.encoder.layers.#.{ours}")
        for theirs, ours in [("mha_ln", "self_attn_norm"), *_attention("mha", "self_attn"), *_LAYER]
    ),
    *(
        (f"encoder_fuse.upsample_blocks.#.{theirs}{i}", f"head.fuse.blocks.#.{ours}{i}")
        for theirs, ours in [("conv", "conv"), ("gn", "norm")]
        for i in (1, 2)
    ),
    # ResNet: Detectron2's here
    ("encoder.resnet.initial_conv_relu_max_pool.2.bn", "backbone.stem.conv1.norm"),
    ("encoder.resnet.initial_conv_relu_max_pool.0.conv2d", "backbone.stem.conv1"),
    *(
        (f"encoder.resnet.block_groups.{i}.layers.#.{theirs}", f"backbone.res{i + 2}.#.{ours}")
        for i in range(4)
        for theirs, ours in [
            *((f"{_CONVS}.{3 * k + 1}.bn", f"conv{k + 1}.norm") for k in range(3)),
            *((f"{_CONVS}.{3 * k}.conv2d", f"conv{k + 1}") for k in range(3)),
            ("projection_layers.1.bn", "shortcut.norm"),
            ("projection_layers.0.conv2d", "shortcut"),
        ]
    ),
]
_SUFFIXES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
_SUFFIXES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
_NORM = re.compile(r"(ln|norm|bn|gn\d|layernorms\.\d|group_norm_\w+)$")
_HEADS = {"encoder": 16, "denoiser": 8}  # of the published attention


def _to_torch(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    module, suffix = name.replace("/", ".").rsplit(".", 1)
    if suffix == "kernel":
        if tensor.ndim == 4:  # convolution: (h, w, in, out)
            tensor = tensor.permute(3, 2, 0, 1)
        elif module.endswith("_output_dense"):  # (heads, C / heads, C)
            tensor = tensor.flatten(0, 1).T
        else:  # dense: (in, out); projection to heads: (C, heads, C / heads)
            tensor = tensor.flatten(1).T
    elif module.endswith("_dense"):
        tensor = tensor.flatten()
    return f"{module}.{_SUFFIXES.get(suffix, suffix)}", tensor.contiguous()


def _from_torch(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    module, suffix = name.rsplit(".", 1)
    heads = (_HEADS[name.split(".")[0]], -1) if module.endswith("_dense") else None
    if tensor.ndim == 4:
        tensor = tensor.permute(2, 3, 1, 0)
    elif tensor.ndim == 2:
        tensor = tensor.T
        if heads:
            tensor = tensor.unflatten(0 if module.endswith("_output_dense") else 1, heads)
    elif heads and not module.endswith("_output_dense"):
        tensor = tensor.unflatten(0, heads)
    theirs = {"weight": "gamma", "bias": "beta"} if _NORM.search(module) else {"weight": "kernel"}
    theirs |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
    return f"{module}.{theirs.get(suffix, suffix)}".replace(".", "/"), tensor.contiguous()


def _find_configs(weights: Mapping[str, Tensor]) -> list[str]:
    conv_out, layers = weights.get(f"{_UNET}.conv_out.weight"), {n for n in weights if n.startswith("backbone.res4.")}
    r50 = len({name.split(".")[2] for name in layers}) == 6
    published = conv_out is not None and conv_out.shape[:2] == (512, 128) and r50
    return ["coco/panoptic/pix2seqd_r50_tensorflow.yaml"] if published else []


PIX2SEQD = PublishedSystem(
    name="Pix2SeqD",
    theirs="denoiser/",
    ours="head.decoder.",
    names=NAMES,
    dropped=[],
    buffers=lambda published: {},
    configs=_find_configs,
    settings={
        "MODEL.BACKBONE.NAME": "build_tensorflow_resnet_backbone",
        "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0],
        "MODEL.PIXEL_STD": [255.0, 255.0, 255.0],
        "MODEL.PIX2SEQD.ENCODER_HEADS": _HEADS["encoder"],
        "MODEL.PIX2SEQD.DECODER_HEADS": _HEADS["denoiser"],
    },
    layout=Layout(_to_torch, _from_torch),
)
