"""Operators."""

from dformer.ops.ms_deform_attn import implementation, ms_deform_attn

__all__ = ["implementation", "ms_deform_attn"]
