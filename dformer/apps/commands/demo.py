"""Segment images and videos: a picture or video of each result, and segments.json with all segments.

dformer demo --weights mask2former/coco/panoptic/r50 --input a.jpg --output out
dformer demo --weights model.pth --input a.jpg 'dir/*.png' dir --output out
dformer demo --weights model.pth --input dir --recursive --no-labels --color-by instance --output out
dformer demo --weights model.pth --input video.mp4 --every 2 --output out
dformer demo --weights model.pth --camera 0 --output out         # until Ctrl-C
dformer demo --weights model.pth --compare other.pth --input a.jpg --output out
dformer demo --weights ldmseg.pth --input a.jpg --inpaint known.png --output out
dformer demo --weights dformer://shapes --input a.jpg --refine coarse.png --output out
dformer demo --weights dformer://shapes --input a.jpg --samples 8 --output out
"""

import argparse
import sys

from dformer.apps.commands.arguments import add_style_arguments, command_parser, style_of
from dformer.postprocess import TASKS
from dformer.utils.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    status = "exit status: 0 all done, 1 some inputs could not be read, 2 nothing done, 130 interrupted"
    parser = command_parser(__doc__, status)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint: a file, or mask2former/coco/panoptic/r50, ...")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model; default: the one of the checkpoint")
    parser.add_argument("--compare", metavar="FILE", help="checkpoint whose results are drawn beside the others")
    parser.add_argument("--input", nargs="+", metavar="PATH", default=[], help="images, videos, folders, 'patterns'")
    parser.add_argument("--camera", type=int, metavar="N", help="segment what camera N sees, until Ctrl-C")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for pictures, videos and segments.json")
    parser.add_argument(
        "--inpaint", metavar="PNG", help="complete this map of ids of segments (0: unknown) of the one input"
    )
    parser.add_argument(
        "--refine", metavar="PNG", help="make the coarse segments of this map of ids, of the one input, better"
    )
    parser.add_argument("--samples", type=int, metavar="K", help="merge K answers, and show where they disagree")
    parser.add_argument("--coco", action="store_true", help="also write coco.json, as COCO has annotations")
    parser.add_argument("--task", choices=TASKS, help="default: what the model was trained for")
    parser.add_argument("--steps", type=int, metavar="K", help="sampling steps (DIFFUSION.SAMPLING_STEPS)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the noise (DIFFUSION.SEED)")
    parser.add_argument("--threshold", type=float, metavar="P", help="least score of a segment that is shown, 0 to 1")
    add_style_arguments(parser)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, each Nth frame (%(default)s)")
    parser.add_argument(
        "--batch", type=int, default=4, metavar="N", help="images, or frames of a video, at once (%(default)s)"
    )
    parser.add_argument("--frames", action="store_true", help="folders in --input are videos, their images the frames")
    parser.add_argument(
        "--tracker", default="", help="how objects are followed: association, queries, hints, past_maps"
    )
    parser.add_argument("--objects", metavar="PNG", help="follow the objects of this map of ids of the first frame")
    parser.add_argument(
        "--object-classes", nargs="+", default=[], metavar="CLASS", help="of these objects, by rising id; for past_maps"
    )
    parser.add_argument(
        "--tracks", nargs="+", default=[], metavar="FORMAT", help="also write tracks: youtube_vis, mots, png"
    )
    parser.add_argument("--recursive", action="store_true", help="also search the folders in a folder")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_arguments()
    from dformer.apps.demo import Settings, segment_files
    from dformer.d2.checkpoint.zoo import inference_config

    if not args.input and args.camera is None:
        raise UserError("name images or videos with --input, or a camera with --camera")
    cfg = inference_config(args.weights, args.config_file, args.opts, args.steps, args.seed)
    compare = args.compare and inference_config(args.compare, None, args.opts, args.steps, args.seed)
    style = style_of(args)
    settings = Settings(
        args.task,
        args.threshold,
        style,
        args.every,
        args.batch,
        args.recursive,
        args.coco,
        args.inpaint,
        args.refine,
        args.samples,
        args.tracker,
        args.objects,
        tuple(args.tracks),
        args.frames,
        tuple(args.object_classes),
    )
    try:
        problems = segment_files(cfg, args.input, args.output, settings, compare, args.camera)
    except KeyboardInterrupt:
        print(f"\ninterrupted: what is in {args.output} is whole", file=sys.stderr)
        sys.exit(130)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)
