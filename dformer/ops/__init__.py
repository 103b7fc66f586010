"""Operators."""

from dformer.ops.ms_deform_attn import explanation, implementation, ms_deform_attn

__all__ = ["explanation", "implementation", "ms_deform_attn"]
