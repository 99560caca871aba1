"""Which weights which optimiser moves, at which rate; and that it goes on as if nothing had happened."""

import copy
import math

import pytest
import torch
from torch import nn

from colbert_zero.recipe.schema import Phase
from colbert_zero.training.optimiser import Together, optimiser_of, warm_up_steps


def phase(**changes):
    plain = {"representation": "dense", "objective": "contrastive", "sources": ["pairs"], "global_batch_size": 8}
    return Phase(**(plain | {"learning_rate": 2.0, "warmup": 0.0} | changes))


def rates(spec, steps):
    """The learning rate of each step."""
    optimiser, schedule = optimiser_of(nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 2))}), spec, steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return found


def test_schedules_are_their_formulas():
    assert rates(phase(schedule="linear"), 4) == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(phase(schedule="cosine"), 4) == pytest.approx([1 + math.cos(math.pi * k / 4) for k in range(4)])
    falling = [2 * (1 - math.sqrt(k / 4)) for k in range(4)]
    assert rates(phase(schedule="wsd", decay=0.5), 8) == pytest.approx([2.0] * 4 + falling)


def test_a_horizon_makes_the_schedule_longer_than_the_phase():
    assert rates(phase(horizon=8), 4) == pytest.approx(rates(phase(), 8)[:4])
    assert warm_up_steps(phase(horizon=100, warmup=0.1), 10) == 10


def test_the_warm_up_is_a_share_of_the_steps_or_their_number():
    assert warm_up_steps(phase(warmup=0.05), 30) == 2
    assert warm_up_steps(phase(warmup=3), 30) == 3
    assert rates(phase(schedule="constant", warmup=4), 6) == pytest.approx([0, 0.5, 1, 1.5, 2, 2])


def test_muon_moves_the_matrices_of_the_encoders_layers_and_adamw_all_else(tiny_multi_vector):
    trained = nn.ModuleDict({"model": copy.deepcopy(tiny_multi_vector)})
    optimiser, _ = optimiser_of(trained, phase(optimiser="muon", weight_decay=0.1), 4)
    adamw, muon = optimiser.parts
    names = {id(weight): name for name, weight in trained.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    by_adamw = {names[id(weight)] for group in adamw.param_groups for weight in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    of_layers = {name for name in by_muon if "encoder.layer" in name and name.endswith("weight")}
    assert len(of_layers) == 2 * 6
    assert all("pooler" in name for name in by_muon - of_layers)  # which no multi-vector model trains
    assert {name for name in by_adamw if "embeddings" in name or "linear" in name}
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0, 0.1]


def test_two_optimisers_together_are_each_alone_also_after_they_were_written_down():
    def make():
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3))]
        return weights, [torch.optim.Muon(weights[:1], lr=0.1), torch.optim.AdamW(weights[1:], lr=0.1)]

    def step(weights, optimisers, number):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.1 * number)
        for optimiser in optimisers:
            optimiser.step()

    alone, parts = make()
    ours, together = make()
    together = Together(*together)
    for number in range(3):
        step(alone, parts, number)
        step(ours, [together], number)
    written = copy.deepcopy(together.state_dict())
    resumed, again = make()
    again = Together(*again)
    again.load_state_dict(written)
    with torch.no_grad():
        for weight, value in zip(resumed, ours, strict=True):
            weight.copy_(value)
    for number in range(3, 6):
        step(alone, parts, number)
        step(ours, [together], number)
        step(resumed, [again], number)
    for one, other, third in zip(alone, ours, resumed, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    for group in together.param_groups:
        group["lr"] = 7.0
    assert [group["lr"] for part in together.parts for group in part.param_groups] == [7.0, 7.0]
