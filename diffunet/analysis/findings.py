"""The sections that say more than what a network costs: how far it sees, what it needs, how it behaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from diffunet.analysis import alternatives, probes
from diffunet.analysis.cost import Summary
from diffunet.analysis.figures import draw_field
from diffunet.analysis.memory import Memory, as_json, estimate, measure
from diffunet.analysis.receptive import receptive_field
from diffunet.analysis.report import Section, Subject, cost, joins, mega, size, table
from diffunet.spec import NetworkConfig, UNetConfig

# --- receptive field -------------------------------------------------------------------------------------------------


def construction(subject: Subject, summary: Summary) -> Section:
    """The receptive field by construction."""
    field = receptive_field(subject.probe.config)
    last = field.reaches[-1]
    width = str(last.largest) if last.smallest == last.largest else f"{last.smallest} to {last.largest}"
    stages = [r for r in field.reaches if r.part.role in ("stem", "blocks")]
    growth = ", ".join(f"{r.part.name.removesuffix(' blocks')} {r.largest}" for r in stages)
    lines = [f"receptive field by construction: {width} positions wide (kernels, strides and dilations alone)", growth]
    if field.everywhere:
        parts = ", ".join(f"{count} {name}" for name, count in field.everywhere.items())
        lines.append(f"the whole image is seen through {parts}")
    values = {
        "smallest": last.smallest,
        "largest": last.largest,
        "exact": field.exact,
        "everywhere": field.everywhere,
        "parts": [{"name": r.part.name, "stride": r.stride, "width": r.largest} for r in field.reaches],
    }
    return Section("\n  ".join(lines), values)


def effective(subject: Subject, summary: Summary) -> Section:
    """The measured receptive field."""
    field, reach = probes.effective_field(subject.probe, subject.seeds), receptive_field(subject.probe.config).size
    inner = ", ".join(f"{part:.0%} within {radius:.3g}" for part, radius in field.radii.items())
    text = (
        f"effective receptive field: of the gradient of the centre {inner} positions\n"
        f"  ({subject.seeds} random inputs of {size(subject.probe.sides)}, {_weights(subject)})"
    )
    values = {"radii": {str(part): r for part, r in field.radii.items()}, "seeds": subject.seeds}
    return Section(text, values, {"receptive_field.png": partial(draw_field, field, subject.name, reach)})


def _weights(subject: Subject) -> str:
    return "random weights" if subject.probe.trained is None else "its own weights"


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(subject: Subject, summary: Summary) -> Section:
    """Estimated memory, with and without recomputed activations."""
    found = {name: estimate(c, subject.batch, subject.probe.sides) for name, c in _checkpointings(subject).items()}
    rows = [[label, *(mega(value(m)) for m in found.values())] for label, value in MEMORY_ROWS.items()]
    text = (
        f"memory in MB (10^6 bytes), float32 on a CPU, batch of {subject.batch}, AdamW, one average of the weights\n"
        + table(["", *found], rows)
    )
    return Section(text, {name: as_json(m) for name, m in found.items()})


MEMORY_ROWS: dict[str, Callable[[Memory], int]] = {
    "weights": lambda m: m.weights,
    "average": lambda m: m.average,
    "moments": lambda m: m.moments,
    "gradients at the peak": lambda m: m.gradients,
    "activations and work space at the peak": lambda m: m.working,
    "training": lambda m: m.training,
    "inference": lambda m: m.inference,
}


def _checkpointings(subject: Subject) -> dict[str, NetworkConfig]:
    """The config, and the same with every level recomputed, where it can."""
    config = subject.probe.config
    found: dict[str, NetworkConfig] = {"as configured": config}
    if not isinstance(config, UNetConfig):
        return found
    levels = tuple(range(len(config.widths)))
    if config.checkpoint_levels != levels:
        found["all levels recomputed"] = config.model_copy(update={"checkpoint_levels": levels})
    return found


def measured(subject: Subject, summary: Summary) -> Section:
    """The estimates against fresh processes that really train and infer."""
    batch, sides = subject.batch, subject.probe.sides
    rows, values = [], []
    for name, config in _checkpointings(subject).items():
        expected = as_json(estimate(config, batch, sides))
        for task, found in measure(config, batch, sides).items():
            guess, error = expected[task], 100 * (expected[task] / found - 1)
            rows.append([f"{task}, {name}", mega(guess), mega(found), f"{error:+.1f}"])
            values.append({"task": task, "network": name, "estimated": guess, "measured": found})
            values[-1]["error_percent"] = error
    held = measure(subject.probe.config, batch, sides, keeps=True)["training"]
    text = table(["measured memory (MB)", "estimated", "measured", "error %"], rows)
    text += f"\n  a process whose malloc keeps what is freed, as it does by default, shows {mega(held)} for training"
    return Section(text, {"peaks": values, "training_with_kept_blocks": held})


# --- behaviour -------------------------------------------------------------------------------------------------------


def rivals(subject: Subject, summary: Summary) -> Section:
    """Networks that stay at full resolution, at equal multiplications."""
    config, sides = subject.probe.config, subject.probe.sides
    found = alternatives.rivals(config, subject.batch, sides)
    heads = ["at equal multiplications", "width", "parameters", "MACs / 10^6", "training MB", "inference MB", "reach"]
    rows, values = [], []
    for rival in found:
        seconds = alternatives.seconds(rival.config, subject.batch, sides) if subject.time else None
        widths = " ".join(map(str, dict.fromkeys(rival.width)))
        costs = [f"{rival.parameters:,}", mega(rival.macs), mega(rival.memory.training), mega(rival.memory.inference)]
        times = [] if seconds is None else [f"{seconds:.3f}"]
        rows.append([rival.name, widths, *costs, str(rival.reach), *times])
        values.append(
            {"name": rival.name, "widths": list(rival.width), "parameters": rival.parameters, "macs": rival.macs}
            | {"memory": as_json(rival.memory), "receptive_field": rival.reach, "seconds": seconds}
        )
    text = table([*heads, *["seconds"] * subject.time], rows)
    text += "\n  direct: no down or up operators; dilated: rates 1, 2, 4, ... in their place; both without attention"
    return Section(text, values)


def aliasing(subject: Subject, summary: Summary) -> Section:
    """What a shift of the input changes besides the shift."""
    operators, shifts = probes.operator_errors(subject.probe), probes.shift_errors(subject.probe)
    rows = [[part.name, f"{error:.3f}"] for part, error in operators.items()]
    rows += [[f"the network, shift by {by}", f"{error:.3f}"] for by, error in shifts.items()]
    text = (
        f"shift error, relative, of a picture-like signal shifted by one position ({_weights(subject)})\n"
        + table(["part", "error"], rows)
        + "\n  0 is free of aliasing; borders go round here, so that the stride of the deepest level is no shift at all"
    )
    values = {
        "operators": {part.name: error for part, error in operators.items()},
        "network": {str(by): error for by, error in shifts.items()},
    }
    return Section(text, values)


def gradients(subject: Subject, summary: Summary) -> Section:
    """Where gradients go."""
    found = probes.gradients(subject.probe)
    order = [part for part in summary.parts if part in found]
    rows = [[p.name, f"{found[p].norm:.2e}", f"{found[p].mean:.2e}", f"{found[p].relative:.2e}"] for p in order]
    text = f"gradients of the squared error against a random target ({_weights(subject)})\n" + table(
        ["part", "norm", "rms of one", "over norm of weights"], rows
    )
    return Section(text, {p.name: vars(found[p]) for p in order})


# name -> section; those of the second table only where they are asked for
ALWAYS: dict[str, Callable[[Subject, Summary], Section]] = {
    "cost": cost,
    "joins": joins,
    "receptive_field": construction,
    "memory": memory,
}
ON_REQUEST: dict[str, Callable[[Subject, Summary], Section]] = {
    "effective_receptive_field": effective,
    "alternatives": rivals,
    "aliasing": aliasing,
    "gradients": gradients,
    "measured_memory": measured,
}
