"""A page to try trained models in, on this machine: http://127.0.0.1:7860. It needs Gradio: `make app`.

dformer app
dformer app --weights output/quickstart/model_final.pth other.pth --examples 'photos/*.jpg'
"""

import sys

from dformer.apps.commands.arguments import command_parser
from dformer.utils.errors import UserError, exit_on_user_error


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--weights", nargs="+", metavar="FILE", default=["dformer://shapes"], help="checkpoints; default: %(default)s"
    )
    parser.add_argument("--examples", nargs="+", metavar="PATH", help="image files, folders, 'patterns'; else Shapes")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="let anybody in, through a tunnel of Gradio's")
    parser.add_argument("--seconds", type=float, default=60, help="for which one request may compute (%(default)s)")
    args = parser.parse_args()
    from dformer.apps.demo.inputs import find_inputs, is_video
    from dformer.d2.checkpoint.checkpointer import ASSETS

    try:
        from dformer.apps.page import serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; `make app`, or pip install 'dformer[app]'") from error
    found, problems = find_inputs(args.examples or [str(ASSETS / "examples")])
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    serve(
        args.weights,
        [str(file) for file in found if not is_video(file)],
        args.host,
        args.port,
        args.share,
        args.seconds,
    )
