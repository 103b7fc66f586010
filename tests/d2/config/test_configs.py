"""Every config of the repository merges and builds, and says what it should."""

import re
from itertools import product

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch.utils._python_dispatch import TorchDispatchMode

from dformer.d2.config import get_cfg, merge_config
from tests import ROOT

CONFIGS = ROOT / "configs"
ZOO = ROOT / "docs" / "model_zoo.md"
SMALL = ("quick", "own", "coco/ldmseg", "coco/panoptic/vit")  # no part of the model zoo's tables
PARTS = {"base.yaml", "camvid.yaml", "pennfudan.yaml", "stage2.yaml"}
PARTS |= {path.name for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in SMALL}
BACKBONES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("backbones/*/*.yaml"))
PARTS |= {name.rpartition("/")[2] for name in BACKBONES}
MODELS = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if p.name not in PARTS)


def load(name, *opts):
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / name), ["MODEL.DEVICE", "cpu", *opts])
    return cfg


class WithoutValues(TorchDispatchMode):
    """Leave out what only draws weights: on tensors without values it changes nothing, and takes most of the time."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return args[0] if func.overloadpacket in DRAWS else func(*args, **(kwargs or {}))


DRAWS = {
    getattr(torch.ops.aten, name) for name in ("uniform_", "erfinv_", "mul_", "add_", "clamp_", "normal_", "fill_")
}


def on_meta(cfg):
    """Return the model of a cfg, without weights."""
    with torch.device("meta"), WithoutValues():
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def in_model_zoo(name):
    """Million parameters, as docs/model_zoo.md says."""
    dataset, task, file = name.split("/", 2)
    section = ZOO.read_text().partition(f"In `configs/{dataset}/{task}/`")[2]
    return float(re.search(rf"\| `{re.escape(file)}` \|[^|]*\| ([\d.]+) \|", section)[1])


@pytest.mark.parametrize("name", MODELS)
def test_builds_with_the_size_that_the_model_zoo_says(name, monkeypatch, request):
    if name.startswith("own/"):  # their classes are in the data
        monkeypatch.setenv("DETECTRON2_DATASETS", str(request.getfixturevalue("data_dir")))
    model = on_meta(load(name))
    size = millions(model)
    if not name.startswith(SMALL):
        assert in_model_zoo(name) == pytest.approx(size, abs=0.051)
    papers = {"r50": 44, "r101": 63, "swin_large_22k": 216}  # DFormer, Table 1; Mask2Former, Tables 1 and 2
    backbone = name.partition("former_")[2].rpartition("_")[0]
    if "former_" in name and backbone in papers:
        time_embedding = millions(model.head.time_modulation) if "dformer" in name else 0.0
        assert size - time_embedding == pytest.approx(papers[backbone], rel=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKBONES if not name.endswith(("/vit.yaml", "/convnext.yaml"))])
def test_backbones_build(name):
    sizes = {"tiny": 28, "small": 50, "dinov2_small": 22, "dinov3_small": 22, "base": 88, "large": 303}
    stem = name.rpartition("/")[2].removesuffix(".yaml")
    expected = sizes.get(stem, sizes[stem.rpartition("_")[2]])
    with torch.device("meta"):
        backbone = build_backbone(load(name))
    assert millions(backbone.body) == pytest.approx(expected, rel=0.05)


def test_there_are_configs_for_all_tasks_backbones_and_systems():
    backbones = ("r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_base_22k", "swin_large_22k")
    tasks = ("coco/panoptic", "coco/instance", "ade20k/panoptic", "ade20k/instance", "ade20k/semantic")
    wanted = set()
    for task, system, backbone in product(tasks, ("dformer", "mask2former"), backbones):
        schedule = "160k" if task.startswith("ade20k") else "100ep" if "large" in backbone else "50ep"
        wanted.add(f"{task}/{'swin/' if 'swin' in backbone else ''}{system}_{backbone}_{schedule}.yaml")
    names = "r50_5x", "r101_5x", "swin_base_w7_22k_5x", "swin_large_w7_22k_5x"
    wanted |= {f"coco/instance/{'swin/' if 'swin' in name else ''}diffusioninst_{name}.yaml" for name in names}
    wanted.add("lvis/instance/diffusioninst_r50_3x.yaml")
    wanted |= {f"coco/panoptic/pix2seqd_r50_{name}.yaml" for name in ("256", "512", "1024", "tensorflow")}
    wanted.add("cityscapes/panoptic/pix2seqd_r50.yaml")
    assert wanted == {name for name in MODELS if not name.startswith(SMALL)}


@pytest.mark.parametrize(
    "name", [name for name in MODELS if "former_" in name and name.startswith("coco/") and not name.startswith(SMALL)]
)
def test_coco_recipe(name):
    cfg = load(name)
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert images == pytest.approx((100 if "large" in name else 50) * 118000, rel=1e-3)
    assert (200 if "large" in name else 100) == cfg.MODEL.MASK_DECODER.NUM_QUERIES
    assert [step / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS] == pytest.approx([0.9, 0.95], abs=1e-5)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER) == (1e-4, 0.05, 0.1)


@pytest.mark.parametrize("name", [name for name in MODELS if "diffusioninst" in name and not name.startswith(SMALL)])
def test_recipe_of_diffusioninst(name):
    cfg = load(name)
    assert (135_000 if "lvis" in name else 225_000) == cfg.SOLVER.MAX_ITER and cfg.SOLVER.IMS_PER_BATCH == 32
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.BACKBONE_MULTIPLIER) == (1e-4, 1e-4, 1.0)
    assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.TARGET, cfg.DIFFUSION.SIGNAL_SCALE) == ("detr", "boxes", 2.0)
    assert (50 if "lvis" in name else 0) == cfg.MODEL.BOX_CRITERION.FEDERATED_CLASSES


def test_ldmseg_recipe():
    """Van Gansbeke and De Brabandere 2024, Sec. 4.1 and App.: numbers of parameters in millions, images seen."""
    first, second = (load(f"coco/ldmseg/{name}.yaml") for name in ("mask_autoencoder_60k", "ldmseg_sd_200k"))
    assert millions(on_meta(first)) == pytest.approx(2.02, abs=0.005)
    assert millions(on_meta(second).head.unet) == pytest.approx(815.6, abs=0.05)
    assert (first.SOLVER.MAX_ITER, first.SOLVER.IMS_PER_BATCH) == (60000, 16)
    assert (second.SOLVER.MAX_ITER, second.SOLVER.IMS_PER_BATCH) == (200000, 256)
    for cfg in (first, second):
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.TEST.MIN_AREA) == (1e-4, 0.05, 512)


@pytest.mark.parametrize(("name", "epochs"), [("256", 800), ("512", 100), ("1024", 15)])
def test_recipe_of_pix2seqd(name, epochs):
    cfg = load(f"coco/panoptic/pix2seqd_r50_{name}.yaml")
    assert pytest.approx(118287 * epochs, rel=2e-3) == cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert int(name) == cfg.INPUT.IMAGE_SIZE == cfg.INPUT.MAX_SIZE_TEST and cfg.DIFFUSION.MASK_STRIDE == 2
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM == 0.05 and cfg.SOLVER.BACKBONE_MULTIPLIER == 1
    assert millions(on_meta(cfg)) == pytest.approx(94.5, abs=0.1)  # Pix2Seq-D, Table 1
