#!/usr/bin/env python3
"""FLOPs, parameters and time of backbones, with the pyramid that they need, in turns in one run.

python -m benchmarks.inference.backbones --json benchmarks/results/inference/backbones.json
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_backbone

from benchmarks.measure import count_flops, environment, medians, milliseconds, parser, report
from dformer.d2.config import get_cfg, merge_config
from dformer.d2.modeling.backbones import fold_frozen_norms

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "backbones"
DEFAULT = ["r50", "swin_tiny", "swin_v2/swin_v2_tiny", "convnext/convnext_tiny", "vit/dinov2_small", "vit/dinov3_small"]


def build(name: str, device: str) -> torch.nn.Module:
    """Return the backbone of a config, with random weights."""
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", device, "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    backbone = build_backbone(cfg).to(device).eval()
    fold_frozen_norms(backbone)
    return backbone


@torch.no_grad()
def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--backbones", nargs="+", default=DEFAULT, help="of configs/backbones; default: %(default)s")
    arguments.add_argument("--size", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = arguments.parse_args()
    image = torch.rand(1, 3, args.size, args.size, device=args.device)
    image = image.contiguous(memory_format=torch.channels_last)
    rows: dict[str, dict[str, Any]] = {}
    calls = {}
    for name in args.backbones:
        backbone = build(name, args.device)
        calls[name] = partial(backbone, image)
        gflop = count_flops(calls[name]) / 1e9
        rows[name] = {
            "backbone": name,
            "million_parameters": sum(x.numel() for x in backbone.parameters()) / 1e6,
            "gflop": gflop,
        }
    times = medians({name: partial(milliseconds, call) for name, call in calls.items()}, args.rounds)
    for name, row in rows.items():
        row |= {"median_ms": round(times[name], 1), "x_first": round(times[name] / times[args.backbones[0]], 2)}
    report(list(rows.values()), environment(args.device) | {"size": f"{args.size}x{args.size}"}, args.json)


if __name__ == "__main__":
    main()
