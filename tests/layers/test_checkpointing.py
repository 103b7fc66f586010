import torch
from torch import nn

from dformer.layers.checkpointing import checkpoint_activations


def block() -> nn.Sequential:
    torch.manual_seed(0)
    inner = [nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3), "norm": nn.BatchNorm2d(2)}) for _ in range(2)]
    for each in inner:
        each.forward = lambda x, parts=each: nn.functional.dropout(parts["norm"](parts["conv"](x)).relu(), 0.5)
    return nn.Sequential(*inner)


def test_batch_norms_count_a_batch_once_and_dropout_draws_once() -> None:
    x, results = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)), []
    for checkpointing in (False, True):
        model = block()
        if checkpointing:
            assert checkpoint_activations(model) == ["0", "1"]
        torch.manual_seed(3)
        model(x).square().sum().backward()
        results.append((dict(model.named_buffers()), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_activations_are_not_kept() -> None:
    kept = []
    for checkpointing in (False, True):
        model, sizes = block(), []
        if checkpointing:
            checkpoint_activations(model)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            model(torch.randn(2, 2, 9, 9))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
