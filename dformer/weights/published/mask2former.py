"""Names of the published Mask2Former, and what the published DFormer shares with it."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from dformer.weights.names import Table
from dformer.weights.published.system import PublishedSystem

# The first row that matches counts.
NAMES: Table = [
    # pixel decoder
    ("sem_seg_head.pixel_decoder.input_proj.#", "head.pixel_decoder.input_proj.#"),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", "head.pixel_decoder.level_embed"),
    *(
        (f"sem_seg_head.pixel_decoder.transformer.encoder.layers.#.{theirs}", f"head.pixel_decoder.layers.#.{ours}")
        for theirs, ours in [
            ("self_attn.sampling_offsets", "attention.sampling_offsets"),
            ("self_attn.attention_weights", "attention.attention_weights"),
            ("self_attn.value_proj", "attention.value_proj"),
            ("self_attn.output_proj", "attention.output_proj"),
            ("norm1", "norm"),
            ("linear1", "feed_forward.linear1"),
            ("linear2", "feed_forward.linear2"),
            ("norm2", "feed_forward.norm"),
        ]
    ),
    ("sem_seg_head.pixel_decoder.adapter_1.norm", "head.pixel_decoder.lateral.1"),
    ("sem_seg_head.pixel_decoder.adapter_1", "head.pixel_decoder.lateral.0"),
    ("sem_seg_head.pixel_decoder.layer_1.norm", "head.pixel_decoder.smooth.1"),
    ("sem_seg_head.pixel_decoder.layer_1", "head.pixel_decoder.smooth.0"),
    ("sem_seg_head.pixel_decoder.mask_features", "head.pixel_decoder.mask_features"),
    # mask decoder
    *(
        (f"sem_seg_head.predictor.transformer_{theirs}", f"head.mask_decoder.layers.#.{ours}")
        for theirs, ours in [
            ("self_attention_layers.#.self_attn.out_proj", "self_attn.attention.out_proj"),
            ("self_attention_layers.#.self_attn", "self_attn.attention"),
            ("self_attention_layers.#.norm", "self_attn.norm"),
            ("cross_attention_layers.#.multihead_attn.out_proj", "cross_attn.attention.out_proj"),
            ("cross_attention_layers.#.multihead_attn", "cross_attn.attention"),
            ("cross_attention_layers.#.norm", "cross_attn.norm"),
            ("ffn_layers.#.linear1", "feed_forward.linear1"),
            ("ffn_layers.#.linear2", "feed_forward.linear2"),
            ("ffn_layers.#.norm", "feed_forward.norm"),
        ]
    ),
    ("sem_seg_head.predictor.input_proj.#", "head.mask_decoder.input_proj.#"),
    ("sem_seg_head.predictor.level_embed.weight", "head.mask_decoder.level_embed"),
    ("sem_seg_head.predictor.query_embed.weight", "head.mask_decoder.query_embed"),
    ("sem_seg_head.predictor.query_feat.weight", "head.query_feat"),
    ("sem_seg_head.predictor.static_query.weight", "head.query_feat"),  # in checkpoints before query_feat got its name
    ("sem_seg_head.predictor.decoder_norm", "head.mask_decoder.decoder_norm"),
    ("sem_seg_head.predictor.class_embed", "head.mask_decoder.class_embed"),
    *((f"sem_seg_head.predictor.mask_embed.layers.{i}", f"head.mask_decoder.mask_embed.{2 * i}") for i in range(3)),
    # ResNet: Detectron2's in both
    ("backbone.stem", "backbone.stem"),
    ("backbone.res#", "backbone.res#"),
    # Swin; timm has the merging of patches at the start of a stage, the published code at the end of the one before
    ("backbone.patch_embed", "backbone.body.patch_embed"),
    *((f"backbone.layers.{i}.downsample", f"backbone.body.layers_{i + 1}.downsample") for i in range(3)),
    ("backbone.layers.#", "backbone.body.layers_#"),
    *((f"backbone.norm{i}", f"backbone.norms.res{i + 2}") for i in range(4)),
]

# Number of classes -> folders of configs.
DATA_SETS = {
    133: ("coco/panoptic",),
    80: ("coco/instance",),
    150: ("ade20k/semantic", "ade20k/panoptic"),
    100: ("ade20k/instance",),
}
# Channels of the first stage and blocks of the third -> backbone. Weights do not show what it was pretrained on.
SWINS = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base", (192, 18): "swin_large_22k"}
RESNETS = {6: "r50", 23: "r101"}

DROPPED = [
    (r"criterion\.empty_weight", "a setting"),
    (r".*\.relative_position_index", "follows from the window size"),
    (r".*\.num_batches_tracked", "counts the steps of training"),
]


def window_indices(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the indices that a Swin saves with each table of biases."""
    table = "relative_position_bias_table"
    return {
        name.replace(table, "relative_position_index"): _relative_position_index(window_size(len(x)))
        for name, x in published.items()
        if name.endswith(table)
    }


def window_size(rows: int) -> int:
    """Return the side w of a window of Swin's whose bias table has so many rows, (2 w - 1)^2."""
    return (round(rows**0.5) + 1) // 2


def _relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of cells of a window: (window**2, window**2) int64."""
    y, x = (side.flatten() for side in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def find_configs(system: str, weights: Mapping[str, Tensor]) -> list[str]:
    """List the configs of a `system`, "dformer" or "mask2former", whose published models have such weights."""
    bias = weights.get("head.mask_decoder.class_embed.bias")
    folders = DATA_SETS.get(len(bias) - 1 if bias is not None else 0, ())
    backbone = find_backbone(weights)
    if backbone is None:
        return []
    subfolder = "swin/" if backbone.startswith("swin") else ""
    schedules = {"coco": "100ep" if backbone == "swin_large_22k" else "50ep", "ade20k": "160k"}
    stem = f"{subfolder}{system}_{backbone}"
    return [f"{folder}/{stem}_{schedules[folder.partition('/')[0]]}.yaml" for folder in folders]


def find_backbone(weights: Mapping[str, Tensor]) -> str | None:
    """Find the backbone that has these weights, by its name in `configs/backbones/`."""
    if "backbone.body.patch_embed.proj.weight" in weights:
        width = len(weights["backbone.body.patch_embed.proj.weight"])
        return SWINS.get((width, _count_blocks(weights, "backbone.body.layers_2.blocks.")))
    return RESNETS.get(_count_blocks(weights, "backbone.res4."))


def _count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


MASK2FORMER = PublishedSystem(
    name="Mask2Former",
    theirs="sem_seg_head.predictor.",
    ours="head.query_feat",
    names=NAMES,
    dropped=DROPPED,
    buffers=window_indices,
    configs=partial(find_configs, "mask2former"),
    settings={},
)
