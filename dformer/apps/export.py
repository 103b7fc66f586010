"""Export a trained model to a file that runs without this package: ONNX, a torch.export program, or TorchScript.

dformer export --weights model.pth --output model.onnx
dformer export --weights model.pth --output model.onnx --task panoptic --steps 4 --dynamic size batch
dformer export --weights model.pth --output model.pt2 --format exported_program --size 512 512
"""

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dformer.apps.commands.arguments import command_parser
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import Request, Segmenter
from dformer.ops import reference
from dformer.postprocess import TASKS
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error

FORMATS = ("onnx", "exported_program", "torchscript")
OPSET = 18  # GridSample needs 16
DYNAMIC = ("size", "batch")
METADATA = "dformer.json"  # in an exported program and in TorchScript; in ONNX the key "dformer"
NUM_INPUTS = 5  # with which a file is compared with PyTorch
TOLERANCE = 1e-3
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Hold what is exported.

    Attributes:
        request: steps, proposals, thresholds.
        task: whose results are computed; None: what the model predicts, without post-processing.
        size: height and width of the images; with a dynamic size, those of the example.
        batch: number of images; with a dynamic batch, that of the example.
        dynamic: what may change: "size", "batch".
        seed: of the noise, if it is a constant of the file; None: the noise is an input.
        is_bgr: whether the model was trained with BGR images; the file takes RGB.
    """

    request: Request
    task: str | None = None
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    dynamic: Sequence[str] = ()
    seed: int | None = None
    is_bgr: bool = False


class Exported(nn.Module):
    """Compute what is exported, by name, from images (B, 3, H, W), RGB, 0..255 float32, and noise (D, B, ...).

    `draws` is D, how often noise is drawn: 0 where there is none to give.
    """

    noise: Tensor | None

    def __init__(self, model: Segmenter, settings: Settings) -> None:
        super().__init__()
        self.model, self.settings = model.eval().requires_grad_(False), settings
        self.draws = 0
        images = torch.zeros(settings.batch, 3, *settings.size, device=model.device)
        generators = [rng.generator(model.device, settings.seed or 0) for _ in images]
        shape, drawn = model.noise_shape(settings.size, settings.request), []

        def draw_noise() -> Tensor:
            drawn.append(rng.normal(generators, shape))
            return drawn[-1]

        with torch.no_grad():
            model.predictions(images, draw_noise, settings.request)
        is_input = settings.seed is None and drawn
        self.draws = len(drawn) if is_input else 0
        self.register_buffer("noise", None if is_input or not drawn else torch.stack(drawn))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensors:
        """Return predictions or results."""
        canvas = images.shape[2], images.shape[3]
        images = images.flip(1) if self.settings.is_bgr else images
        images = (images - self.model.pixel_mean) / self.model.pixel_std
        given = self.noise if noise is None else noise
        draws = iter(() if given is None else given.unbind(0))
        predictions = self.model.predictions(images, lambda: next(draws), self.settings.request)
        if self.settings.task is None:
            return predictions
        return self.model.dense_results(predictions, canvas, self.settings.task, self.settings.request)

    def example(self, seed: int = 0, batch: int | None = None, size: tuple[int, int] | None = None) -> Tensors:
        """Return random inputs by name: smooth images, since of noise in all pixels no model is sure."""
        batch, size = batch or self.settings.batch, size or self.settings.size
        device = self.model.device
        generator = rng.generator(device, seed)
        colors = 255 * torch.rand(batch, 3, 8, 8, generator=generator, device=device)
        inputs = {"images": F.interpolate(colors, size, mode="bilinear")}
        if self.draws:
            shape = self.draws, batch, *self.model.noise_shape(size, self.settings.request)
            inputs["noise"] = torch.randn(shape, generator=generator, device=device)
        return inputs

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Return which dimensions of the inputs may change: sides in steps of the size divisibility."""
        step, dynamic = self.model.size_divisibility, self.settings.dynamic
        batch = {"batch": Dim("batch", min=1)} if "batch" in dynamic else {}
        sides = {name: step * Dim(name, min=1, max=2**14 // step) for name in ("rows", "columns") if "size" in dynamic}
        images = {0: batch.get("batch"), 2: sides.get("rows"), 3: sides.get("columns")}
        shapes = [{index: value for index, value in images.items() if value is not None}]
        if self.draws:
            noise_is_map = len(self.model.noise_shape(self.settings.size, self.settings.request)) == 3
            shapes.append({1: batch["batch"]} if batch else {})
            shapes[1] |= {3: Dim.AUTO, 4: Dim.AUTO} if sides and noise_is_map else {}
        return tuple(shapes) if dynamic else None


def check_settings(model: Segmenter, settings: Settings, file_format: str) -> None:
    """Check that a model can be exported so, and raise a `UserError` if not."""
    model.check(settings.request)
    if settings.task is not None and settings.task not in model.dense_tasks:
        choices = ", ".join(model.dense_tasks) or "none"
        raise UserError(f"--task {settings.task}: of {type(model).__name__} these can be exported: {choices}")
    if any(side % model.size_divisibility or side < 1 for side in settings.size):
        raise UserError(f"--size {settings.size}: sides must be multiples of {model.size_divisibility}")
    if file_format == "torchscript" and settings.dynamic:
        raise UserError("--dynamic: TorchScript files have fixed sizes; choose --format onnx or exported_program")
    if settings.seed is not None and settings.dynamic:
        raise UserError("--seed: noise that is a constant has one size; leave out --dynamic, or --seed")


def _equal_bags(
    weight: Tensor,
    index: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    """Compute `embedding_bag`'s weighted sums by a gather, for bags of one size, as `layers.roi_align` has them."""
    sums = (weight[index] * per_sample_weights[:, None]).unflatten(0, (offsets.shape[0], -1)).sum(1)
    return sums, offsets, offsets, offsets


# Operators that other runtimes lack.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.dformer.ms_deform_attn.default: reference.ms_deform_attn,
    torch.ops.aten.embedding_bag.padding_idx: _equal_bags,
    torch.ops.aten.__lshift__.Tensor: lambda x, places: x * 2**places,
    torch.ops.aten.__rshift__.Tensor: lambda x, places: x // 2**places,
}


def capture(exported: Exported) -> ExportedProgram:
    """Return the program of a model, in operators that other runtimes have: see `DECOMPOSITIONS`."""
    inputs = tuple(exported.example().values())
    with torch.no_grad():
        program = torch.export.export(exported, inputs, dynamic_shapes=exported.dynamic_shapes(), strict=False)
    return program.run_decompositions(DECOMPOSITIONS)


def save(
    program: ExportedProgram, exported: Exported, path: Path, file_format: str, metadata: Mapping[str, Any]
) -> None:
    """Write a captured program in a format."""
    inputs, text = exported.example(), json.dumps(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    match file_format:
        case "exported_program":
            torch.export.save(program, path, extra_files={METADATA: text})
        case "torchscript":
            traced = torch.jit.trace(program.module(), tuple(inputs.values()), strict=False)
            torch.jit.save(traced, str(path), _extra_files={METADATA: text})
        case _:
            if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
                raise UserError("--format onnx needs onnx and onnxscript: pip install 'dformer[export]'")
            names = {"input_names": list(inputs), "output_names": metadata["outputs"]}
            onnx = torch.onnx.export(program, tuple(inputs.values()), dynamo=True, opset_version=OPSET, **names)
            assert onnx is not None
            onnx.model.metadata_props["dformer"] = text
            onnx.save(path)


def load(path: Path, file_format: str) -> Callable[[Tensors], Tensors]:
    """Return an exported file as a function of inputs by name; ONNX runs in ONNX Runtime on the CPU."""
    match file_format:
        case "exported_program":
            module = torch.export.load(path).module()
            return lambda inputs: module(*inputs.values())
        case "torchscript":
            module = torch.jit.load(str(path))
            return lambda inputs: module(*inputs.values())
        case _:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]

            def call(inputs: Tensors) -> Tensors:
                outputs = session.run(None, {name: x.cpu().numpy() for name, x in inputs.items()})
                return {name: torch.from_numpy(x) for name, x in zip(names, outputs, strict=True)}

            return call


def difference(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference of two sets of outputs: of floats relative to max(1, |expected|).

    Of integers and masks it is the share of numbers that differ.
    """
    worst = 0.0
    for name, x in expected.items():
        y = found[name].to(x.device)
        if x.shape != y.shape:
            return float("inf")
        if x.is_floating_point():
            worst = max(worst, ((y - x).abs() / x.abs().clamp(min=1)).max().item())
        else:
            worst = max(worst, (y != x).double().mean().item())
    return worst


def operators(path: Path) -> Counter[str]:
    """Return how often each operator is used in an ONNX file, functions that the file defines taken apart."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    functions = {function.name: function.node for function in model.functions}
    counts: Counter[str] = Counter()

    def count(nodes: Any) -> None:
        for node in nodes:
            if node.op_type in functions:
                count(functions[node.op_type])
            else:
                counts[node.op_type] += 1
            for attribute in node.attribute:
                count(attribute.g.node)

    count(model.graph.node)
    return counts


def export(predictor: Predictor, path: Path, file_format: str, settings: Settings) -> list[float]:
    """Export a model, run the file with `NUM_INPUTS` new inputs, and return its `difference` to PyTorch with each."""
    model = predictor.model
    check_settings(model, settings, file_format)
    exported = Exported(model, settings)
    with torch.no_grad():
        outputs = exported(*exported.example().values())
    metadata = {
        "classes": predictor.class_names,
        "things": sorted(predictor.things),
        "size_divisibility": model.size_divisibility,
        "task": settings.task,
        "steps": settings.request.steps,
        "draws": exported.draws,
        "outputs": list(outputs),
    }
    save(capture(exported), exported, path, file_format, metadata)
    run, inputs = load(path, file_format), [exported.example(seed) for seed in range(1, NUM_INPUTS + 1)]
    with torch.no_grad():
        return [difference(run(x), exported(*x.values())) for x in inputs]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of ours or of a published model (MODEL.WEIGHTS)")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model; default: the one of the checkpoint")
    parser.add_argument("--output", metavar="FILE", required=True, help="the file: .onnx, .pt2 or .pt")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--task", choices=TASKS, help="compute the results of a task; default: predictions alone")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(512, 512), help="default: 512 512")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (%(default)s)")
    parser.add_argument("--dynamic", nargs="+", choices=DYNAMIC, default=[], help="what may change from call to call")
    parser.add_argument("--steps", type=int, metavar="K", help="sampling steps (DIFFUSION.SAMPLING_STEPS)")
    parser.add_argument("--proposals", type=int, metavar="N", help="masks or boxes; default: as many as in training")
    parser.add_argument("--seed", type=int, metavar="S", help="make noise of this seed a constant; default: an input")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Export a model as the command line says."""
    args = parse_arguments(argv)
    cfg = inference_config(args.weights, args.config_file, args.opts, args.steps)
    predictor = Predictor(cfg)
    request = replace(predictor.model.request, proposals=args.proposals or predictor.model.request.proposals)
    if args.task:
        request = replace(request, tasks=(args.task,))
    is_bgr = cfg.INPUT.FORMAT == "BGR"
    settings = Settings(request, args.task, tuple(args.size), args.batch, tuple(args.dynamic), args.seed, is_bgr)
    path = Path(args.output)
    try:
        found = export(predictor, path, args.format, settings)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise UserError(f"{path} is written but was not run: pip install 'dformer[export]' for ONNX Runtime") from error
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, differs from PyTorch by {min(found):.1e} to {max(found):.1e}")
    if args.format == "onnx":
        print("operators: " + ", ".join(f"{name} {count}" for name, count in sorted(operators(path).items())))
    # A wrong translation shows with any input. Between steps, where a score is at a threshold, rounding decides.
    if (max if request.steps == 1 else min)(found) > TOLERANCE:
        print(f"warning: that is more than {TOLERANCE}", file=sys.stderr)
        sys.exit(1)
    if max(found) > TOLERANCE:
        print("note: between steps, rounding may decide; docs/reference/export.md says when", file=sys.stderr)
