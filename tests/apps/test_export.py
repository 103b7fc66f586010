"""Exported files compute what PyTorch does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dformer.apps import export
from dformer.apps.export import DYNAMIC, METADATA, TOLERANCE, Exported, Settings
from dformer.utils.errors import UserError
from tests.d2.systems import SYSTEMS, build
from tests.d2.tiny import random_model

SIZE = (64, 96)
EXPORTABLE = [name for name in SYSTEMS if name != "MaskAutoencoder"]
TASKS = {name: "instance" if name == "DiffusionInst" else "panoptic" for name in EXPORTABLE}


def settings(system: str, **options) -> tuple[torch.nn.Module, Settings]:
    """A tiny model, and settings for two sampling steps after which something is found."""
    model = build(system).eval()
    for parameter in model.parameters():  # layers that begin at zero would hide what comes before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    request = replace(model.request, steps=2 if "steps" in model.options else 1)
    request = replace(request, object_threshold=0.05, overlap_threshold=0.05)
    return model, Settings(**{"request": request, "size": SIZE, "batch": 2, **options})


def written(exported: Exported, folder: Path, *formats: str) -> dict[str, Path]:
    """Files of a model; it is captured once."""
    program, files = export.capture(exported), {name: folder / f"model.{name}.pt2" for name in formats}
    with torch.no_grad():
        outputs = list(exported(*exported.example().values()))
    for name, path in files.items():
        export.save(program, exported, path, name, {"outputs": outputs})
    return files


def check(exported: Exported, files: dict[str, Path], **inputs) -> None:
    given = exported.example(seed=1, **inputs)
    with torch.no_grad():
        expected = exported(*given.values())
    for name, path in files.items():
        assert export.difference(export.load(path, name)(given), expected) < TOLERANCE, name


@pytest.mark.parametrize("system", EXPORTABLE)
def test_results_are_those_of_the_model(system):
    """With the noise of a seed as a constant, before anything is captured."""
    model, given = settings(system, task=TASKS[system], seed=5)
    images = (255 * torch.rand(2, 3, *SIZE)).round()
    with torch.no_grad():
        found = Exported(model, given)(images)
    request = replace(given.request, tasks=(given.task,), seed=5)
    *_, last = model.steps([{"image": image} for image in images], request)
    for b, expected in enumerate(last.results):
        scores = found["scores"][b]
        if given.task == "panoptic":
            panoptic_map, segments = expected["panoptic_seg"]
            assert ((panoptic_map > 0) == (found["panoptic_map"][b] > 0)).float().mean() > 0.99
            assert sorted(x["category_id"] for x in segments) == found["classes"][b][scores > 0].sort().values.tolist()
        else:
            objects = expected["instances"]
            filled = found["classes"][b] >= 0
            torch.testing.assert_close(scores[filled], objects.scores)
            assert torch.equal(found["masks"][b][filled], objects.pred_masks)


def test_formats_that_pytorch_has(tmp_path):
    model, given = settings("DFormer", task="panoptic")
    assert Exported(model, given).draws == 2  # the first noise, and that of the step between
    exported = Exported(model, replace(given, request=replace(given.request, steps=1)))
    files = written(exported, tmp_path, "exported_program", "torchscript")
    check(exported, files)
    extra = {METADATA: ""}
    torch.jit.load(files["torchscript"], _extra_files=extra)
    assert json.loads(extra[METADATA])["outputs"] == ["panoptic_map", "classes", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize("system", EXPORTABLE)
def test_every_system(tmp_path, system):
    exported = Exported(*settings(system))
    check(exported, written(exported, tmp_path, "exported_program", "torchscript"))


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in EXPORTABLE if "assignment" not in name])
def test_size_and_batch_may_change(tmp_path, system):
    exported = Exported(*settings(system, task=TASKS[system], dynamic=DYNAMIC))
    check(exported, written(exported, tmp_path, "exported_program"), size=(96, 64), batch=3)


@pytest.mark.slow
@pytest.mark.parametrize("system", EXPORTABLE)
def test_onnx(tmp_path, system):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported = Exported(*settings(system, task=TASKS[system]))
    files = written(exported, tmp_path, "onnx")
    check(exported, files)
    if "DFormer" in system:
        assert export.operators(files["onnx"])["GridSample"] == 3  # of one deformable layer over three levels


@pytest.mark.slow
@pytest.mark.parametrize("system", ["DFormer", "DiffusionInst"])
def test_onnx_of_any_size(tmp_path, system):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported = Exported(*settings(system, dynamic=DYNAMIC))
    check(exported, written(exported, tmp_path, "onnx"), size=(96, 64), batch=3)


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    weights, output = tmp_path / "model.pth", tmp_path / "out" / "model.pt2"
    random_model(weights)
    arguments = ["--weights", str(weights), "--output", str(output), "--format", "exported_program"]
    export.main([*arguments, "--size", "64", "96", "--task", "semantic", "--seed", "3"])
    assert "differs from PyTorch by" in capsys.readouterr().out
    extra = {METADATA: ""}
    program = torch.export.load(output, extra_files=extra)
    images = torch.rand(1, 3, *SIZE)
    assert program.module()(images)["sem_seg"].shape == (1, len(json.loads(extra[METADATA])["classes"]), *SIZE)


@pytest.mark.slow
def test_the_shipped_model_in_all_its_steps(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export.main(["--weights", "dformer://shapes", "--output", str(tmp_path / "model.onnx"), "--size", "128", "128"])
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "options", "file_format", "named"),
    [
        ("LDMSeg", {"task": "semantic"}, "onnx", "--task"),
        ("DFormer", {"size": (64, 90)}, "onnx", "--size"),
        ("DFormer", {"dynamic": ["batch"]}, "torchscript", "--dynamic"),
        ("DFormer", {"dynamic": ["batch"], "seed": 1}, "onnx", "--seed"),
    ],
)
def test_what_cannot_be_exported_is_told(system, options, file_format, named):
    with pytest.raises(UserError, match=named):
        export.check_settings(*settings(system, **options), file_format)


def test_a_system_without_predictions_is_told():
    with pytest.raises(UserError, match="MaskAutoencoder"):
        Exported(*settings("MaskAutoencoder"))
