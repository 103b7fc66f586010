"""Run the batch again at which training has stopped, and print which image, module, loss or gradient is not finite.

dformer replay output/bad_step_0001234/rank0.pth
"""

import sys

from dformer.apps.commands.arguments import command_parser
from dformer.d2.config.device import resolve_device
from dformer.d2.engine.nonfinite import replay
from dformer.utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="batch of a process, with the weights beside it")
    parser.add_argument("--device", default="cuda", help="default: the GPU if there is one")
    args = parser.parse_args()
    device = resolve_device(args.device, "--device" in sys.argv, num_gpus=1)
    print("\n".join(replay(args.file, device)))
