"""Checkpoints of the published DFormer and Mask2Former, renamed to ours.

The maths is the same; only names differ, and that attention's query, key and value projections are one tensor there.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# Published name -> ours, tried in this order; what follows the pattern is kept.
RENAMED = [
    # pixel decoder
    (r"sem_seg_head\.pixel_decoder\.input_proj\.", r"head.pixel_decoder.input_projections."),
    (r"sem_seg_head\.pixel_decoder\.transformer\.level_embed", r"head.pixel_decoder.level_embedding"),
    (r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.", r"head.pixel_decoder.layers.\1."),
    (r"(head\.pixel_decoder\.layers\.\d+)\.self_attn\.sampling_offsets", r"\1.attention.offsets"),
    (r"(head\.pixel_decoder\.layers\.\d+)\.self_attn\.attention_weights", r"\1.attention.weights"),
    (r"(head\.pixel_decoder\.layers\.\d+)\.self_attn\.(value|output)_proj", r"\1.attention.\2"),
    (r"(head\.pixel_decoder\.layers\.\d+)\.norm1", r"\1.norm"),
    (r"(head\.pixel_decoder\.layers\.\d+)\.norm2", r"\1.feed_forward.norm"),
    (r"sem_seg_head\.pixel_decoder\.mask_features", r"head.pixel_decoder.mask_projection"),
    (r"sem_seg_head\.pixel_decoder\.adapter_1\.norm", r"head.pixel_decoder.lateral.1"),
    (r"sem_seg_head\.pixel_decoder\.adapter_1", r"head.pixel_decoder.lateral.0"),
    (r"sem_seg_head\.pixel_decoder\.layer_1\.norm", r"head.pixel_decoder.smooth.1"),
    (r"sem_seg_head\.pixel_decoder\.layer_1", r"head.pixel_decoder.smooth.0"),
    # mask decoder
    (
        r"sem_seg_head\.predictor\.transformer_(self|cross)_attention_layers\.(\d+)\.",
        r"head.mask_decoder.layers.\2.\1_",
    ),
    (r"(head\.mask_decoder\.layers\.\d+)\.(self|cross)_(?:self|multihead)_attn", r"\1.\2_attention.attention"),
    (r"(head\.mask_decoder\.layers\.\d+)\.(self|cross)_norm", r"\1.\2_attention.norm"),
    (r"(head\.mask_decoder\.layers\.\d+\.\w+_attention\.attention)\.out_proj", r"\1.output"),
    (r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm", r"head.mask_decoder.layers.\1.feed_forward.norm"),
    (r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.", r"head.mask_decoder.layers.\1."),
    (r"(head\.(?:pixel|mask)_decoder\.layers\.\d+)\.linear1", r"\1.feed_forward.expand"),
    (r"(head\.(?:pixel|mask)_decoder\.layers\.\d+)\.linear2", r"\1.feed_forward.reduce"),
    (r"sem_seg_head\.predictor\.input_proj\.", r"head.mask_decoder.input_projections."),
    (r"sem_seg_head\.predictor\.level_embed\.weight", r"head.mask_decoder.level_embedding"),
    (r"sem_seg_head\.predictor\.query_embed\.weight", r"head.mask_decoder.query_position"),
    (r"sem_seg_head\.predictor\.(?:query_feat|static_query)\.weight", r"head.query"),
    (r"sem_seg_head\.predictor\.decoder_norm", r"head.mask_decoder.norm"),
    (r"sem_seg_head\.predictor\.class_embed", r"head.mask_decoder.class_head"),
    (r"sem_seg_head\.predictor\.mask_embed\.layers\.0", r"head.mask_decoder.mask_head.0"),
    (r"sem_seg_head\.predictor\.mask_embed\.layers\.1", r"head.mask_decoder.mask_head.2"),
    (r"sem_seg_head\.predictor\.mask_embed\.layers\.2", r"head.mask_decoder.mask_head.4"),
    # time embedding
    (r"sem_seg_head\.predictor\.time_mlp\.1", r"head.time_modulation.embed.0"),
    (r"sem_seg_head\.predictor\.time_mlp\.3", r"head.time_modulation.embed.2"),
    (r"sem_seg_head\.predictor\.block_time_mlp\.1", r"head.time_modulation.project.1"),
    # Swin; timm has the merging of patches at the start of a stage, the published code at the end of the one before
    (r"backbone\.patch_embed\.", r"backbone.body.patch_embed."),
    (r"backbone\.layers\.0\.downsample", r"backbone.body.layers_1.downsample"),
    (r"backbone\.layers\.1\.downsample", r"backbone.body.layers_2.downsample"),
    (r"backbone\.layers\.2\.downsample", r"backbone.body.layers_3.downsample"),
    (r"backbone\.layers\.(\d)\.", r"backbone.body.layers_\1."),
    (r"backbone\.norm0", r"backbone.norms.res2"),
    (r"backbone\.norm1", r"backbone.norms.res3"),
    (r"backbone\.norm2", r"backbone.norms.res4"),
    (r"backbone\.norm3", r"backbone.norms.res5"),
]

# Published name -> why nothing of ours needs it.
DROPPED = [
    (r"criterion\.empty_weight", "a setting"),
    (r".*\.relative_position_index", "follows from the window size"),
    (r"betas|\w*alphas_cumprod\w*|posterior_\w+", "the noise schedule is a setting"),
]

MERGED = re.compile(r"(.*\.attention)\.in_proj_(weight|bias)")


def is_published(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the published implementations."""
    return any(name.removeprefix("module.").startswith("sem_seg_head.predictor.") for name in weights)


def from_published(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename a published checkpoint.

    Args:
        weights: names of the whole model: `backbone.`, `sem_seg_head.`, ...

    Returns:
        The weights under our names, and for each name that was dropped the reason. A name that is not known is kept.
    """
    converted: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for wrapped_name, tensor in weights.items():
        name = wrapped_name.removeprefix("module.")  # of DistributedDataParallel
        reason = next((reason for pattern, reason in DROPPED if re.fullmatch(pattern, name)), None)
        if reason:
            dropped[name] = reason
            continue
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(f"^{pattern}", replacement, ours)
        merged = MERGED.fullmatch(ours)
        if merged:
            attention, kind = merged.groups()
            parts = tensor.chunk(3)
            converted |= {f"{attention}.{p}.{kind}": x for p, x in zip(("query", "key", "value"), parts, strict=True)}
        else:
            converted[ours] = tensor
    return converted, dropped
