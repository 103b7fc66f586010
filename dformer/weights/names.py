"""Renaming of state dicts, and the former names of our own parameters, which older checkpoints have."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Table = Sequence[tuple[str, str]]  # old name, new name: whole, or the part before a dot. # is a number

_DECODER = "head.mask_decoder"
_LAYER = f"{_DECODER}.layers.#"
_ENCODER_LAYER = "head.pixel_decoder.layers.#"
_FEED_FORWARD = [("feed_forward.expand", "feed_forward.linear1"), ("feed_forward.reduce", "feed_forward.linear2")]
_ATTENTION = [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")]

OLD_NAMES: Table = [
    ("head.query", "head.query_feat"),
    (f"{_DECODER}.query_position", f"{_DECODER}.query_embed"),
    (f"{_DECODER}.level_embedding", f"{_DECODER}.level_embed"),
    (f"{_DECODER}.input_projections", f"{_DECODER}.input_proj"),
    (f"{_DECODER}.norm", f"{_DECODER}.decoder_norm"),
    (f"{_DECODER}.class_head", f"{_DECODER}.class_embed"),
    (f"{_DECODER}.mask_head", f"{_DECODER}.mask_embed"),
    *(
        (f"{_LAYER}.{kind}_attention.attention.{old}", f"{_LAYER}.{kind}_attn.attention.{new}")
        for kind in ("cross", "self")
        for old, new in _ATTENTION
    ),
    *((f"{_LAYER}.{kind}_attention.norm", f"{_LAYER}.{kind}_attn.norm") for kind in ("cross", "self")),
    *((f"{_LAYER}.{old}", f"{_LAYER}.{new}") for old, new in _FEED_FORWARD),
    ("head.pixel_decoder.level_embedding", "head.pixel_decoder.level_embed"),
    ("head.pixel_decoder.input_projections", "head.pixel_decoder.input_proj"),
    ("head.pixel_decoder.mask_projection", "head.pixel_decoder.mask_features"),
    (f"{_ENCODER_LAYER}.attention.offsets", f"{_ENCODER_LAYER}.attention.sampling_offsets"),
    (f"{_ENCODER_LAYER}.attention.weights", f"{_ENCODER_LAYER}.attention.attention_weights"),
    (f"{_ENCODER_LAYER}.attention.value", f"{_ENCODER_LAYER}.attention.value_proj"),
    (f"{_ENCODER_LAYER}.attention.output", f"{_ENCODER_LAYER}.attention.output_proj"),
    *((f"{_ENCODER_LAYER}.{old}", f"{_ENCODER_LAYER}.{new}") for old, new in _FEED_FORWARD),
]


def from_old_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a checkpoint that an earlier version wrote; others keep their names and their order."""
    return {rename(name, OLD_NAMES) or name: tensor for name, tensor in weights.items()}


def rename(name: str, table: Table) -> str | None:
    """Return `name` as the first row of `table` that matches renames it, or None if none does."""
    for old, new in table:
        match = re.match(r"(\d+)".join(map(re.escape, old.split("#"))) + r"(?=\.|$)", name)
        if match:
            return (new.replace("#", match[1]) if "#" in old else new) + name[match.end() :]
    return None
