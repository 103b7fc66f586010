#!/usr/bin/env python3
"""Convert a checkpoint of a published model (DFormer, Mask2Former) to ours, or ours to theirs.

python tools/convert_checkpoint.py model_final_94dc52.pkl mask2former_r50.pth
python tools/convert_checkpoint.py --to published output/model_final.pth model_final.pth
"""

import argparse

from dformer.apps.convert_checkpoint import convert
from dformer.utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint: .pth, .pkl, .safetensors; also https://...")
    parser.add_argument("target", metavar="DST", help="file to write: .pth, or .safetensors")
    parser.add_argument("--to", choices=["ours", "published"], default="ours", help="default: ours")
    parser.add_argument("--config-file", metavar="FILE", help="config to write into DST; default: that of the model")
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights in SRC")
    parser.add_argument("--half", action="store_true", help="write matrices and kernels in float16: half the size")
    args = parser.parse_args()
    print(convert(args.source, args.target, args.to, args.config_file, args.ema, args.half))


if __name__ == "__main__":
    main()
