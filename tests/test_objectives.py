"""InfoNCE in one chunked pass against its logits written out."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import peak_bytes
from colocate.core.objectives import info_nce, vicreg_covariance, vicreg_invariance, vicreg_variance
from tests.reference.info_nce import info_nce as slow_info_nce

unchecked = inspect.unwrap(info_nce)  # without the tests' check of types, as users have it


def _vectors(
    r: int, m: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalised queries, keys and negatives, of very different lengths; the keys resemble the queries."""
    generator = torch.Generator().manual_seed(seed)
    query, noise, negatives = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (r, r, m))
    lengths = torch.rand(r, 1, generator=generator, dtype=torch.float64) * 20 + 0.05
    return (query * lengths).to(dtype), (query + noise).to(dtype), (3 * negatives).to(dtype)


def _value_and_gradients(loss: object, query: Tensor, key: Tensor, *rest: object, **how: object) -> list[Tensor]:
    query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
    value = loss(query, key, *rest, **how)  # type: ignore[operator]
    return [value.detach(), *torch.autograd.grad(value, (query, key))]


def _agree(ours: list[Tensor], expected: list[Tensor], relative: float, rounding: float) -> None:
    """To `relative` of each gradient's largest number, or to `rounding` of terms that cancel."""
    torch.testing.assert_close(ours[0], expected[0], rtol=relative, atol=relative)
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=relative * float(theirs.abs().max()) + rounding)


sizes = {"r": st.integers(1, 40), "m": st.integers(1, 30), "d": st.integers(2, 9), "seed": st.integers(0, 1000)}


@given(
    **sizes,
    chunk=st.integers(1, 50),
    temperature=st.sampled_from([0.01, 0.02, 0.0251, 0.07, 0.2, 1.0, 5.0]),
    extra=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_plain_formula(
    r: int, m: int, d: int, seed: int, chunk: int, temperature: float, extra: int, dtype: torch.dtype
) -> None:
    query, key, negatives = _vectors(r, m, d, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(r, generator=generator) * 1.5 - 0.5).clamp(0, 1).to(dtype)  # a third of them zero
    how = {"temperature": temperature, "count": r + extra}
    ours = _value_and_gradients(info_nce, query, key, negatives, weight, chunk=chunk, **how)
    exact = [x.double() for x in (query, key, negatives, weight)]
    expected = _value_and_gradients(slow_info_nce, *exact, **how)
    expected = [x.to(dtype) for x in expected]
    shortest = min(float(x.norm(dim=1).min()) for x in (query, key))
    rounding = 4 * torch.finfo(dtype).eps / (temperature * shortest * (r + extra))
    _agree(ours, expected, 1e-9 if dtype == torch.float64 else 1e-5 / min(temperature, 1), rounding)


def test_no_weights_is_weight_one_and_the_mean() -> None:
    query, key, negatives = _vectors(5, 11, 4)
    plain = info_nce(query, key, negatives)
    assert plain == info_nce(query, key, negatives, torch.ones(5)) == info_nce(query, key, negatives, count=5)
    torch.testing.assert_close(plain, slow_info_nce(query, key, negatives))


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_more_negatives_than_are_taken_at_once(temperature: float) -> None:
    query, key, negatives = _vectors(5, 2100, 6)
    ours = _value_and_gradients(info_nce, query, key, negatives, temperature=temperature, chunk=2)
    expected = _value_and_gradients(slow_info_nce, query, key, negatives, temperature=temperature)
    _agree(ours, expected, 1e-9, rounding=1e-12)


def test_the_value_of_a_case_done_by_hand() -> None:
    query, key = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.1]])  # at right angles
    negatives = torch.tensor([[5.0, 0.0], [-1.0, 0.0]])  # the same direction, and the opposite one
    expected = math.log(1 + math.exp(2) + math.exp(-2))
    assert float(info_nce(query, key, negatives, temperature=0.5)) == pytest.approx(expected, rel=1e-6)
    half = info_nce(query, key, negatives, torch.tensor([0.5]), temperature=0.5, count=4)
    assert float(half) == pytest.approx(expected / 8, rel=1e-6)


def test_a_zero_key_of_weight_zero_stays_finite() -> None:
    """What a pooled cell is where nothing was shared."""
    query, key, negatives = _vectors(4, 9, 5, torch.float32)
    key[2] = 0
    query[3] = 0
    results = _value_and_gradients(info_nce, query, key, negatives, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert all(bool(x.isfinite().all()) for x in results)


def test_gradcheck() -> None:
    query, key, negatives = _vectors(7, 9, 4)
    weight = torch.tensor([0, 0.2, 1, 0.7, 0, 1, 0.01], dtype=torch.float64)
    for temperature in (0.02, 0.2):

        def loss(q: Tensor, k: Tensor, temperature: float = temperature) -> Tensor:
            return info_nce(q, k, negatives, weight, temperature=temperature, chunk=3)

        assert torch.autograd.gradcheck(loss, (query.requires_grad_(), key.requires_grad_()), rtol=1e-4)
        assert torch.autograd.gradcheck(lambda q: loss(q, key.detach()), (query,), rtol=1e-4)
        assert torch.autograd.gradcheck(lambda k: loss(query.detach(), k), (key,), rtol=1e-4)


def test_learned_weights_get_their_gradient() -> None:
    """It was none, in silence."""
    query, key, negatives = _vectors(7, 9, 4)
    weight = torch.rand(7, dtype=torch.float64).requires_grad_()
    for temperature in (0.02, 0.2):

        def loss(w: Tensor, temperature: float = temperature) -> Tensor:
            return info_nce(query, key, negatives, w, temperature=temperature, chunk=3)

        assert torch.autograd.gradcheck(loss, (weight,), rtol=1e-4)
        each = [
            slow_info_nce(*(x[i : i + 1] for x in (query, key)), negatives, temperature=temperature) / 7
            for i in range(7)
        ]
        torch.testing.assert_close(torch.autograd.grad(loss(weight), weight)[0], torch.stack(each))
    low = weight.detach().to(torch.bfloat16).requires_grad_()
    info_nce(query.requires_grad_(), key, negatives, low).backward()
    assert query.grad is not None and low.grad is not None and low.grad.dtype == torch.bfloat16


def test_the_upstream_gradient_is_passed_on() -> None:
    query, key, negatives = _vectors(6, 9, 4)
    query, key = query.requires_grad_(), key.requires_grad_()
    single = torch.autograd.grad(info_nce(query, key, negatives), (query, key))
    thrice = torch.autograd.grad(-3 * info_nce(query, key, negatives), (query, key))
    for a, b in zip(single, thrice, strict=True):
        torch.testing.assert_close(-3 * a, b)


def test_gradients_go_where_they_are_asked_for_and_nowhere_else() -> None:
    query, key, negatives = _vectors(6, 9, 4)
    assert not info_nce(query, key, negatives).requires_grad
    with torch.no_grad():
        assert not info_nce(query.requires_grad_(), key, negatives).requires_grad

    query, key = query.detach().requires_grad_(), key.detach()
    info_nce(query, key, negatives.requires_grad_()).backward()
    assert query.grad is not None and key.grad is None and negatives.grad is None

    query, key = query.detach(), key.requires_grad_()
    info_nce(query, key, negatives).backward()
    assert query.grad is None and key.grad is not None


def test_inputs_are_left_as_they_were() -> None:
    inputs = (*_vectors(6, 9, 4, torch.float32), torch.rand(6))
    before = [x.clone() for x in inputs]
    _value_and_gradients(info_nce, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_meet_a_float32_softmax(low: torch.dtype) -> None:
    query, key, negatives = _vectors(12, 40, 16, low)
    ours = _value_and_gradients(info_nce, query, key, negatives, temperature=0.07)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == low
    expected = _value_and_gradients(slow_info_nce, query.double(), key.double(), negatives.double(), temperature=0.07)
    # The inputs are rounded, the work is not: the value is good to float32, the gradients to the inputs' own type.
    torch.testing.assert_close(ours[0], expected[0].float(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.01, atol=1e-3 * float(theirs.abs().max()))


def test_autocast_does_not_reach_inside() -> None:
    query, key, negatives = _vectors(12, 40, 16, torch.float32)
    plain = _value_and_gradients(info_nce, query, key, negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = _value_and_gradients(info_nce, query, key, negatives)
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.024, 0.026])
def test_sharp_temperatures_stay_finite(temperature: float) -> None:
    """Identical and opposite vectors give the largest logits there are."""
    query = torch.eye(4)
    negatives = torch.cat([torch.eye(4), -torch.eye(4)]).repeat(500, 1)
    for key in (query, -query):
        results = _value_and_gradients(info_nce, query, key, negatives, temperature=temperature)
        assert all(bool(x.isfinite().all()) for x in results)
        expected = slow_info_nce(query, key, negatives, temperature=temperature)
        # A logit of 1 / temperature is itself rounded.
        torch.testing.assert_close(results[0], expected, rtol=1e-5, atol=1e-7 / temperature)


def test_no_rows_lose_nothing() -> None:
    """All crops of a batch may be disjoint: then the loss is zero, and its gradient too."""
    query, key, negatives = _vectors(0, 9, 4)
    query, key = query.requires_grad_(), key.requires_grad_()
    for count in (None, 98):
        loss = info_nce(query, key, negatives, torch.zeros(0), count=count)
        assert float(loss.detach()) == 0
        gradients = torch.autograd.grad(loss, (query, key))
        assert [g.shape for g in gradients] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_no_negatives_lose_nothing(temperature: float) -> None:
    query, key, _ = _vectors(5, 1, 4)
    loss = info_nce(query, key, torch.zeros(0, 4, dtype=torch.float64), temperature=temperature)
    assert float(loss) == pytest.approx(0, abs=1e-12)


def test_shapes_and_temperatures_that_do_not_fit_are_refused() -> None:
    query, key, negatives = _vectors(6, 9, 4)
    for wrong in ((query[:, :3], key, negatives), (query, key[:5], negatives), (query, key, negatives[:, :3])):
        with pytest.raises((ValueError, TypeCheckError)):
            info_nce(*wrong)
    for temperature in (0, -0.2, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            info_nce(query, key, negatives, temperature=temperature)
    for weight in (torch.rand(6, 1), torch.rand(12), torch.rand(1), torch.rand(2, 3), torch.tensor(0.5)):
        with pytest.raises(ValueError, match="do not fit 6 queries"):
            unchecked(query, key, negatives, weight)
    many = query.repeat(256, 1)  # three chunks: more weights than rows went unnoticed
    with pytest.raises(ValueError, match="do not fit 1536 queries"):
        unchecked(many, many, negatives, torch.rand(2000, dtype=torch.float64))


def test_vectors_and_weights_that_do_not_fit_are_refused_by_vicreg() -> None:
    """A weight of (b, n, 1) made b x n x n products where b = n."""
    alone = inspect.unwrap(vicreg_invariance)
    x, y = torch.rand(2, 3, 3, 4)
    alone(x, y, torch.rand(3, 3))
    for wrong in ((x, y[:1]), (x, y[0]), *((x, y, torch.ones(shape)) for shape in ((3, 3, 1), (3,), (3, 1), ()))):
        with pytest.raises(ValueError, match="do not fit"):
            alone(*wrong)


@pytest.mark.parametrize("term", [vicreg_variance, vicreg_covariance])
@pytest.mark.parametrize("samples", [0, 1])
def test_one_sample_has_no_variance(term: Any, samples: int) -> None:
    """The term was nan."""
    with pytest.raises(ValueError, match="need two samples or more"):
        term(torch.rand(samples, 3, 4))


def test_a_temperature_that_would_not_learn_is_refused() -> None:
    query, key, negatives = _vectors(6, 9, 4)
    learned = torch.nn.Parameter(torch.tensor(0.3))
    with pytest.raises(ValueError, match="gets no gradient here: give a number"):
        unchecked(query, key, negatives, temperature=learned)
    fixed = unchecked(query, key, negatives, temperature=learned.detach())  # a buffer may be one
    torch.testing.assert_close(fixed, info_nce(query, key, negatives, temperature=0.3))


def test_nothing_as_large_as_the_logits_is_kept_or_made() -> None:
    r, m, d, chunk = 1000, 700, 8, 50
    query, key, negatives = (x.requires_grad_() for x in _vectors(r, m, d, torch.float32))
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, Tensor):
                    self.largest = max(self.largest, x.numel())
            return out

    with Sizes() as ours, saved_tensors_hooks(keep, lambda x: x):
        info_nce(query, key, negatives, chunk=chunk).backward()
    assert max(saved) <= max(r, m) * d
    assert ours.largest <= chunk * m
    with Sizes() as materialised:
        slow_info_nce(query, key, negatives).backward()
    assert materialised.largest >= r * m  # or the measure sees nothing


@pytest.mark.slow
@pytest.mark.parametrize(("tiles", "cells"), [(256, 7), (32, 28)])
def test_memory_of_the_dense_loss_is_bounded(tiles: int, cells: int) -> None:
    """At 28 x 28 cells as at 7 x 7, beyond inputs and gradients; its logits would be 1.6 and 3.3 GB."""
    rows = 2 * tiles * cells**2
    query, key, negatives = torch.randn(rows, 128, requires_grad=True), torch.randn(rows, 128), torch.randn(16_384, 128)
    most = peak_bytes(lambda: torch.autograd.grad(info_nce(query, key, negatives), query))
    assert most < 200 << 20
