#!/usr/bin/env python3
"""Segment image files: a picture of each result, with class names and scores, and segments.json with all segments.

python tools/demo.py --weights model.pth --input a.jpg 'dir/*.png' dir --output out
python tools/demo.py --config-file configs/... --weights model.pth --input a.jpg --output out --opts KEY VALUE
"""

import argparse
import sys

from dformer.d2 import get_cfg
from dformer.d2.config import merge_config
from dformer.d2.demo import TASKS, segment_files
from dformer.d2.launch import resolve_device
from dformer.d2.zoo import config_of
from dformer.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"{usage}\nexit status: 0 all done, 1 some inputs could not be read, 2 nothing done",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of ours or of a published model (MODEL.WEIGHTS)")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model; default: the one of the checkpoint")
    parser.add_argument("--input", nargs="+", metavar="PATH", required=True, help="image files, folders, 'patterns'")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures and segments.json")
    parser.add_argument("--task", choices=TASKS, help="default: what the model was trained for")
    parser.add_argument("--steps", type=int, metavar="K", help="sampling steps (DIFFUSION.SAMPLING_STEPS)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the noise (DIFFUSION.SEED)")
    parser.add_argument("--confidence", type=float, metavar="P", help="least score of a segment that is shown, 0 to 1")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_arguments()
    if not args.config_file and not args.weights:
        raise UserError("give a checkpoint with --weights, or a config with --config-file")
    cfg = get_cfg() if args.config_file else config_of(args.weights)
    merge_config(cfg, args.config_file, args.opts)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE, "MODEL.DEVICE" in args.opts, num_gpus=1)
    if args.steps is not None:
        cfg.DIFFUSION.SAMPLING_STEPS = args.steps
    if args.seed is not None:
        cfg.DIFFUSION.SEED = args.seed
    problems = segment_files(cfg, args.input, args.output, args.task, args.confidence)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
