#!/usr/bin/env python3
"""Measure Pix2Seq-D's encoder and decoder, and inference by steps, pixels and bits: an image is encoded once.

python benchmarks/pix2seqd.py --sizes 256 512 --steps 1 5 20 --json benchmarks/results/pix2seqd/steps.json
python benchmarks/pix2seqd.py --dtype bfloat16 --compile --sizes 1024

`bound_ms` is the time of the encoder and `steps` times that of the decoder; on a CPU, times are those of all threads
together. The model is that of COCO's config, with random weights; --opts are KEY VALUE of it.
"""

from functools import partial

import torch
from detectron2.modeling import build_model
from measure import count_flops, cpu_milliseconds, environment, medians, milliseconds, parser, peak_memory, report
from torch import Tensor

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.modeling.meta_arch import Pix2SeqD
from dformer.diffusion.sampler import last_step
from dformer.utils import rng
from dformer.utils.errors import exit_on_user_error

CONFIG = "configs/coco/panoptic/pix2seqd_r50_256.yaml"


def build(device: str, bits: int, compiled: bool, opts: list[str]) -> Pix2SeqD:
    """Build the model with `bits` bits of a class and as many of an id."""
    cfg = get_cfg()
    sizes = ["MODEL.PIX2SEQD.CLASS_BITS", "8", "MODEL.PIX2SEQD.ID_BITS", str(bits)]
    sizes += ["MODEL.PIX2SEQD.NUM_IDS", str(min(101, 2**bits))]
    merge_config(cfg, CONFIG, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, *sizes, *opts])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if compiled:
        model.head.decoder.compile(dynamic=False)
    return model


def measure(model: Pix2SeqD, size: int, steps: list[int], rounds: int) -> list[dict[str, float | int]]:
    """Return a row for each number of steps, for one image of `size` x `size`."""
    generator = torch.Generator(model.device).manual_seed(0)
    images = torch.rand(1, 3, size, size, generator=generator, device=model.device)
    memory = model.encode(images)
    draw_noise = partial(rng.normal, [generator], model.noise_shape(images.shape[-2:], model.request))
    x_t, t = draw_noise(), torch.full((1,), 0.5, device=model.device)
    encoder, decoder = partial(model.encode, images), partial(model.head.denoise, memory, x_t, t)

    def infer(count: int) -> Tensor:
        last = last_step(model.head.sample(model.encode(images), draw_noise, count, model.time_difference))
        return model.head.to_labels(last.x0)

    runs = {"encoder": encoder, "decoder": decoder, **{count: partial(infer, count) for count in steps}}
    for run in runs.values():
        run()  # compiles, and chooses kernels
    timer = cpu_milliseconds if model.device.type == "cpu" else milliseconds
    times = medians({key: partial(timer, run) for key, run in runs.items()}, rounds)
    bits = sum(model.head.diffusion.bits)
    shared = {"pixels": size, "bits": bits, "patch": model.head.patch_size}
    flops = {"encoder_gflop": count_flops(encoder) / 1e9, "decoder_gflop": count_flops(decoder) / 1e9}
    return [
        {
            **shared,
            "steps": count,
            "encoder_ms": times["encoder"],
            "decoder_ms": times["decoder"],
            "inference_ms": times[count],
            "bound_ms": times["encoder"] + count * times["decoder"],
            "peak_mib": peak_memory(runs[count], model.device.type),
            **flops,
        }
        for count in steps
    ]


@exit_on_user_error
@torch.no_grad()
def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the image, pixels")
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20])
    arguments.add_argument("--bits", type=int, nargs="+", default=[8], help="of an id")
    arguments.add_argument("--dtype", default="float32", help="of torch.autocast, such as bfloat16")
    arguments.add_argument("--compile", action="store_true", help="the decoder, by torch.compile")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE")
    args = arguments.parse_args()

    rows = []
    with torch.autocast(args.device, getattr(torch, args.dtype), enabled=args.dtype != "float32"):
        for bits in args.bits:
            model = build(args.device, bits, args.compile, args.opts)
            for size in args.sizes:
                rows += measure(model, size, args.steps, args.rounds)
    about = {**environment(args.device), "dtype": args.dtype, "compiled": args.compile}
    report(rows, about, args.json)


if __name__ == "__main__":
    main()
