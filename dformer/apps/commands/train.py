"""Train or evaluate a model.

dformer train --config-file configs/... [--resume | --overwrite | --eval-only] [KEY VALUE ...]
dformer train --num-gpus 8 --config-file configs/...
dformer train --eval-only --predictions output/inference --config-file configs/... [KEY VALUE ...]
torchrun --nproc-per-node 8 -m dformer train --config-file configs/...
"""

from dformer.utils.errors import UserError, exit_on_user_error


@exit_on_user_error
def main() -> None:
    # Slow imports; here, so that ^C during them prints no traceback either.
    from detectron2.engine import default_argument_parser

    from dformer.d2.config import get_cfg, merge_config
    from dformer.d2.config.device import resolve_device
    from dformer.d2.engine.launch import launch, raise_once
    from dformer.d2.engine.run import run

    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--predictions", metavar="DIR", help="with --eval-only: evaluate these saved predictions instead of a model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the training that OUTPUT_DIR has")
    args = parser.parse_args()
    with raise_once():
        if args.overwrite and (args.resume or args.eval_only):
            raise UserError("--overwrite starts anew: it goes neither with --resume nor with --eval-only")
        if args.predictions and not args.eval_only:
            raise UserError("--predictions needs --eval-only")
        cfg = get_cfg()
        merge_config(cfg, args.config_file, args.opts)
        cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE, "MODEL.DEVICE" in args.opts, args.num_gpus)
    launch(
        run,
        (cfg, args.resume, args.eval_only, args.predictions, args.overwrite),
        device=cfg.MODEL.DEVICE,
        num_processes=max(args.num_gpus, 1),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        timeout=cfg.COLLECTIVE_TIMEOUT,
    )
