"""A system that is nothing like queries, defined here alone, does all that the others do."""

import json
import math
import shutil
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import Tensor, nn

import dformer
from dformer.apps.interactive import as_json, load_model, segment
from dformer.d2.config import register_keys
from dformer.d2.data import model_classes
from dformer.d2.modeling.meta_arch import Output, Request, Segmenter
from dformer.d2.modeling.meta_arch.build import segmenter_settings
from dformer.diffusion.sampler import sample
from dformer.diffusion.schedule import add_noise
from tests import load_script
from tests.d2.tiny import own_loggers, small_shapes

# The system: from here to "End of the system".


@register_keys
def add_keys(cfg: CfgNode) -> None:
    cfg.MODEL.LABEL_MAP_WIDTH = 16


def alpha_bar(t: Tensor) -> Tensor:
    return (t.double() * math.pi / 2).cos() ** 2


def draw(generators: list[torch.Generator], *shape: int) -> Tensor:
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])


class LabelMap(Output):
    def __init__(self, logits: Tensor, x_t: Tensor) -> None:
        self.logits, self.x_t = logits, x_t  # (K, h, w): of the classes, and the noisy one-hot map

    @property
    def noisy(self) -> Tensor:
        return (self.x_t.clamp(-1, 1) + 1) / 2

    def result(self, view):
        scores = view.resize(self.logits.softmax(0), "bilinear")
        labels = scores.argmax(0)
        found = {k: labels == k for k in labels.unique().tolist()}
        segments = [{"id": k + 1, "category_id": k, "isthing": False, "area": int(m.sum())} for k, m in found.items()]
        return {"sem_seg": scores, "panoptic_seg": (labels.int() + 1, segments)}


@META_ARCH_REGISTRY.register()
class LabelMapDenoiser(Segmenter):
    """Denoise a one-hot map of classes at a quarter of the image's size; continuous times from 0 to 1."""

    tasks = ("panoptic", "semantic")
    options = {"steps": (1, 100), "seed": (0, 2**31 - 1)}
    max_time = 1.0

    @configurable
    def __init__(self, *, num_classes: int, width: int, **settings) -> None:
        super().__init__(**settings)
        self.num_classes = num_classes
        first, second = nn.Conv2d(4 + num_classes, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(width, num_classes, 3, padding=1))

    @classmethod
    def from_config(cls, cfg: CfgNode):
        classes, _ = model_classes(cfg)
        return {**segmenter_settings(cfg), "num_classes": len(classes), "width": cfg.MODEL.LABEL_MAP_WIDTH}

    def denoise(self, images: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        small = F.avg_pool2d(images, 4)  # (B, 3, h, w)
        time = t.to(small.dtype).view(-1, 1, 1, 1).expand(-1, 1, *small.shape[-2:])
        return self.net(torch.cat([small, x_t.to(small.dtype), time], dim=1)).float()  # (B, K, h, w)

    def compute_losses(self, images: Tensor, batch, generators) -> dict[str, Tensor]:
        maps = [F.pad(item["instances"].gt_classes, (1, 0), value=-1)[item["panoptic_map"]] for item in batch]
        labels = torch.stack(maps)[:, ::4, ::4].to(self.device)  # images of one size; -1: void
        x0 = 2.0 * F.one_hot(labels.clamp(min=0), self.num_classes).movedim(3, 1) - 1
        t = torch.stack([torch.rand((), generator=g, device=g.device) for g in generators])
        logits = self.denoise(images, add_noise(x0, draw(generators, *x0.shape[1:]), alpha_bar(t)), t)
        return {"loss_label": F.cross_entropy(logits, labels, ignore_index=-1)}

    def sample(self, images: Tensor, batch, generators, request: Request) -> Iterator[tuple[float, list[Output]]]:
        def denoise(x_t: Tensor, t: Tensor, _) -> tuple[Tensor, Tensor]:
            logits = self.denoise(images, x_t, t)
            return 2 * logits.softmax(1) - 1, logits

        shape = (self.num_classes, images.shape[2] // 4, images.shape[3] // 4)
        times = [(1 - k / request.steps, 1 - (k + 1) / request.steps) for k in range(request.steps)]
        for step in sample(denoise, lambda: draw(generators, *shape), times, alpha_bar):
            yield step.t, [LabelMap(*pair) for pair in zip(step.output, step.x_t, strict=True)]

    def noisy_targets(self, batch, t: float) -> list[Tensor]:
        a, masks = alpha_bar(torch.tensor(t)), [2.0 * item["instances"].gt_masks[:, ::4, ::4] - 1 for item in batch]
        noise = [draw([torch.Generator().manual_seed(0)], *x.shape)[0] for x in masks]
        return [(add_noise(*pair, a).clamp(-1, 1) + 1) / 2 for pair in zip(masks, noise, strict=True)]


# End of the system.


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sixth")
    small_shapes(folder, "sixth", train=8, val=3)
    keys = {
        "VERSION": 2,
        "MODEL": {"META_ARCHITECTURE": "LabelMapDenoiser", "DEVICE": "cpu"},
        "DATASETS": {"TRAIN": ["sixth_train"], "TEST": ["sixth_val"]},
        "INPUT": {"TARGET": "panoptic_map", "AUGMENTATION": "resize", "MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "CHECKPOINT_PERIOD": 2, "BASE_LR": 0.001},
        "TEST": {"TASKS": ["panoptic", "semantic"]},
        "DIFFUSION": {"SAMPLING_STEPS": 3},
        "DETERMINISTIC": True,
        "VIS_PERIOD": 4,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    return str(folder / "config.yaml")


def call(monkeypatch, script: str, *arguments: str) -> int:
    """Run a tool as from the command line, in this process, where the system is registered."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with own_loggers():
        try:
            load_script(script).main()
        except SystemExit as end:
            return end.code or 0
    return 0


def test_a_sixth_system_does_all_that_the_others_do(monkeypatch, config, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    train = ["tools/train_net.py", "--config-file", config, "SEED", "1"]
    assert call(monkeypatch, *train, "OUTPUT_DIR", str(run)) == 0
    results = json.loads((run / "results.json").read_text())
    assert 0 <= results["PQ"] <= 100 and 0 <= results["mIoU"] <= 100 and "AP" not in results
    assert b"annotated" in next(run.glob("events.out.tfevents.*")).read_bytes()

    # resumed from its first half
    shutil.copytree(run, again)
    (again / "model_final.pth").unlink()
    (again / "last_checkpoint").write_text("model_0000001.pth")
    assert call(monkeypatch, train[0], "--resume", *train[1:], "OUTPUT_DIR", str(again)) == 0
    whole, resumed = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (run, again))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    weights, image = str(run / "model_final.pth"), np.zeros((48, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    evaluated = ["--eval-only", *train[1:], "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "eval")]
    assert call(monkeypatch, train[0], *evaluated) == 0
    assert json.loads((tmp_path / "eval/results.json").read_text())["PQ"] == pytest.approx(results["PQ"])

    # the Python API, the demo, the page, the figures
    (result,) = dformer.load(weights).predict([image])
    assert result["sem_seg"].shape == (7, 48, 80) and result["panoptic_seg"][0].shape == (48, 80)
    demo = ["--weights", weights, "--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "demo")]
    assert call(monkeypatch, "tools/demo.py", *demo, "--steps", "2") == 0
    assert json.loads((tmp_path / "demo/segments.json").read_text())["images"][0]["segments"]
    predictor = load_model(weights)
    request = Request(("semantic",), steps=4, seed=2)
    answer = segment(predictor, image, request, seconds=600)
    assert [stage.t for stage in answer] == [1.0, 0.75, 0.5, 0.25] and answer[-1].segments
    assert json.loads(as_json(answer[-1], vars(request)))["segments"]
    figures = [str(tmp_path / "steps.png"), str(tmp_path / "steps.gif")]
    data = ["--weights", weights, "--dataset", "sixth_val"]
    assert call(monkeypatch, "tools/visualize_diffusion.py", *data, "--output", *figures) == 0
    assert Image.open(figures[1]).n_frames == 3
    noise = ["--times", "0", "0.5", "1", "--output", str(tmp_path / "noise.png")]
    assert call(monkeypatch, "tools/visualize_diffusion.py", *data, *noise) == 0
    assert Image.open(tmp_path / "noise.png").width > 3 * 480 / 2
