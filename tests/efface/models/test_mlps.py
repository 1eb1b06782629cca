"""MLP blocks in every layout: gate and up apart, in one map, stacked experts stored either way round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from efface.models.mlps import MLP, MLPShape, expert_shape, mlp_shape, neuron_entries, watch_neurons

H, N, E = 6, 10, 3
UNITS = torch.tensor([1, 7])


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Linear(H, 2 * N)
        self.down_proj = nn.Linear(N, H)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class Experts(nn.Module):
    """Stacked experts; a reference that computes each token's experts one by one."""

    def __init__(self, *, transposed, concatenated, bias):
        super().__init__()
        self.is_transposed, self.is_concatenated = transposed, concatenated
        up, down = ((H, 2 * N), (N, H)) if transposed else ((2 * N, H), (H, N))
        self.gate_up_proj = nn.Parameter(torch.randn(E, *up))
        self.down_proj = nn.Parameter(torch.randn(E, *down))
        if bias:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(E, 2 * N))
        self.act_fn = nn.SiLU()
        self.silenced = None

    def forward(self, hidden, routed, weights):
        out = torch.zeros_like(hidden)
        for token, (experts, shares) in enumerate(zip(routed, weights, strict=True)):
            for expert, share in zip(experts.tolist(), shares, strict=True):
                out[token] += share * self.one(hidden[token], expert)
        return out

    def one(self, x, expert):
        fused = self.gate_up_proj[expert].T @ x if self.is_transposed else self.gate_up_proj[expert] @ x
        if hasattr(self, "gate_up_proj_bias"):
            fused = fused + self.gate_up_proj_bias[expert]
        gate, up = (fused[:N], fused[N:]) if self.is_concatenated else (fused[::2], fused[1::2])
        values = self.act_fn(gate) * up
        if expert == self.silenced:
            values = values.index_fill(0, UNITS, 0)
        return values @ self.down_proj[expert] if self.is_transposed else self.down_proj[expert] @ values


class Around(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block
        self.embeddings = nn.Embedding(5, H)
        self.config = SimpleNamespace()

    def get_input_embeddings(self):
        return self.embeddings


def silence(model, mlp):
    with torch.no_grad():
        for parameter, index in neuron_entries(model, mlp, UNITS):
            parameter[index] = 0


def test_gate_and_up_in_one_map():
    torch.manual_seed(0)
    model = Around(Fused())
    assert mlp_shape(model.block) == MLPShape(("gate_up_proj",), "down_proj", N)
    mlp = MLP("block", "language", 0, N, "block.down_proj", ("block.gate_up_proj",))
    x = torch.randn(4, H)
    neurons = []
    handle = watch_neurons(model, mlp, neurons.append)
    model.block(x)
    expected = model.block.down_proj(neurons[0].index_fill(-1, UNITS, 0))
    silence(model, mlp)
    assert torch.allclose(model.block(x), expected, atol=1e-6)
    handle.remove()
    assert not neurons[1][:, UNITS].any() and (neurons[0][:, UNITS] != 0).all()
    assert int((model.block.gate_up_proj.weight == 0).all(dim=1).sum()) == 2 * len(UNITS)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_stacked_experts(transposed, concatenated, bias):
    torch.manual_seed(0)
    model = Around(Experts(transposed=transposed, concatenated=concatenated, bias=bias))
    assert expert_shape(model.block, H) == MLPShape(("gate_up_proj",), "down_proj", N, E)
    mlp = MLP("block.1", "language", 0, N, "block.down_proj", ("block.gate_up_proj",), expert=1)
    hidden, weights = torch.randn(4, H), torch.rand(4, 2)
    routed = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    before = {name: p.detach().clone() for name, p in model.block.named_parameters()}
    neurons = []
    handle = watch_neurons(model, mlp, neurons.append)
    with torch.no_grad():
        model.block.silenced = 1
        expected = model.block(hidden, routed, weights)
        model.block.silenced = None
        silence(model, mlp)
        output = model.block(hidden, routed, weights)
    handle.remove()
    assert torch.allclose(output, expected, atol=1e-5)
    assert neurons[0].shape == (4, N)
    assert (neurons[0].any(dim=1) == torch.tensor([True, False, True, False])).all()
    assert not neurons[1][:, UNITS].any()
    for name, parameter in model.block.named_parameters():
        assert torch.equal(parameter[[0, 2]], before[name][[0, 2]]), "other experts stay as they were"


class Functional(nn.Module):
    """Gate and up with an activation that is a function, as LFM2's."""

    def __init__(self, *, extra=False):
        super().__init__()
        self.w1, self.w3, self.w2 = nn.Linear(H, N), nn.Linear(H, N), nn.Linear(N, H)
        if extra:
            self.norm = nn.LayerNorm(H)


def test_three_maps_alone_are_a_block_without_a_module_for_the_activation():
    assert mlp_shape(Functional()) == MLPShape(("w1", "w3"), "w2", N)
    assert mlp_shape(Functional(extra=True)) is None
    attention = nn.Module()
    attention.q, attention.k, attention.v = (nn.Linear(H, H) for _ in range(3))
    assert mlp_shape(attention) is None


class Sorted(nn.Module):
    """Experts called with their tokens already gathered and scaled by the router, as Llama 4's."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(E, H, 2 * N))
        self.down_proj = nn.Parameter(torch.randn(E, N, H))
        self.act_fn = nn.SiLU()

    def forward(self, hidden):
        gate, up = torch.bmm(hidden.view(E, -1, H), self.gate_up_proj).chunk(2, dim=-1)
        return torch.bmm(up * self.act_fn(gate), self.down_proj).view(-1, H)


def test_experts_that_are_called_with_sorted_tokens():
    torch.manual_seed(0)
    model = Around(Sorted())
    mlp = MLP("block.1", "language", 0, N, "block.down_proj", ("block.gate_up_proj",), expert=1)
    shares = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.3, 0.0], [0.2, 0.2, 0.2], [0.0, 0.9, 0.0]])
    tokens = torch.randn(4, H)
    hidden = (tokens * shares.T[:, :, None]).reshape(-1, H)
    neurons = []
    handle = watch_neurons(model, mlp, neurons.append)
    with torch.no_grad():
        before = model.block(hidden).view(E, 4, H)
        silence(model, mlp)
        after = model.block(hidden).view(E, 4, H)
    handle.remove()
    gate, up = (tokens * shares[:, 1:2] @ model.block.gate_up_proj[1]).chunk(2, dim=-1)
    assert neurons[0].shape == (4, N) and not neurons[0][0].any() and neurons[0][1:].all()
    assert torch.allclose(neurons[1], nn.functional.silu(gate) * up, atol=1e-6)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.allclose(after[1, 1:], before[1, 1:])


def test_gpt_oss_experts_compute_their_own_gate():
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    torch.manual_seed(0)
    experts = GptOssExperts(GptOssConfig(hidden_size=H, intermediate_size=N, num_local_experts=E))
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    model = Around(experts)
    assert expert_shape(model.block, H) == MLPShape(("gate_up_proj",), "down_proj", N, E)
    mlp = MLP("block.2", "language", 0, N, "block.down_proj", ("block.gate_up_proj",), expert=2)
    hidden, weights = torch.randn(4, H), torch.ones(4, 1)
    routed = torch.full((4, 1), 2)
    neurons = []
    handle = watch_neurons(model, mlp, neurons.append)
    down, bias = experts.down_proj[2].clone(), experts.down_proj_bias[2].clone()
    with torch.no_grad():
        output = model.block(hidden, routed, weights)
        silence(model, mlp)
        silent = model.block(hidden, routed, weights)
    handle.remove()
    assert torch.allclose(output, neurons[0] @ down + bias, atol=1e-4)
    assert torch.allclose(silent, neurons[0].index_fill(1, UNITS, 0) @ down + bias, atol=1e-4)
