"""What Pix2Seq-D promises beside what all systems do: oracle, cost, copies, past maps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from dformer.d2.modeling.meta_arch.pix2seqd import LabelMapOutput
from dformer.postprocess.view import View
from dformer.utils.errors import UserError
from dformer.weights.loading import fit_weights
from tests.d2.systems import build, pix2seqd_cfg
from tests.d2.tiny import tiny_batch


def model_with(**keys):
    cfg = pix2seqd_cfg()
    cfg.merge_from_list([x for key, value in keys.items() for x in (key.replace("__", "."), value)])
    torch.manual_seed(0)
    return build_model(cfg)


def oracle(model, item):
    """The output of a model that knows the ground truth."""
    _, _, grid, _ = model.draw(item, torch.Generator(), item["image"].shape[1:])
    x0, sizes = model.head.to_signal(grid), [2**bits for bits in model.head.diffusion.bits]
    logits = [20.0 * F.one_hot(x, size).movedim(2, 0) for x, size in zip(grid, sizes, strict=True)]
    return LabelMapOutput(model, model.request, x0, x0, torch.cat(logits))


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize(("stride", "shift", "lowest"), [(1, 1, 1.0), (2, 0, 0.98), (2, 1, 0.75)])
def test_the_truth_as_bits_and_back(upsampling, stride, shift, lowest):
    """Exact at the maps' size; at half of it, objects 12 pixels wide lose what does not fit the grid."""
    model = model_with(MODEL__PIX2SEQD__UPSAMPLING=upsampling, DIFFUSION__MASK_STRIDE=stride)
    item = tiny_batch((3,))[0]
    panoptic_map = torch.zeros(64, 64, dtype=torch.int64)
    for number, left in enumerate((4, 16, 40), start=1):  # the first two touch
        panoptic_map[10 + shift : 30 + shift, left + shift : left + shift + 12] = number
    item |= {"panoptic_map": panoptic_map}
    output = oracle(model, item)
    panoptic, segments = output.result(View((64, 64), (64, 64), (64, 64)))["panoptic_seg"]
    assert len(segments) == 3
    for number, category in enumerate(item["instances"].gt_classes.tolist(), start=1):
        truth = panoptic_map == number
        found = max((panoptic == s["id"] for s in segments), key=lambda mask: (mask & truth).sum())
        assert (found & truth).sum() / (found | truth).sum() >= lowest
        assert segments[panoptic[truth].mode().values - 1]["category_id"] == category


def test_all_results_agree():
    model = build("Pix2SeqD")
    result = oracle(model, tiny_batch((4,))[0]).result(View((64, 64), (64, 64), (50, 70)))
    panoptic, segments = result["panoptic_seg"]
    things = [s for s in segments if s["isthing"]]
    instances = result["instances"]
    assert panoptic.shape == (50, 70) and result["sem_seg"].shape == (7, 50, 70)
    assert instances.pred_classes.tolist() == [s["category_id"] for s in things]
    assert [int(mask.sum()) for mask in instances.pred_masks] == [s["area"] for s in things]
    for segment in segments:
        assert (result["sem_seg"].argmax(0)[panoptic == segment["id"]] == segment["category_id"]).all()
        assert segment["score"] > 0.9


@pytest.mark.parametrize("steps", [1, 4])
def test_the_image_is_encoded_once_whatever_the_steps(steps):
    model = build("Pix2SeqD").eval()
    calls = dict.fromkeys(("backbone", "head.encoder", "head.fuse", "head.decoder"), 0)
    for name in calls:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    *_, last = model.steps(tiny_batch((1, 2)), replace(model.request, steps=steps))
    assert list(calls.values()) == [1, 1, 1, steps] and len(last.results) == 2


def test_noisy_copies_share_the_encoded_image():
    """Each has a time and noise of its own, and the loss is the mean of what each gives alone."""
    batch, seen = tiny_batch((2, 3)), []
    model = model_with(MODEL__PIX2SEQD__NOISY_COPIES=3).eval()
    torch.nn.init.normal_(model.head.decoder.conv_out.weight)
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.head.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[:2]))
    assert model.losses(batch)["loss_bits"].isfinite()
    images, (noisy, alpha_bar) = seen
    assert len(images) == 2 and len(noisy) == 6 and len(alpha_bar.unique()) == 6

    memory = model.encode(images)
    labels = torch.stack([model.draw(item, torch.Generator(), images.shape[-2:])[2] for item in batch])
    noise = torch.randn(6, 7, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, 6)
    together = model.head.loss(memory.repeat(3), labels.repeat_interleave(3, dim=0), t, noise)
    alone = [model.head.loss(memory, labels, t[i::3], noise[i::3]) for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["softmax", "sigmoid", "x0", "eps"])
def test_each_prediction_trains_and_infers(prediction):
    model = model_with(MODEL__PIX2SEQD__PREDICTION=prediction)
    loss = model.train()(tiny_batch((2,)))["loss_bits"]
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in model.head.decoder.parameters())
    *_, last = model.eval().steps(tiny_batch((1,)))
    assert set(last.results[0]) == {"panoptic_seg", "instances", "sem_seg"}
    scores = last.results[0]["sem_seg"]
    assert scores.shape == (7, 64, 64) and scores.min() >= 0 and scores.sum(0).max() <= 1.001


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PIX2SEQD.CLASS_BITS", 2),  # 7 classes and none
        ("MODEL.PIX2SEQD.ID_BITS", 3),
        ("MODEL.PIX2SEQD.PREDICTION", "noise"),
        ("MODEL.PIX2SEQD.ID_ORDER", "sorted"),
        ("MODEL.PIX2SEQD.UPSAMPLING", "cubic"),
        ("DIFFUSION.SCHEDULE", "cosinus"),
        ("MODEL.SIZE_DIVISIBILITY", 6),
        ("INPUT.TARGET", "masks"),
    ],
)
def test_what_does_not_fit_is_named(key, value):
    with pytest.raises(UserError, match=key):
        model_with(**{key.replace(".", "__"): value})


def test_noisy_targets_are_the_objects_under_noise():
    model, item = build("Pix2SeqD"), tiny_batch((3,))[0]
    clean, halfway, noise = (model.noisy_targets([item], t)[0] for t in (0.0, 0.5, 1.0))
    assert clean.shape == halfway.shape == noise.shape == (3, 32, 32)
    objects = item["panoptic_map"][1::2, 1::2]
    for k in range(3):
        inside = objects == k + 1
        assert (clean[k][inside] > 0.99).all() and (clean[k][~inside] < 0.99).all()
        assert halfway[k][inside].mean() > halfway[k][~inside].mean() + 0.01
        assert abs(noise[k][inside].mean() - noise[k][~inside].mean()) < 0.1
    assert torch.equal(model.noisy_targets([item], 0.5)[0], halfway)
    with pytest.raises(UserError, match="0 to 1"):
        model.noisy_targets([item], 2.0)


# Videos


def video_model(**keys):
    return model_with(MODEL__PIX2SEQD__PAST_MAPS=2, **keys).eval()


def test_an_image_checkpoint_widens_to_a_video_one():
    """With zeros for what is new: whatever the past maps, the model is the image model."""
    image, video = build("Pix2SeqD").eval(), video_model()
    torch.nn.init.normal_(image.head.decoder.conv_out.weight)
    fit = fit_weights(video.state_dict(), {"model": image.state_dict()})
    assert list(fit.resized) == ["head.decoder.conv_in.weight"] and not fit.missing and not fit.mismatched
    video.load_state_dict(fit.loaded)
    batch = tiny_batch((2,))
    expected = image(batch)[0]["sem_seg"]
    past = torch.randint(5, (2, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    for item in (batch[0], {**batch[0], "past_labels": past}):
        torch.testing.assert_close(video([item])[0]["sem_seg"], expected, rtol=0, atol=1e-5)


def test_past_maps_have_the_ids_of_the_frame():
    item = tiny_batch((3,))[0]
    item["past_maps"] = torch.stack([item["panoptic_map"].roll(-4, 0), item["panoptic_map"]])
    _, _, labels, past = video_model(MODEL__PIX2SEQD__PAST_DROPOUT=0.0).draw(
        item, torch.Generator(), item["image"].shape[1:]
    )
    assert past.shape == (2, 2, 32, 32) and torch.equal(past[1], labels)
    assert torch.equal(past[0][:, :30], labels[:, 2:])


def test_past_maps_are_dropped_one_by_one():
    item = tiny_batch((3,))[0]
    item["past_maps"] = item["panoptic_map"].expand(2, -1, -1)
    model = video_model(MODEL__PIX2SEQD__PAST_DROPOUT=0.5)
    past = [model.draw(item, torch.Generator().manual_seed(i), item["image"].shape[1:])[3] for i in range(40)]
    dropped = torch.stack([(x == 0).all((1, 2, 3)) for x in past])  # (40, 2)
    assert len(dropped.int().unique(dim=0)) == 4 and 0.25 < dropped.float().mean() < 0.75
    model.past_dropout = 1.0
    del item["past_maps"]
    assert not model.draw(item, torch.Generator(), item["image"].shape[1:])[3].any()


def test_the_past_says_the_ids_that_else_the_grid_gives():
    model, item = video_model(MODEL__PIX2SEQD__PAST_DROPOUT=0.0, MODEL__PIX2SEQD__ID_ORDER="grid"), tiny_batch((4,))[0]

    def drawn_ids():
        drawn = [model.draw(item, torch.Generator().manual_seed(i), item["image"].shape[1:])[2][1] for i in range(4)]
        return {tuple(x.flatten().tolist()) for x in drawn}

    assert len(drawn_ids()) == 1
    item["past_maps"] = item["panoptic_map"].expand(2, -1, -1)
    assert len(drawn_ids()) == 4
