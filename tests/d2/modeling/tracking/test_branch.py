"""A tracking branch on clips: trained, resumed, evaluated with its embeddings, without hidden waits on a GPU."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2.data import build_train_loader, register_declarations
from dformer.d2.engine.run import run
from dformer.d2.modeling.tracking import build_tracker
from dformer.utils.errors import UserError
from tests.d2.tiny import own_loggers, tiny_batch, tiny_cfg
from tests.data import clips
from tests.fake_cuda import fake_cuda

BRANCH = ["MODEL.TRACKING_BRANCH.EMBED_DIM", 16]


def model_with_branch(*opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(opts=[*BRANCH, *opts]))


@pytest.fixture
def cfg(tmp_path, empty_catalogs):
    register_declarations({"clips": clips.write(tmp_path, "youtube_vis")}, tmp_path)
    keys = {"DATASETS.TRAIN": ("clips",), "DATASETS.TEST": ("clips",), "INPUT.TASK": "instance"}
    keys |= {"INPUT.AUGMENTATION": "resize", "INPUT.MIN_SIZE_TRAIN": (32,), "INPUT.MIN_SIZE_TEST": 32}
    keys |= {"INPUT.SAMPLING_FRAME_NUM": 2, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 4, "SOLVER.BASE_LR": 0.001}
    keys |= {"TEST.TASKS": ("instance",), "TEST.TRACKER": "queries", "TEST.OBJECT_THRESHOLD": 0.0}
    keys |= {"SOLVER.CHECKPOINT_PERIOD": 2, "DETERMINISTIC": True, "OUTPUT_DIR": str(tmp_path / "whole")}
    yield tiny_cfg(opts=[*BRANCH, *(x for pair in keys.items() for x in pair)])
    torch.use_deterministic_algorithms(False)


def test_a_training_step_waits_for_the_matching_at_most():
    """With denoising assignment, where each frame is decoded twice."""
    batch = tiny_batch((2, 0, 2))
    for item in batch:
        item |= {"video_id": "a"}
        item["instances"].gt_tracks = torch.arange(len(item["instances"])) + 1
    with fake_cuda() as gpu:
        model = gpu.move(model_with_branch("DIFFUSION.ASSIGNMENT", "denoising")).train()
        losses = model(batch)
        sum(losses.values()).backward()
        assert {p.grad.device.type for p in model.tracking.parameters()} == {"cuda"}
    assert {"loss_track", "loss_track_aux"} <= losses.keys()
    assert len(gpu.waits) <= 1, gpu.waits


def test_it_learns_to_tell_objects_apart(cfg):
    torch.manual_seed(0)
    model, batch = build_model(cfg).train(), next(iter(build_train_loader(cfg)))
    assert [item["video_id"] for item in batch][::2] == [item["video_id"] for item in batch][1::2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    seen = []
    for _ in range(30):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        seen.append((losses["loss_track"] + losses["loss_track_aux"]).item())
    assert sum(seen[-5:]) < 0.5 * sum(seen[:5])


def test_images_and_stuff_have_no_tracks_and_train_along():
    batch = tiny_batch((2, 1))
    batch[0]["video_id"], batch[0]["instances"].gt_tracks = "a", torch.zeros(2, dtype=torch.int64)
    model = model_with_branch().train()
    losses = model(batch)
    assert losses["loss_track"] == losses["loss_track_aux"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.tracking.parameters())


def test_trained_resumed_and_evaluated(cfg, tmp_path):
    pytest.importorskip("trackeval")
    with own_loggers():
        run(cfg)
        shutil.copytree(cfg.OUTPUT_DIR, tmp_path / "again")
        (tmp_path / "again/model_final.pth").unlink()
        (tmp_path / "again/last_checkpoint").write_text("model_0000001.pth")
        cfg.OUTPUT_DIR, whole = str(tmp_path / "again"), cfg.OUTPUT_DIR
        run(cfg, resume=True)
    first, other = (torch.load(f"{d}/model_final.pth", weights_only=True)["model"] for d in (whole, cfg.OUTPUT_DIR))
    assert any(name.startswith("tracking.") for name in first) and all(torch.equal(first[n], other[n]) for n in first)
    assert {"HOTA", "IDF1"} <= json.loads(Path(whole, "results.json").read_text()).keys()


def test_objects_are_known_by_their_embeddings():
    """A model's branch that says the opposite of what it has said before knows none of the objects."""
    model = model_with_branch().eval()
    request = replace(model.request, tasks=("instance",), object_threshold=0.0)
    tracker, batch = build_tracker("queries", model, request), tiny_batch((0,))
    (first, again), state = tracker(batch * 2)
    ids = first["instances"].track_ids
    assert len(ids) == len(ids.unique()) > 1 and torch.equal(ids, again["instances"].track_ids)
    last = model.tracking.track_embed[-1]
    last.weight.data.neg_(), last.bias.data.neg_()
    (result,), _ = tracker(batch, state)
    assert not set(result["instances"].track_ids.tolist()) & set(ids.tolist())


def test_clips_must_be_whole(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH"):
        build_train_loader(cfg)
    cfg.INPUT.TARGET = "panoptic_map"
    with pytest.raises(UserError, match="MODEL.TRACKING_BRANCH"):
        build_model(cfg)
