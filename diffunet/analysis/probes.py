"""What a network with real values does: how far it sees, where it aliases, where gradients go.

A new network has branches that start as nothing; here they are drawn at random like all others, since a gradient
through zeros says nothing. Everything is seeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.analysis.parts import Part, parts_of
from diffunet.analysis.weightless import inputs
from diffunet.nn import NETWORKS
from diffunet.spec import NetworkConfig

MARGIN = 8  # positions around a test signal, more than any operator between levels reads
SIDE = 16  # a test signal has at least so many positions


def opened(config: NetworkConfig, seed: int) -> nn.Module:
    """A network with seeded random weights, those that start as zero too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = NETWORKS.build(config)
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
            elif parameter.ndim == 0 and not parameter:
                nn.init.ones_(parameter)  # gains
    return net.eval()


@dataclass(frozen=True)
class Probe:
    """A network to be tried out.

    Args:
        config: how it is built; sides: of the images that it is shown.
        trained: with its own weights; else it is made with random ones.
        time: what it is told of the time.
    """

    config: NetworkConfig
    sides: tuple[int, ...]
    trained: nn.Module | None = None
    time: float = 0.5

    def network(self, seed: int = 0) -> nn.Module:
        """The trained network, or one with the random weights of a seed."""
        return opened(self.config, seed) if self.trained is None else self.trained.eval()

    def endless(self) -> nn.Module:
        """The network with borders that go round, where it has borders."""
        where = {"padding_mode": "circular"} if hasattr(self.config, "padding_mode") else {"padding": "circular"}
        twin: nn.Module = NETWORKS.build(self.config.model_copy(update=where))
        twin.load_state_dict(self.network().state_dict())
        return twin.eval()

    def told(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Seeded random arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return inputs(self.config, batch, self.sides, self.time)


# --- effective receptive field ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EffectiveField:
    """Where the gradient of the centre output comes from.

    Args:
        share: (*S) its size at each input position, with sum 1, averaged over seeds.
        radii: share of the gradient -> radius of the ball around the centre that holds it, in positions.
    """

    share: Tensor
    radii: dict[float, float]


def effective_field(probe: Probe, seeds: int) -> EffectiveField:
    """|d y(centre) / d x|, summed over channels, averaged over random inputs, and over weights where none are trained.

    Each seed weighs the output channels at random, since a plain sum may cancel (1701.04128 takes one channel).
    """
    total = torch.zeros(probe.sides)
    for seed in range(seeds):
        arguments = probe.told(1, seed)
        x = arguments["x"].requires_grad_()
        y = probe.network(seed)(**arguments)
        centre = y[(0, slice(None), *(side // 2 for side in y.shape[2:]))]
        weights = torch.randn(len(centre), generator=torch.Generator().manual_seed(seed))
        (gradient,) = torch.autograd.grad((centre * weights).sum(), x)
        size = gradient[0].abs().sum(dim=0)
        total += size / size.sum().clamp(min=1e-30)
    share = total / seeds
    return EffectiveField(share, {part: radius_of(share, part) for part in (0.5, 0.95)})


def radius_of(share: Tensor, part: float) -> float:
    """Radius around the middle of share (*S), whose sum is 1, within which `part` of it lies."""
    axes = [torch.arange(side) - side // 2 for side in share.shape]
    squares = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
    distances = torch.as_tensor(squares).double().sqrt().flatten()
    order = distances.argsort()
    within = share.flatten().double()[order].cumsum(dim=0)
    first = int((within < part * within[-1]).sum())
    return float(distances[order][first])


# --- aliasing --------------------------------------------------------------------------------------------------------


def natural(shape: tuple[int, ...]) -> Tensor:
    """A periodic test signal (B, C, *S) whose amplitude falls as 1 / frequency, as in pictures; deviation 1."""
    sides = shape[2:]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes = torch.meshgrid(*(torch.fft.fftfreq(side) * side for side in sides), indexing="ij")
    frequency = torch.stack(axes).square().sum(dim=0).sqrt().clamp(min=1)
    dims = tuple(range(2, len(shape)))
    x = torch.fft.ifftn(torch.fft.fftn(noise, dim=dims) / frequency, dim=dims).real
    x = x - x.mean(dim=dims, keepdim=True)
    return x / x.std()


def shifted(x: Tensor, by: float) -> Tensor:
    """A periodic signal x (B, C, *S) moved by a number of positions, which may be a fraction, along its last axis."""
    side = x.shape[-1]
    frequency = torch.fft.rfftfreq(side, device=x.device)
    turned = torch.fft.rfft(x, dim=-1) * torch.exp(-2j * torch.pi * frequency * by)
    return torch.fft.irfft(turned, n=side, dim=-1)


def around(module: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """What a local operator makes of the endless repetition of x (B, C, *S): no border is in it."""
    dims = x.ndim - 2
    y = module(F.pad(x, (MARGIN, MARGIN) * dims, mode="circular"), *rest)
    for dim in range(2, x.ndim):
        wide = x.shape[dim] + 2 * MARGIN
        y = y.narrow(dim, MARGIN * y.shape[dim] // wide, x.shape[dim] * y.shape[dim] // wide)
    return y


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b - mean b|."""
    spread = b - b.mean(dim=tuple(range(2, b.ndim)), keepdim=True)
    return float((a - b).norm() / spread.norm().clamp(min=1e-12))


@torch.no_grad()
def operator_errors(probe: Probe) -> dict[Part, float]:
    """Of each operator between levels: what a shift by one input position changes besides the shift.

    An operator without aliasing gives the same, moved by half a position (down) or two (up): sampling theory.
    """
    net = probe.network()
    heard: dict[Part, tuple[nn.Module, list[Any]]] = {}
    hooks = []
    for path, part in parts_of(net).items():
        if part.role in ("down", "up"):

            def hook(module: nn.Module, args: Any, part: Part = part) -> None:
                heard.setdefault(part, (module, list(args)))  # the outermost comes first

            hooks.append(net.get_submodule(path).register_forward_pre_hook(hook))
    net(**probe.told(1))
    for handle in hooks:
        handle.remove()
    found: dict[Part, float] = {}
    for part, (module, (x, *rest)) in heard.items():
        signal = natural((1, x.shape[1], *(max(side + side % 2, SIDE) for side in x.shape[2:])))
        plain, moved = around(module, signal, *rest), around(module, signal.roll(1, dims=-1), *rest)
        found[part] = difference(moved, shifted(plain, plain.shape[-1] / signal.shape[-1]))
    return found


@torch.no_grad()
def shift_errors(probe: Probe) -> dict[int, float]:
    """Shift in input positions -> what it changes in the network's output besides the shift.

    Borders go round, so that a shift by the stride of the deepest level changes nothing where all sides are even.
    """
    net, arguments = probe.endless(), probe.told(1)
    arguments["x"] = x = natural((1, probe.config.in_channels, *probe.sides))
    plain, errors = net(**arguments), {}
    for by in [2**level for level in range(max(2, len(probe.config.widths)))]:
        moved = net(**{**arguments, "x": x.roll(by, dims=-1)})
        # the output of valid convolutions is no circle: what came in from the other end goes
        border = by if plain.shape[-1] < x.shape[-1] else 0
        errors[by] = difference(inner(moved, border), inner(plain.roll(by, dims=-1), border))
    return errors


def inner(x: Tensor, border: int) -> Tensor:
    """x (B, C, *S) without `border` positions at each end, where so many are there to leave."""
    for dim in range(2, x.ndim):
        if x.shape[dim] >= 2 * border + 4:
            x = x.narrow(dim, border, x.shape[dim] - 2 * border)
    return x


# --- gradients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    """Of one part after one backward pass.

    Args:
        norm: of all its gradients together.
        mean: root mean square of one gradient value.
        relative: norm over that of its weights.
    """

    norm: float
    mean: float
    relative: float


def gradients(probe: Probe) -> dict[Part, Gradient]:
    """Where the gradient of the squared error against a random target goes, by part."""
    net = probe.network()
    y = net(**probe.told(2))
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    net.zero_grad()
    (y - target).square().mean().backward()
    parts, sums = parts_of(net), dict[Part, list[Tensor]]()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            part = parts[name.rpartition(".")[0]]
            of = torch.stack([parameter.grad.square().sum(), parameter.detach().square().sum()]).double()
            count = torch.tensor([parameter.numel()]).double()
            sums.setdefault(part, []).append(torch.cat([of, count]))
    net.zero_grad()
    found = {}
    for part, values in sums.items():
        squares, weights, count = torch.stack(values).sum(dim=0).tolist()
        found[part] = Gradient(squares**0.5, (squares / count) ** 0.5, (squares / max(weights, 1e-30)) ** 0.5)
    return found
