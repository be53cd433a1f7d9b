"""What the tensors of released weights do not show, by the preset of their network: `--preset` in place of flags.

The presets themselves hold heads, dropout and conditions; here stands what is no field of a network: the order of
attention's rows, and how the network was trained. From the flags that the projects' README files give.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from diffunet import config as configs
from diffunet.spec import UNetConfig
from diffunet.zoo import preset


@dataclass(frozen=True)
class Told:
    """What the user says of weights and of what becomes of them.

    Args:
        heads, head_channels: of attention; one of them.
        attention_order: legacy or new: how guided-diffusion's attention orders its rows.
        state: which weights of a checkpoint: ema, raw, or their name in the file.
        size: side of the images, in pixels.
        model: keys of the network's config that differ from what the tensors show.
        process: keys of [process]: schedule, prediction, clip.
        preset: whose network it is; what it says is overruled by all of the above.
    """

    heads: int | None = None
    head_channels: int | None = None
    attention_order: str | None = None
    state: str | None = None
    size: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None

    def given(self) -> dict[str, Any]:
        """What is not left unsaid."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    def with_preset(self) -> Told:
        """The same with what its preset says.

        Raises:
            ConfigError: there is no such preset.
        """
        if self.preset is None:
            return self
        config, known = preset(self.preset, UNetConfig), RELEASED.get(self.preset, {})
        heads = {name: getattr(config.attention, name, None) for name in ("heads", "head_channels")}
        if self.heads or self.head_channels:
            heads = {"heads": self.heads, "head_channels": self.head_channels}
        dropout = {"block": {"dropout": config.block.dropout}} if config.block.dropout else {}
        cond = {"cond_channels": config.cond_channels} if config.cond_channels else {}
        model = configs.merge(configs.merge(dropout | cond, known.get("model", {})), self.model)
        return replace(
            self,
            **heads,
            attention_order=self.attention_order or known.get("attention_order"),
            model=model,
            process=configs.merge(known.get("process", {}), self.process),
        )


LINEAR: dict[str, Any] = {"process": {"schedule": {"kind": "linear"}}}
COSINE: dict[str, Any] = {"process": {"schedule": {"kind": "cosine"}}}
COSINE_4000: dict[str, Any] = {"process": {"schedule": {"kind": "cosine", "T": 4000}}}
LEGACY, NEW = {"attention_order": "legacy"}, {"attention_order": "new"}
QUARTER: dict[str, Any] = {"model": {"time": {"scale": 0.25}}}  # --rescale_timesteps: told 1000 / T of the index
RELEASED: dict[str, dict[str, Any]] = {
    "iddpm-cifar10": LEGACY | COSINE_4000 | QUARTER,
    "iddpm-imagenet64": LEGACY | COSINE_4000 | QUARTER,
    "iddpm-lsun": LEGACY | LINEAR,
    "adm-64": NEW | COSINE,
    "adm-128": LEGACY | LINEAR,
    "adm-256": LEGACY | LINEAR,
    "adm-256-uncond": LEGACY | LINEAR,
    "adm-512": LEGACY | LINEAR,
    "adm-upsample-256": LEGACY | LINEAR,
    "adm-upsample-512": LEGACY | LINEAR,
}
