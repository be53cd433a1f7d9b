"""One forward pass without memory: what every part reads, gives, multiplies and keeps.

The network runs on the meta device, where tensors have shapes and no values. Multiplications are counted by the
formulas of torch.utils.flop_counter, one multiply-accumulate (MAC) being two of its flops; so convolutions, matrix
products and attention count, and sums, norms, activations and poolings do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop

from diffunet.analysis.parts import Part, parts_of
from diffunet.nn.layers import Chain

aten = torch.ops.aten
# the counter of torch leaves out what attention becomes on a CPU
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}


def _group_norm(x: Tensor, weight: Any, bias: Any, n: int, c: int, size: int, groups: int, eps: float) -> Any:
    return torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)


def _group_norm_backward(gradient: Tensor, x: Tensor, *args: Any) -> Any:
    *_, wanted = args
    made = (torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1]))
    return tuple(tensor if want else None for tensor, want in zip(made, wanted, strict=True))


# what torch computes on the meta device by way of a dozen smaller operations
QUICK: dict[Any, Callable[..., Any]] = {
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
}
OUTSIDE = Part("network", "other")


@dataclass(frozen=True)
class Op:
    """One operation that multiplies.

    Args:
        part: the part that it belongs to.
        path: the innermost module around it.
        macs: multiply-accumulates.
        role: what these are for, a key of ROLES.
        kernel: longest side of a convolution's kernel; 1 for a matrix product.
        reads: channels that a convolution reads, gives: that it gives, sides: of what it gives.
    """

    part: Part
    path: str
    macs: int
    role: str
    kernel: int = 1
    reads: int = 0
    gives: int = 0
    sides: tuple[int, ...] = ()


@dataclass
class Shape:
    """What a part reads first and gives last: (C, *S) of each tensor; and how many modules side by side it has."""

    reads: list[tuple[int, ...]]
    gives: tuple[int, ...] = ()
    modules: int = 0


def tensors(tree: Any) -> list[Tensor]:
    """All the tensors in nested arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def nbytes(values: Any) -> int:
    """Bytes of the tensors in nested arguments or results."""
    return sum(t.numel() * t.element_size() for t in tensors(values))


class Trace(TorchDispatchMode):
    """Records the operations, shapes and living memory of what runs inside it.

    Args:
        net: the network whose modules are told apart.
        workspace: bytes that an operation needs besides its result, given its name, arguments and result.
        counting: record the operations that multiply; not wanted of a backward pass.
    """

    def __init__(
        self,
        net: nn.Module,
        workspace: Callable[[str, Any, Any], int] = lambda name, args, out: 0,
        counting: bool = True,
    ) -> None:
        super().__init__()
        self.net, self.workspace, self.counting = net, workspace, counting
        self.parts = parts_of(net)
        # modules that only hold others in a row, which may be of several parts; what they hold has their shapes
        self._holders = {
            path
            for path, part in self.parts.items()
            if isinstance(net.get_submodule(path), Chain)
            or any(inner.startswith(f"{path}.") and other != part for inner, other in self.parts.items())
        }
        self.shapes: dict[Part, Shape] = {}
        self.ops: list[Op] = []
        self.joins: dict[int, list[int]] = {}
        self.live = self.peak = self.events = self.peak_event = 0
        self.storages: dict[int, tuple[Any, int, Part]] = {}
        self.born: dict[int, int] = {}  # storage -> number of its birth
        self._known: set[int] = set()
        self._stack: list[str] = []
        self._fused: weakref.ref[Any] | None
        self._part, self._joined, self._fused = OUTSIDE, 0, None

    # --- modules ---

    @contextmanager
    def watching(self, *given: Any) -> Iterator[Trace]:
        """Follow which module runs, and record; tensors in `given` are there already and count as no memory."""
        self._known = {t.untyped_storage()._cdata for t in tensors((given, list(self.net.state_dict().values())))}
        hooks: list[Any] = []
        for path, module in self.net.named_modules():
            if path:
                hooks.append(module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True))
                hooks.append(module.register_forward_hook(partial(self._leave, path), always_call=True))
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._part = part = self.parts[path]
        outer = self._stack[-1] if self._stack else None
        self._stack.append(path)
        if path in self._holders:
            return
        if part not in self.shapes:
            # images first: a block is also told an embedding, which is no input of the part
            read = [tuple(t.shape[1:]) for t in tensors((args, kwargs))]
            self.shapes[part] = Shape([s for s in read if len(s) > 1] or read)
        self.shapes[part].modules += outer is None or outer in self._holders or self.parts[outer] != part

    def _leave(self, path: str, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()
        part, given = self.parts[path], tensors(out)
        outer = self.parts[self._stack[-1]] if self._stack else OUTSIDE
        if given and path not in self._holders:
            self.shapes[part].gives = tuple(given[0].shape[1:])
        if part.role == "skips" != outer.role and part.level is not None:
            self._join([t.shape[1] for t in tensors(args)], given[0].shape[1], part.level)
        self._part = outer if self._stack else part  # what stands between two parts counts with the one before

    def _join(self, reads: list[int], gives: int, level: int) -> None:
        self.joins.setdefault(level, []).append(sum(reads))
        self._joined = gives if gives > reads[0] else 0  # the next 3x3 convolution fuses these channels

    # --- operations ---

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = QUICK.get(func, func)(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if self.counting and packet in FLOPS:
            self.ops.append(self._op(packet, FLOPS[packet](*args, **(kwargs or {}), out_val=out) // 2, args, out))
        for tensor in tensors(out):
            self._born(tensor)
        self._mark(self.live + self.workspace(str(packet), args, out))
        return out

    def _op(self, packet: Any, macs: int, args: Any, out: Any) -> Op:
        part, path = self._part, self._stack[-1] if self._stack else ""
        if "conv" not in str(packet):
            kind = "scores" if packet in SCORES else "product"
            return Op(part, path, macs, ROLE_OF.get((part.role, kind), part.role))
        read, kernel = args[0], max(args[1].shape[2:])
        role = ROLE_OF.get((part.role, "3x3" if kernel > 1 else "1x1"), part.role)
        if role == "features" and self._fuses(read):
            role = "skip fusion"
        return Op(part, path, macs, role, kernel, read.shape[1], out.shape[1], tuple(out.shape[2:]))

    def _fuses(self, read: Tensor) -> bool:
        """Whether a convolution reads joined channels: the first behind a join, and those beside it."""
        storage = read.untyped_storage()
        if self._joined == read.shape[1]:
            self._joined, self._fused = 0, weakref.ref(storage)
        return self._fused is not None and self._fused() is storage

    def owner(self, parameter: str) -> Part:
        """The part that a named parameter belongs to."""
        return self.parts.get(parameter.rpartition(".")[0], OUTSIDE)

    # --- memory ---

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages or key in self._known:
            return
        size = storage.nbytes()
        self.events += 1
        self.live += size
        self.storages[key] = (weakref.ref(storage, partial(self._died, key)), size, self._part)
        self.born[key] = self.events

    def _died(self, key: int, _: Any) -> None:
        self.live -= self.storages.pop(key)[1]

    def _mark(self, level: int) -> None:
        if level > self.peak:
            self.peak, self.peak_event = level, self.events

    def kept(self) -> dict[Part, int]:
        """Bytes alive now, by the part that made them."""
        sums: dict[Part, int] = {}
        for _, size, part in self.storages.values():
            sums[part] = sums.get(part, 0) + size
        return sums


SCORES = (
    aten.bmm,
    aten.baddbmm,
    aten._scaled_dot_product_flash_attention_for_cpu,
)
# (role of the part, kind of operation) -> role of the operation, where the part alone does not say
ROLE_OF = {
    ("blocks", "3x3"): "features",
    ("blocks", "1x1"): "1x1",
    ("blocks", "product"): "conditioning",
    ("attention", "1x1"): "1x1",
    ("attention", "product"): "1x1",
    ("skips", "1x1"): "skip fusion",
    ("skips", "3x3"): "skip fusion",
}
ROLES = {
    "stem": "stem",
    "features": "feature extraction (3x3 and larger in blocks)",
    "down": "down",
    "up": "up",
    "skip fusion": "skip fusion (first 3x3 behind a join, and the join's own)",
    "1x1": "1x1 (shortcuts, attention projections)",
    "attention": "attention between positions",
    "pyramid": "pyramids",
    "conditioning": "conditioning (matrix products)",
    "head": "head",
    "other": "other",
}
