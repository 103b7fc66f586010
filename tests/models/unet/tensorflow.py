"""Golden weights of Pix2Seq-D, from TensorFlow's layouts to modules of ours."""

from torch import Tensor, nn

from dformer.weights.published.convert import from_published
from dformer.weights.published.pix2seqd import PIX2SEQD


def weights_of(golden: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return what lies under `<prefix>state_dict.`, float32."""
    start = f"{prefix}state_dict."
    return {name.removeprefix(start): x.float() for name, x in golden.items() if name.startswith(start)}


def load(module: nn.Module, weights: dict[str, Tensor], theirs: str, ours: str) -> nn.Module:
    """Load weights that are `theirs`/... in a whole model into a module that is `ours`. ... in ours: all, no others."""
    converted, dropped = from_published({theirs + name: x for name, x in weights.items()}, PIX2SEQD)
    assert not dropped and all(name.startswith(ours) for name in converted)
    module.load_state_dict({name.removeprefix(ours): x for name, x in converted.items()})
    return module.eval()


def nchw(maps: Tensor) -> Tensor:
    return maps.movedim(-1, 1)
