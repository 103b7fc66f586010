"""Weights of the published DFormer and Mask2Former under our names, and ours under theirs.

The maths is the same; only names differ, and that attention's query, key and value projections are one tensor there.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dformer.diffusion.schedule import cosine_betas
from dformer.utils.errors import UserError

# Published name and ours: whole, or the part before a dot. # is a number. The first row that fits counts.
NAMES = [
    # pixel decoder
    ("sem_seg_head.pixel_decoder.input_proj.#", "head.pixel_decoder.input_projections.#"),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", "head.pixel_decoder.level_embedding"),
    *(
        (f"sem_seg_head.pixel_decoder.transformer.encoder.layers.#.{theirs}", f"head.pixel_decoder.layers.#.{ours}")
        for theirs, ours in [
            ("self_attn.sampling_offsets", "attention.offsets"),
            ("self_attn.attention_weights", "attention.weights"),
            ("self_attn.value_proj", "attention.value"),
            ("self_attn.output_proj", "attention.output"),
            ("norm1", "norm"),
            ("linear1", "feed_forward.expand"),
            ("linear2", "feed_forward.reduce"),
            ("norm2", "feed_forward.norm"),
        ]
    ),
    ("sem_seg_head.pixel_decoder.adapter_1.norm", "head.pixel_decoder.lateral.1"),
    ("sem_seg_head.pixel_decoder.adapter_1", "head.pixel_decoder.lateral.0"),
    ("sem_seg_head.pixel_decoder.layer_1.norm", "head.pixel_decoder.smooth.1"),
    ("sem_seg_head.pixel_decoder.layer_1", "head.pixel_decoder.smooth.0"),
    ("sem_seg_head.pixel_decoder.mask_features", "head.pixel_decoder.mask_projection"),
    # mask decoder
    *(
        (f"sem_seg_head.predictor.transformer_{theirs}", f"head.mask_decoder.layers.#.{ours}")
        for theirs, ours in [
            ("self_attention_layers.#.self_attn.out_proj", "self_attention.attention.output"),
            ("self_attention_layers.#.self_attn", "self_attention.attention"),
            ("self_attention_layers.#.norm", "self_attention.norm"),
            ("cross_attention_layers.#.multihead_attn.out_proj", "cross_attention.attention.output"),
            ("cross_attention_layers.#.multihead_attn", "cross_attention.attention"),
            ("cross_attention_layers.#.norm", "cross_attention.norm"),
            ("ffn_layers.#.linear1", "feed_forward.expand"),
            ("ffn_layers.#.linear2", "feed_forward.reduce"),
            ("ffn_layers.#.norm", "feed_forward.norm"),
        ]
    ),
    ("sem_seg_head.predictor.input_proj.#", "head.mask_decoder.input_projections.#"),
    ("sem_seg_head.predictor.level_embed.weight", "head.mask_decoder.level_embedding"),
    ("sem_seg_head.predictor.query_embed.weight", "head.mask_decoder.query_position"),
    ("sem_seg_head.predictor.query_feat.weight", "head.query"),
    ("sem_seg_head.predictor.static_query.weight", "head.query"),  # in checkpoints before query_feat got its name
    ("sem_seg_head.predictor.decoder_norm", "head.mask_decoder.norm"),
    ("sem_seg_head.predictor.class_embed", "head.mask_decoder.class_head"),
    ("sem_seg_head.predictor.mask_embed.layers.0", "head.mask_decoder.mask_head.0"),
    ("sem_seg_head.predictor.mask_embed.layers.1", "head.mask_decoder.mask_head.2"),
    ("sem_seg_head.predictor.mask_embed.layers.2", "head.mask_decoder.mask_head.4"),
    # time embedding
    ("sem_seg_head.predictor.time_mlp.1", "head.time_modulation.embed.0"),
    ("sem_seg_head.predictor.time_mlp.3", "head.time_modulation.embed.2"),
    ("sem_seg_head.predictor.block_time_mlp.1", "head.time_modulation.project.1"),
    # ResNet: Detectron2's in both
    ("backbone.stem", "backbone.stem"),
    ("backbone.res#", "backbone.res#"),
    # Swin; timm has the merging of patches at the start of a stage, the published code at the end of the one before
    ("backbone.patch_embed", "backbone.body.patch_embed"),
    ("backbone.layers.0.downsample", "backbone.body.layers_1.downsample"),
    ("backbone.layers.1.downsample", "backbone.body.layers_2.downsample"),
    ("backbone.layers.2.downsample", "backbone.body.layers_3.downsample"),
    ("backbone.layers.#", "backbone.body.layers_#"),
    ("backbone.norm0", "backbone.norms.res2"),
    ("backbone.norm1", "backbone.norms.res3"),
    ("backbone.norm2", "backbone.norms.res4"),
    ("backbone.norm3", "backbone.norms.res5"),
]

# Published name -> why nothing of ours needs it.
DROPPED = [
    (r"criterion\.empty_weight", "a setting"),
    (r".*\.relative_position_index", "follows from the window size"),
    (r".*\.num_batches_tracked", "counts the steps of training"),
    (r"betas|\w*alphas_cumprod\w*|posterior_\w+", "the noise schedule is a setting"),
]

MERGED = re.compile(r"(head\.mask_decoder\..*\.attention)\.in_proj_(weight|bias)")
PARTS = ("query", "key", "value")


def is_published(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the published implementations."""
    return any(name.removeprefix("module.").startswith("sem_seg_head.predictor.") for name in weights)


def from_published(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename a published checkpoint.

    Args:
        weights: names of the whole model: `backbone.`, `sem_seg_head.`, ..., with or without `module.` before them.

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
        ours = _renamed(name, NAMES) or name
        merged = MERGED.fullmatch(ours)
        if merged:
            attention, kind = merged.groups()
            converted |= {f"{attention}.{p}.{kind}": x for p, x in zip(PARTS, tensor.chunk(3), strict=True)}
        else:
            converted[ours] = tensor
    return converted, dropped


def to_published(weights: Mapping[str, Tensor], left_out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The way back: a state dict that the published DFormer or Mask2Former loads.

    Args:
        weights: of our DFormer or Mask2Former with a ResNet or Swin and MSDeformAttnPixelDecoder.
        left_out: what `from_published` dropped, where the weights come from there. Otherwise it is computed anew: for
            DFormer the schedule's buffers (cosine, T = 1000, all that the published code has), for Swin the indices.

    Raises:
        UserError: the published code has no place for a part of this model.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        part = re.fullmatch(r"(head\.mask_decoder\..*\.attention)\.(query|key|value)\.(weight|bias)", name)
        if part is None:
            merged[name] = tensor
        elif part[2] == PARTS[0]:
            parts = [weights[f"{part[1]}.{p}.{part[3]}"] for p in PARTS]
            merged[f"{part[1]}.in_proj_{part[3]}"] = torch.cat(parts)
    backwards = [(ours, theirs) for theirs, ours in NAMES]
    names = {name: _renamed(name, backwards) for name in merged}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown:
        raise UserError(
            f"the published DFormer and Mask2Former have no place for {len(unknown)} parameters of this model "
            f"({', '.join(unknown[:3])}, ...): they know ResNet and Swin with the MSDeformAttnPixelDecoder only"
        )
    published = {str(names[name]): tensor for name, tensor in merged.items()}
    return published | _derived(published) | dict(left_out or {})


def _derived(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that the published models save although they follow from settings."""
    table = "relative_position_bias_table"
    buffers = {
        name.replace(table, "relative_position_index"): relative_position_index((round(len(x) ** 0.5) + 1) // 2)
        for name, x in published.items()
        if name.endswith(table)
    }
    if any(name.startswith("sem_seg_head.predictor.time_mlp") for name in published):
        buffers |= schedule_buffers(cosine_betas(1000))
    return buffers


def relative_position_index(window: int) -> Tensor:
    """Row of Swin's bias table for each pair of cells of a window: (window**2, window**2) int64."""
    y, x = (side.flatten() for side in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def schedule_buffers(beta: Tensor) -> dict[str, Tensor]:
    """A noise schedule (T,), float64, in the forms that the published DFormer saves (posterior: DDPM, Eq. 6 and 7)."""
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    variance = beta * (1 - before) / (1 - alpha_bar)
    return {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
    }


def _renamed(name: str, names: list[tuple[str, str]]) -> str | None:
    """`name` by the first row that fits it, or None."""
    for old, new in names:
        match = re.match(r"(\d+)".join(map(re.escape, old.split("#"))) + r"(?=\.|$)", name)
        if match:
            return (new.replace("#", match[1]) if "#" in old else new) + name[match.end() :]
    return None
