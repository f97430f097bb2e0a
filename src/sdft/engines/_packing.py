"""Linear layers with weights laid out once for the CPU's matrix kernels.

A plain linear layer on a CPU lays its weight out anew on every call; at the few rows of a decode step that costs
as much as the product. The packed product also computes each row alone: from four rows on, a row's result does
not depend on how many stand beside it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

MIN_ROWS = 4
"""Fewer rows than this take another kernel, whose results differ in the last bit."""


class PackedLinear(nn.Module):
    """A frozen linear layer with its weight in the kernels' own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, in) → (…, out)."""
        rows = x.reshape(-1, self.in_features)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return out.view(*x.shape[:-1], self.out_features)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the packed product, and it agrees with the plain one here."""
    has_onednn: bool = torch._C._has_mkldnn
    if not has_onednn or dtype not in (torch.float32, torch.bfloat16):
        return False
    linear = nn.Linear(64, 96, bias=False, dtype=dtype)
    x = torch.randn(MIN_ROWS, 64, dtype=dtype)
    with torch.no_grad():
        try:
            packed = PackedLinear(linear)(x)
        except (RuntimeError, NotImplementedError, AttributeError):
            return False
        return bool(torch.allclose(packed, functional.linear(x, linear.weight), atol=1e-2, rtol=1e-2))


def pack_linears(model: nn.Module) -> None:
    """Replace every linear layer in place; the plain weights are freed unless the embedding shares them."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
