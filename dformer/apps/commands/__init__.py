"""The command `dformer` and its subcommands; those that have no module here are in `dformer.apps`."""

import sys
from importlib import import_module

from dformer.utils.errors import USER_ERROR, did_you_mean, exit_on_user_error
from dformer.utils.version import __version__

# Subcommand -> module, arguments that it always has, and what it does.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "quickstart": ("commands.quickstart", (), "generate Shapes, train a small DFormer, evaluate it, segment images"),
    "demo": ("commands.demo", (), "segment images and videos"),
    "app": ("commands.app", (), "serve a page to try models in"),
    "train": ("commands.train", (), "train a model"),
    "eval": ("commands.train", ("--eval-only",), "evaluate a model, or saved predictions"),
    "analyze": ("commands.analyze", (), "write a report of saved predictions"),
    "replay": ("commands.replay", (), "run again the batch at which a training has stopped"),
    "check": ("commands.check_dataset", (), "check data sets before they are trained on"),
    "convert": ("convert_checkpoint", (), "convert a published checkpoint to ours, or back"),
    "export": ("export", (), "export a model to ONNX, a torch.export program, or TorchScript"),
    "convert-dataset": ("convert_dataset", (), "write a data set in another form"),
    "visualize-data": ("commands.visualize_data", (), "draw what a model gets"),
    "visualize-diffusion": ("commands.visualize_diffusion", (), "draw the diffusion"),
    "shapes": ("shapes", (), "generate the Shapes data set"),
    "install-detectron2": ("install_detectron2", (), "install Detectron2 into this environment"),
    "env": ("env", (), "report versions, devices, operators, and what is missing"),
}


@exit_on_user_error
def main() -> None:
    """Run a subcommand with the arguments after its name, as its tool in tools/ does."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        module, arguments, _ = COMMANDS[name]
        sys.argv = [f"dformer {name}", *arguments, *sys.argv[2:]]  # the first is what parsers take for their name
        import_module(f"dformer.apps.{module}").main()
    elif name == "--version":
        print(__version__)
    elif name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {command:{width}}  {does}" for command, (_, _, does) in COMMANDS.items())
        print("usage: dformer COMMAND ...\n", *lines, "\ndformer COMMAND --help has the arguments.", sep="\n")
    else:
        print(f'error: there is no command "{name}"{did_you_mean(name, COMMANDS)}; see dformer --help', file=sys.stderr)
        sys.exit(USER_ERROR)
