"""Pictures of the diffusion: noise on its way to a result, or ground truth on its way to noise.

The former shows, after each sampling step and each decoder layer, the masks, where the layer looked, and the classes:
dformer visualize-diffusion --weights model.pth --input photo.jpg --steps 4 --output steps.png steps.gif
dformer visualize-diffusion --weights model.pth --dataset shapes_val --index 3 --output steps.mp4

With --times, an annotated image's masks as training sees them at these times; no weights are needed:
dformer visualize-diffusion --config-file configs/... --dataset shapes_val --times 0 50 999 --output noise.png
"""

import argparse

from dformer.apps.commands.arguments import command_parser
from dformer.apps.diffusion_figures import SUFFIXES, show_denoising, show_noising
from dformer.d2.checkpoint.zoo import inference_config
from dformer.utils.errors import UserError, exit_on_user_error


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of a system with diffusion (MODEL.WEIGHTS)")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model; default: the one of the checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar="FILE", help="an image")
    source.add_argument("--dataset", metavar="NAME", help="data set that the image is taken from")
    parser.add_argument("--index", type=int, default=0, metavar="I", help="which of its images (%(default)s)")
    parser.add_argument(
        "--output", nargs="+", metavar="FILE", required=True, help=f"what to write: {', '.join(SUFFIXES)}"
    )
    parser.add_argument(
        "--times", type=float, nargs="*", metavar="T", help="show ground truth with the noise of these times (all)"
    )
    parser.add_argument("--masks", type=int, default=6, metavar="M", help="how many masks are followed (%(default)s)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of animations (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="K", help="sampling steps (DIFFUSION.SAMPLING_STEPS)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the noise (DIFFUSION.SEED)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    if args.masks < 1 or args.fps <= 0:
        raise UserError("--masks must be 1 or more, --fps above 0")
    cfg = inference_config(args.weights, args.config_file, args.opts, args.steps, args.seed)
    if args.times is None:
        show_denoising(cfg, args.input, args.dataset, args.index, args.masks, args.output, args.fps)
    elif args.dataset is None:
        raise UserError("--times shows ground truth, which --input has not: name a data set with --dataset and --index")
    else:
        show_noising(cfg, args.dataset, args.index, args.times or None, args.masks, args.output, args.fps)
    print(*args.output, sep="\n")
