"""What of a file goes into a model, and what is reported of the rest."""

import pytest
import torch
from torch import nn

from dformer.utils.errors import UserError
from dformer.weights.loading import load, resize_bias_table, table


class Model(nn.Module):
    """The names that count, in small."""

    def __init__(self, classes: int = 7, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Conv2d(3, width, 1, bias=False)})
        norm, head = nn.LayerNorm(width), nn.Linear(width, classes + 1)
        self.head = nn.ModuleDict({"mask_decoder": nn.ModuleDict({"decoder_norm": norm, "class_embed": head})})


def checkpoint(model: nn.Module, **changes: torch.Tensor | None) -> dict:
    weights = model.state_dict() | {name.replace("__", "."): x for name, x in changes.items()}
    return {"model": {name: x for name, x in weights.items() if x is not None}}


def test_everything():
    model, other = Model(), Model()
    fit = load(model, checkpoint(other), "other.pth", trained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert table(fit).split("\n") == ["loaded            5  of weights"]


def test_a_class_embed_of_another_size_begins_anew_in_training_only():
    model, other = Model(classes=7), Model(classes=133)
    before = model.head["mask_decoder"]["class_embed"].weight.clone()
    with pytest.raises(UserError, match=r"coco\.pth.*2 reinitialized .*class_embed\.weight: 134 .* 8 here"):
        load(model, checkpoint(other), "coco.pth", trained=True)
    fit = load(model, checkpoint(other), "coco.pth")
    assert "reinitialized     2  134 class logits in the file, 8 here: head.mask_decoder.class_embed" in table(fit)
    assert torch.equal(model.head["mask_decoder"]["class_embed"].weight, before)
    assert torch.equal(model.backbone["stem"].weight, other.backbone["stem"].weight)


class Queries(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        decoder = nn.ParameterDict({"query_embed": torch.randn(count, 4), "norm": torch.randn(4)})
        self.head = nn.ModuleDict({"mask_decoder": decoder})


@pytest.mark.parametrize(("theirs", "ours"), [(100, 20), (20, 100)])
def test_as_many_queries_as_fit_are_taken_in_training_only(theirs, ours):
    model, other = Queries(ours), Queries(theirs)
    name, kept = "head.mask_decoder.query_embed", min(theirs, ours)
    embed, given = model.get_parameter(name), other.get_parameter(name)
    before = embed.clone()
    with pytest.raises(UserError, match=rf"a\.pth.*1 partial .*query_embed: {theirs} .* {ours} here"):
        load(model, checkpoint(other), "a.pth", trained=True)
    fit = load(model, checkpoint(other), "a.pth")
    assert f"partial           1  {theirs} queries in the file, {ours} here" in table(fit) and name in table(fit)
    assert torch.equal(embed[:kept], given[:kept]) and torch.equal(embed[kept:], before[kept:])
    assert torch.equal(*(each.get_parameter("head.mask_decoder.norm") for each in (model, other)))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"head__mask_decoder__decoder_norm__bias": None}, r"missing.*head\.mask_decoder\.decoder_norm\.bias"),
        ({"head__extra": torch.zeros(1)}, r"unexpected.*head\.extra"),
        ({"backbone__stem__weight": torch.zeros(5, 3, 1, 1)}, r"mismatched.*backbone\.stem\.weight \(5, 3, 1"),
    ],
)
def test_keys_that_do_not_fit(changes, names):
    model, other = Model(), Model()
    before = model.head["mask_decoder"]["decoder_norm"].weight.clone()
    other.head["mask_decoder"]["decoder_norm"].weight.data += 1
    with pytest.raises(UserError, match=names) as caught:
        load(model, checkpoint(other, **changes), "other.pth")
    assert "MODEL.WEIGHTS_STRICT" in str(caught.value)
    assert torch.equal(model.head["mask_decoder"]["decoder_norm"].weight, before), "the model is unchanged"
    fit = load(model, checkpoint(other, **changes), "other.pth", strict=False)
    assert torch.equal(model.head["mask_decoder"]["decoder_norm"].weight, before + 1)
    assert next(iter(changes)).replace("__", ".") in table(fit)


def test_the_first_ten_shapes_are_named():
    def model(width: int) -> nn.Module:
        layers = nn.ModuleDict({f"layer{i:02}": nn.Linear(1, width) for i in range(8)})
        return nn.ModuleDict({"backbone": layers, "other": nn.Linear(1, 1)})

    with pytest.raises(UserError, match="16 mismatched") as caught:
        load(model(2), checkpoint(model(3)), "wide.pth")
    assert str(caught.value).count(" in the file and ") == 10 and "layer04.bias (3,)" in str(caught.value)


def test_nothing_in_common():
    with pytest.raises(UserError, match=r"bert\.pth .*encoder\.w.*stem"):
        load(Model(), {"model": {"encoder.w": torch.zeros(2)}}, "bert.pth", strict=False)


def test_a_backbone_leaves_the_head_initial_and_is_not_a_trained_model():
    pretrained = {"model": {"stem.weight": torch.ones(4, 3, 1, 1), "fc.weight": torch.ones(9, 4)}}
    model = Model()
    fit = load(model, pretrained, "R-50.pkl")
    assert model.backbone["stem"].weight.unique().item() == 1
    assert fit.dropped == {"fc.weight": "the classifier"} and len(fit.reinitialized) == 4
    with pytest.raises(UserError, match="4 reinitialized"):
        load(model, pretrained, "R-50.pkl", trained=True)


def test_bias_tables_are_resized_by_position():
    """What grows with a distance still does, as much in all, and each head has its own."""
    small = torch.cartesian_prod(torch.arange(-6, 7.0), 2 * torch.arange(-6, 7.0)) / 6
    large = resize_bias_table(small, 23 * 23)
    assert large.shape == (529, 2) and large.dtype == small.dtype
    square = large.reshape(23, 23, 2)
    assert torch.allclose(square[11, 11], torch.zeros(2), atol=1e-6)
    steps = square[..., 0].diff(dim=0)
    assert (steps > 0).all() and steps[4:18].mean().item() == pytest.approx(13 / 23 / 6, rel=0.02)
    assert torch.allclose(square[..., 1], 2 * square[..., 0].T, atol=1e-5)
    assert torch.allclose(resize_bias_table(small, 169), small, atol=1e-6)
