"""Draw a contact sheet of a model's inputs: images as annotated, as tested, and as augmented, with targets on top.

dformer visualize-data --config-file configs/... --output sheet.jpg
dformer visualize-data --config-file configs/... --draws 8 --opts INPUT.COLOR_AUG_SSD True
"""

import argparse
import sys

from dformer.apps.commands.arguments import add_style_arguments, command_parser, style_of
from dformer.apps.contact_sheet import contact_sheet
from dformer.d2.config import get_cfg, merge_config
from dformer.d2.data import check_datasets
from dformer.utils.errors import UserError, exit_on_user_error


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", metavar="FILE", required=True, help="data set, task and augmentations")
    parser.add_argument("--output", metavar="FILE", default="sheet.jpg", help="picture to write (%(default)s)")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="number of images (%(default)s)")
    parser.add_argument("--draws", type=int, default=4, metavar="N", help="augmentations of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the augmentations (%(default)s)")
    add_style_arguments(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    if args.images < 1 or args.draws < 0:
        raise UserError("--images must be 1 or more, --draws 0 or more")
    cfg = get_cfg()
    merge_config(cfg, args.config_file, args.opts)
    for warning in check_datasets(cfg, test=False):
        print(f"warning: {warning}", file=sys.stderr)
    sheet = contact_sheet(cfg, args.images, args.draws, args.seed, style=style_of(args))
    try:
        sheet.save(args.output, quality=90)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.output} cannot be written: {error}") from error
    print(args.output)
