"""Names of the published DiffusionInst."""

from collections.abc import Mapping

from torch import Tensor

from dformer.weights.names import Table
from dformer.weights.published import dformer, mask2former
from dformer.weights.published.system import PublishedSystem

_STAGE = "head.roi_decoder.stages.#"

NAMES: Table = [
    *(
        (theirs.replace("backbone.", "backbone.bottom_up."), ours)
        for theirs, ours in mask2former.NAMES
        if theirs.startswith("backbone.")
    ),
    *((f"backbone.fpn_lateral{i + 2}", f"head.fpn.inner_blocks.{i}.0") for i in range(4)),
    *((f"backbone.fpn_output{i + 2}", f"head.fpn.layer_blocks.{i}.0") for i in range(4)),
    ("head.time_mlp.1", "head.roi_decoder.time_embedding.0"),
    ("head.time_mlp.3", "head.roi_decoder.time_embedding.2"),
    *(
        (f"head.head_series.#.{theirs}", f"{_STAGE}.{ours}")
        for theirs, ours in [
            ("self_attn.out_proj", "self_attn.attention.out_proj"),
            ("self_attn", "self_attn.attention"),
            ("norm1", "self_attn.norm"),
            ("inst_interact", "dynamic_conv"),
            ("norm2", "norm"),
            ("linear1", "feed_forward.linear1"),
            ("linear2", "feed_forward.linear2"),
            ("norm3", "feed_forward.norm"),
            ("block_time_mlp.1", "time_projection.1"),
            ("cls_module", "class_branch"),
            ("reg_module", "box_branch"),
            ("class_logits", "class_embed"),
            ("bboxes_delta", "box_embed"),
            ("controller", "kernel_embed"),
        ]
    ),
    ("head.mask_refine.#", "head.mask_branch.refine.#"),
    ("head.mask_head.4", "head.mask_branch.mask_features"),
    ("head.mask_head.#", "head.mask_branch.tower.#"),
    ("criterion.fed_loss_cls_weights", "criterion.frequencies"),
]

# Number of classes -> folder and schedule of the published models.
DATA_SETS = {80: ("coco/instance", "5x"), 1203: ("lvis/instance", "3x")}
COUNTER = r".*\.num_batches_tracked"  # of the mask branch's batch norms, which both models have


def find_configs(weights: Mapping[str, Tensor]) -> list[str]:
    """List the config of the published model that has such weights, if there is one."""
    bias = weights.get("head.roi_decoder.stages.0.class_embed.bias")
    folder, schedule = DATA_SETS.get(0 if bias is None else len(bias), (None, None))
    backbone = mask2former.find_backbone(weights)
    if folder is None or backbone is None:
        return []
    if backbone.startswith("swin"):  # all published ones were pretrained on ImageNet-22k, with windows of 7
        return [f"{folder}/swin/diffusioninst_{backbone.removesuffix('_22k')}_w7_22k_{schedule}.yaml"]
    return [f"{folder}/diffusioninst_{backbone}_{schedule}.yaml"]


DIFFUSIONINST = PublishedSystem(
    name="DiffusionInst",
    theirs="head.head_series.",
    ours="head.roi_decoder.",
    names=NAMES,
    dropped=[row for row in dformer.DFORMER.dropped if row[0] != COUNTER],
    buffers=dformer.buffers,
    configs=find_configs,
    settings={**dformer.DFORMER.settings, "MODEL.MASK_BRANCH.NORM": "BN"},
)
