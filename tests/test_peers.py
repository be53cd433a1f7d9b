"""The fixtures of other projects' networks are whole, and tell networks with the same weights apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.peers import cases, read, value

every_case = pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
PROJECTS = {
    "guided-diffusion": 14,
    "improved-diffusion": 2,
    "ddim": 2,
    "edm": 7,
    "edm2": 4,
    "score_sde": 5,
    "k-diffusion": 1,
}


def test_every_project_has_its_cases() -> None:
    assert {project: len(cases(project)) for project in PROJECTS} == PROJECTS
    assert len(cases()) == sum(PROJECTS.values())


@every_case
def test_a_fixture_is_whole(path: Path) -> None:
    case = read(path)
    assert path.stem.startswith(f"{case.project}-")
    sections = (case.arguments, case.arguments.get("model", {}), case.arguments.get("data", {}))
    assert all(any(section.get(flag) == setting for section in sections) for flag, setting in case.flags.items())
    assert all(tensor.isfinite().all() and tensor.abs().max() > 0 for tensor in case.state.values())
    assert len(case.calls) >= 2
    for call in case.calls:
        batch = {len(tensor) for tensor in (call.out, *call.inputs.values())}
        assert batch == {2}
        assert "t" in call.inputs
        assert call.out.dtype == torch.float32
        assert call.out.isfinite().all()
        assert call.out.std() > 0.1
        if "x" in call.inputs:
            assert call.out.shape[2:] == call.inputs["x"].shape[2:]
    assert path.stat().st_size < 60_000


@every_case
def test_the_two_inputs_differ_in_size(path: Path) -> None:
    first, second = (call.out.shape for call in read(path).calls[:2])
    assert first != second or len(first) == 2  # what has no image has no size


def test_weights_follow_from_their_names_for_ever() -> None:
    golden = [0.22128300368785858, 0.09685026109218597, -0.1734914481639862]
    assert value("time_embed.0.weight", [128, 32], 0.0).flatten()[:3].tolist() == pytest.approx(golden, rel=1e-6)
    assert value("out_gain", [], 1.0).item() == pytest.approx(0.9928445816040039, rel=1e-6)
    norm = value("out.0.weight", [32], 1.0)
    assert norm[:2].tolist() == pytest.approx([1.2581079006195068, 0.9682579636573792], rel=1e-6)


def test_weights_keep_the_size_of_what_flows_through_them() -> None:
    wide = value("conv.weight", [64, 128, 3, 3], 0.0)
    assert wide.square().mean().item() == pytest.approx(1 / (128 * 9), rel=0.02)


@pytest.mark.parametrize("kind", ["add-conv", "add-block", "scale-conv", "scale-block"])
def test_the_order_of_queries_keys_and_values_is_seen_in_the_output_only(kind: str) -> None:
    folder = {path.stem: path for path in cases("guided-diffusion")}
    legacy, new = (read(folder[f"guided-diffusion-{order}-{kind}"]) for order in ("legacy", "new"))
    assert legacy.state.keys() == new.state.keys()
    assert all(torch.equal(legacy.state[name], new.state[name]) for name in legacy.state)
    assert torch.equal(legacy.calls[0].inputs["x"], new.calls[0].inputs["x"])
    assert not torch.allclose(legacy.calls[0].out, new.calls[0].out, atol=0.1)
    assert legacy.flags["use_new_attention_order"] is not new.flags["use_new_attention_order"]


@pytest.mark.parametrize("name", ["edm-ddpmpp-augment", "edm-ddpmpp-labels", "edm2-labels", "k-diffusion-image"])
def test_the_third_call_is_the_first_without_its_condition(name: str) -> None:
    path = next(path for path in cases() if path.stem == name)
    first, _, bare = read(path).calls
    assert torch.equal(first.inputs["x"], bare.inputs["x"])
    assert not torch.allclose(first.out, bare.out, atol=0.1)
    assert "y" not in bare.inputs or not bare.inputs["y"].any()
