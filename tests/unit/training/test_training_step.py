"""One training step against the obvious one: single documents, single experts, single matrices."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moonshard.model.decoder import Decoder
from moonshard.model.experts import ExpertStack, PlainProjection
from moonshard.model.int4 import dequantise, quantise
from moonshard.model.moe import LocalExperts
from moonshard.model.reference import attend_whole
from moonshard.training.model import Batch, Model
from moonshard.training.muon import MuonAdamW, orthogonalise
from moonshard.training.parameters import Parameters
from moonshard.training.recipe import Recipe
from moonshard.training.replicas import Replicas

DOCUMENTS = ((0, 5, 12), (0, 9, 12), (0, 3, 12))


@pytest.fixture
def parameters(recipe: Recipe) -> Parameters:
    return Parameters.initialise(recipe.spec.config, seed=1)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 2048, (3, 12), generator=generator)
    documents, positions = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, cuts in enumerate(DOCUMENTS):
        for number, (start, end) in enumerate(pairwise(cuts), start=1):
            documents[row, start:end] = number
            positions[row, start:end] = torch.arange(end - start)
    weights = torch.rand(3, 12, generator=generator) * (positions > 0)
    return Batch(tokens, documents, positions, weights)


def plain_loss(recipe: Recipe, parameters: Parameters, batch: Batch, rounded: bool = False) -> Tensor:
    """Document after document through the reference's layers; autograd finds the gradients."""

    def projection(weights: Tensor) -> PlainProjection:
        return PlainProjection(weights + (dequantise(*quantise(weights)) - weights).detach() if rounded else weights)

    every = range(recipe.spec.n_routed_experts)
    stacks = {i: ExpertStack(every, projection(e.gate_up), projection(e.down)) for i, e in parameters.experts.items()}
    decoder = Decoder(recipe.spec.config, parameters.decoder, LocalExperts(stacks))
    total, weight = torch.zeros(()), torch.zeros(())
    for row, cuts in enumerate(DOCUMENTS):
        for start, end in pairwise(cuts):
            tokens = batch.tokens_BS[row, start:end]
            logits = decoder.logits(decoder.forward(tokens, torch.arange(end - start), attend_whole))
            for place in range(1, end - start):
                share = batch.weights_BS[row, start + place]
                total = total - share * logits[place - 1].log_softmax(-1)[tokens[place]]
                weight = weight + share
    return total / weight


def gradients(parameters: Parameters) -> dict[str, Tensor]:
    found = {}
    for name, tensor in parameters.named():
        assert tensor.grad is not None, name
        found[name] = tensor.grad.clone()
        tensor.grad = None
    return found


@pytest.mark.parametrize("rounded", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_reference(
    recipe: Recipe, parameters: Parameters, batch: Batch, rounded: bool
) -> None:
    expected = plain_loss(recipe, parameters, batch, rounded)
    expected.backward()  # type: ignore[no-untyped-call]
    expected_gradients = gradients(parameters)
    model = Model(recipe.spec.config, parameters)
    model.routed.quantised = rounded
    loss, _ = model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, found in gradients(parameters).items():
        torch.testing.assert_close(found, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_threads_share_a_step_without_changing_it(recipe: Recipe, parameters: Parameters, batch: Batch) -> None:
    with Replicas(recipe.spec.config, parameters, 1) as alone:
        expected = alone.gradients(batch, quantised=False)
    expected_gradients = gradients(parameters)
    with Replicas(recipe.spec.config, parameters, 2) as pair:
        found = pair.gradients(batch, quantised=False)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, gradient in gradients(parameters).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    for layer, counts in expected.counts.items():
        assert found.counts[layer].tolist() == counts.tolist()
        assert int(counts.sum()) == batch.tokens_BS.numel() * recipe.spec.num_experts_per_tok
    for layer, logits in expected.max_logits.items():
        torch.testing.assert_close(found.max_logits[layer], logits)


def test_muon_moves_every_matrix_by_itself(parameters: Parameters) -> None:
    generator = torch.Generator().manual_seed(3)
    before = {name: tensor.detach().clone() for name, tensor in parameters.named()}
    given = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in parameters.named()}
    for name, tensor in parameters.named():
        tensor.grad = given[name].clone()
    MuonAdamW(parameters, momentum=0.5, weight_decay=0.1).step(muon_lr=0.01, adam_lr=0.02)
    for matrix in parameters.matrices():
        after = matrix.tensor.detach()
        for old, new, gradient in zip(
            *(t.split(matrix.parts, -2) for t in (before[matrix.name], after, given[matrix.name])), strict=True
        ):
            for index in range(old[..., 0, 0].numel()):
                one, other, g = (t.reshape(-1, *t.shape[-2:])[index] for t in (old, new, gradient))
                # The first step's momentum is the gradient: Nesterov's look ahead only scales it.
                update = orthogonalise(1.5 * g) * 0.2 * max(g.shape) ** 0.5
                torch.testing.assert_close(other, one * (1 - 0.01 * 0.1) - 0.01 * update, rtol=0, atol=3e-4)
    for name, tensor in parameters.others():
        step = (tensor.detach() - before[name]) / 0.02
        torch.testing.assert_close(step, -given[name].sign(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24), (5, 16, 48)])
def test_orthogonalise_makes_singular_values_nearly_one(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    found = orthogonalise(matrix)
    values = torch.linalg.svdvals(found)
    assert float(values.max()) < 1.35
    assert float(values.mean()) > 0.6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert float(torch.nn.functional.cosine_similarity(found.flatten(), (u @ vh).flatten(), dim=0)) > 0.95


def test_the_schedule_warms_up_and_falls_to_its_end(recipe: Recipe) -> None:
    long = dataclasses.replace(recipe, num_steps=100, warmup_steps=10, final_lr=0.1)
    factors = [long.lr_factor(step) for step in range(100)]
    assert factors[0] == 0.1
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert [long.is_quantised(step) for step in (0, 49, 50, 99)] == [False, False, True, True]
