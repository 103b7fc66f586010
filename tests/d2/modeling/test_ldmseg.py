"""The meta-architectures MaskAutoencoder and LDMSeg on the CPU, with the awkward inputs."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from dformer.models.unet.unet2d import UNet2DConditionModel
from dformer.signals.bits import ID_ORDERS, int_to_bits
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_batch, tiny_cfg

both = pytest.mark.parametrize("system", ["MaskAutoencoder", "LDMSeg"])


def build(system="LDMSeg", *overrides):
    cfg = tiny_cfg(system)
    cfg.merge_from_list(list(overrides))
    torch.manual_seed(0)
    return build_model(cfg)


@both
@pytest.mark.parametrize("counts", [(0,), (0, 0), (11, 0, 3)])  # 11: more than the 7 ids
def test_awkward_batches_train_and_are_segmented(system, counts):
    model, batch = build(system), tiny_batch(counts)
    batch[0]["width"] = 100  # of the result
    losses = model.train()(batch)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for item, result in zip(batch, model.eval()(batch), strict=True):
        ids, segments = result["panoptic_seg"]
        assert ids.shape == (item["height"], item["width"])
        assert ids.unique().tolist() == sorted({0} & set(ids.unique().tolist()) | {s["id"] for s in segments})


@both
def test_results_depend_on_image_and_seed_only(system):
    model, batch = build(system).eval(), tiny_batch((3, 2, 4))
    together = [result["panoptic_seg"][0] for result in model(batch)]
    alone = [model([item])[0]["panoptic_seg"][0] for item in batch]
    reordered = [result["panoptic_seg"][0] for result in model(batch[::-1])][::-1]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(together, alone, reordered, strict=True))


@pytest.mark.parametrize("order", ID_ORDERS)
def test_each_object_gets_an_id_of_its_own(order):
    model, batch = build("LDMSeg", "MODEL.LDMSEG.ID_ORDER", order), tiny_batch((3, 7, 0))
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    targets = model.targets(batch, torch.Size((64, 64)), generators)
    assert [len(target.present) for target in targets] == [3, 7, 0]
    assert len(set(targets[1].present.tolist()) - {0}) == 7
    for target, item in zip(targets, batch, strict=True):
        visible = item["panoptic_map"].unique()
        assert torch.equal(target.ids > 0, item["panoptic_map"] > 0)
        assert target.ids.unique().numel() == visible.numel()


def test_known_pixels_come_back_unchanged():
    model, (item,) = build().eval(), tiny_batch((3,))
    known = item["panoptic_map"].clone()
    known[32:] = 0
    request = replace(model.request, tasks=("panoptic",), steps=3)
    for step in model.steps([{**item, "known_map": known}], request):
        ids, segments = step.results[0]["panoptic_seg"]
        for number in known.unique().tolist()[1:]:
            (found,) = ids[known == number].unique().tolist()
            assert found in {segment["id"] for segment in segments}
    *_, free = model.steps([item], request)
    *_, nothing = model.steps([{**item, "known_map": torch.zeros_like(known)}], request)
    assert torch.equal(free.results[0]["panoptic_seg"][0], nothing.results[0]["panoptic_seg"][0])
    with pytest.raises(UserError, match="NUM_BITS"):
        list(model.steps([{**item, "known_map": known + 7}], request))


def test_latents_of_what_is_known_are_those_of_a_whole_map():
    model, (item,) = build().eval(), tiny_batch((3,))
    known = torch.zeros_like(item["panoptic_map"])
    known[10:20, 30:50] = 5
    images = model.preprocess([item]).tensor
    given, _ = model.known([{**item, "known_map": known}], images)
    constant = 2 * int_to_bits(torch.full((1, *images.shape[2:]), 5), model.head.mask_autoencoder.num_bits) - 1
    torch.testing.assert_close(given.latents, model.head.encode(constant))
    assert given.mask.any() and not given.mask.all()


def test_latents_of_an_object_at_time_0_are_decoded_as_without_noise():
    model, batch = build().eval(), tiny_batch((3, 0))
    start, end = (model.noisy_targets(batch, t) for t in (0, model.max_time))
    assert [maps.shape for maps in start] == [(3, 64, 64), (0, 64, 64)]
    assert start[0].min() >= 0 and start[0].max() <= 1 and not torch.allclose(start[0], end[0])
    with pytest.raises(UserError, match="DIFFUSION.TIMESTEPS"):
        model.noisy_targets(batch, 1000)


def test_a_model_of_one_class_has_no_classifier():
    model = build("LDMSeg", "MODEL.CLASSES", ["segment"], "MODEL.THINGS", [0])
    assert model.classifier is None and "loss_class" not in model.train()(tiny_batch((2,)))
    result = model.eval()(tiny_batch((2,)))[0]
    assert {s["category_id"] for s in result["panoptic_seg"][1]} <= {0}


def test_parts_that_were_trained_before(tmp_path):
    first = build("MaskAutoencoder")
    torch.save({"model": first.state_dict()}, tmp_path / "stage1.pth")
    model = build("LDMSeg", "MODEL.MASK_AUTOENCODER.WEIGHTS", str(tmp_path / "stage1.pth"))
    model.initialize()
    ours, theirs = (m.state_dict() for m in (model.head.mask_autoencoder, first.mask_autoencoder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = build(
        "LDMSeg",
        "MODEL.MASK_AUTOENCODER.WEIGHTS",
        str(tmp_path / "stage1.pth"),
        "MODEL.MASK_AUTOENCODER.LATENT_CHANNELS",
        5,
    )
    with pytest.raises(UserError, match="MASK_AUTOENCODER.WEIGHTS"):
        other.initialize()


def test_parts_of_stable_diffusion(tmp_path):
    """Folders as diffusers writes them, old names of attention included; the text's attention is left out."""
    ours = ["MODEL.LDMSEG.IMAGE_ENCODER", "stable_diffusion", "MODEL.LDMSEG.IMAGE_WEIGHTS", str(tmp_path)]
    ours += [
        "MODEL.LDMSEG.UNET_WEIGHTS",
        str(tmp_path),
        "MODEL.PIXEL_MEAN",
        [127.5] * 3,
        "MODEL.PIXEL_STD",
        [127.5] * 3,
    ]
    cfg = tiny_cfg("LDMSeg")
    cfg.merge_from_list(ours)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("LDMSeg")(cfg)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)
    node = cfg.MODEL.LDMSEG
    text = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        channels=node.UNET_CHANNELS,
        attention=node.UNET_ATTENTION,
        layers=1,
        heads=2,
        groups=4,
        context_channels=6,
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = {name: torch.rand_like(x) for name, x in model.vae_image.state_dict().items()}
    saved = dict(vae)
    for new, name in old.items():
        for kind in ("weight", "bias"):
            prefix = "encoder.mid_block.attentions.0"
            saved[f"{prefix}.{name}.{kind}"] = saved.pop(f"{prefix}.{new}.{kind}")
    saved["decoder.conv_in.weight"] = torch.zeros(1)
    for folder, weights in (("unet", text.state_dict()), ("vae", saved)):
        (tmp_path / folder).mkdir()
        torch.save(weights, tmp_path / folder / "diffusion_pytorch_model.bin")
    model.initialize()
    assert all(torch.equal(x, vae[name]) for name, x in model.vae_image.state_dict().items())
    unet = model.head.unet.state_dict()
    assert torch.equal(unet["conv_in.weight"][:, :4], text.conv_in.weight) and not unet["conv_in.weight"][:, 4:].any()
    assert torch.equal(unet["mid_block.resnets.0.conv1.weight"], text.mid_block.resnets[0].conv1.weight)
    assert [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(("vae", "head.mask"))] == []


def test_an_annotation_is_needed_to_reconstruct():
    item = {key: x for key, x in tiny_batch((2,))[0].items() if key not in ("panoptic_map", "instances")}
    with pytest.raises(UserError, match="TEST.WITH_TARGETS"):
        build("MaskAutoencoder").eval()([item])


@pytest.mark.parametrize("key", ["IMAGE_ENCODER", "PREDICTION", "ID_ORDER"])
def test_choices_are_checked(key):
    with pytest.raises(UserError, match=f"MODEL.LDMSEG.{key}"):
        build("LDMSeg", f"MODEL.LDMSEG.{key}", "nothing")
