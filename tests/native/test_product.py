"""Compiled code multiplies numbers of bfloat16 as float64 does, but for the rounding of float32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.native.product import multiply
from tests.conftest import skip_without_compiled_code, thread_counts

DTYPES = (torch.bfloat16, torch.float32)
# Half the relative distance between neighbours.
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-24}


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    skip_without_compiled_code("product")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def contiguous(matrix: Tensor) -> Tensor:
    return matrix


def transposed(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous().T


def part_of_a_wider_one(matrix: Tensor) -> Tensor:
    """Return it where its rows begin anywhere."""
    wider = matrix.new_full((len(matrix), matrix.shape[1] + 7), math.nan)
    wider[:, 3:-4] = matrix
    return wider[:, 3:-4]


def spread(matrix: Tensor) -> Tensor:
    """Return it with nothing beside each other."""
    wider = matrix.new_full((2 * len(matrix), 2 * matrix.shape[1]), math.nan)
    wider[::2, ::2] = matrix
    return wider[::2, ::2]


Layout = Callable[[Tensor], Tensor]
LAYOUTS = pytest.mark.parametrize("layout", [contiguous, transposed])


def assert_near(found: Tensor, left: Tensor, right: Tensor, added: Tensor | None = None) -> None:
    """Compare with the exact product plus what is added, as far as sums in float32 may be from it."""
    exact_left, exact_right = (matrix.bfloat16().double() for matrix in (left, right))
    others = torch.zeros(()) if added is None else added.double()
    expected = exact_left @ exact_right + others
    sizes = exact_left.abs() @ exact_right.abs() + others.abs()
    tolerance = (left.shape[1] + 4) * 2**-24 * sizes + ROUNDING[found.dtype] * expected.abs()
    assert found.isfinite().all()
    assert ((found.double() - expected).abs() <= 1.01 * tolerance).all()


# Around units of 16 and slabs of 32 rows, chunks of up to 384 numbers, and blocks of 384 by 384 outputs.
@pytest.mark.parametrize("width", [5, 48, 391])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 383, 384, 385, 800])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65, 513])
def test_products_are_those_of_float64(rows: int, length: int, width: int) -> None:
    left, right = random(rows, length), random(length, width, seed=1)
    results: dict[torch.dtype, list[Tensor]] = {dtype: [] for dtype in DTYPES}
    layouts = itertools.product((contiguous, transposed), repeat=2)
    for (lay_left, lay_right), types in itertools.product(layouts, itertools.product(DTYPES, repeat=3)):
        outputs = torch.full((rows, width), math.nan, dtype=types[2])
        multiply(lay_left(left.to(types[0])), lay_right(right.to(types[1])), outputs)
        results[types[2]].append(outputs)
    for found in results.values():
        assert_near(found[0], left, right)
        # Where numbers lie, and whether they are rounded already, changes nothing.
        assert all(torch.equal(outputs, found[0]) for outputs in found)


@pytest.mark.parametrize("lay_right", [contiguous, transposed])
def test_a_matrix_too_large_for_caches_is_laid_out_the_same(lay_right: Layout) -> None:
    left, right = random(33, 64), random(64, 2**17 + 5, seed=1).bfloat16()
    outputs, totals = torch.full((33, 2**17 + 5), math.nan), torch.empty(2**17 + 5)
    multiply(left, lay_right(right), outputs, right_totals=totals)
    assert_near(outputs, left, right)
    # As those of a part that is not as large.
    of_part = torch.empty(2**12)
    multiply(left, lay_right(right[:, : 2**12]), torch.empty(33, 2**12), right_totals=of_part)
    assert torch.equal(totals[: 2**12], of_part)


@pytest.mark.parametrize("layouts", list(itertools.product([part_of_a_wider_one, spread], repeat=2)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matrices_may_lie_anywhere(layouts: tuple[Layout, Layout], dtype: torch.dtype) -> None:
    left, right = random(70, 300).to(dtype), random(300, 90, seed=1).to(dtype)
    outputs = torch.empty(70, 90)
    multiply(layouts[0](left), layouts[1](right), outputs)
    assert_near(outputs, left, right)
    of_transposed = torch.empty(90, 70)
    multiply(layouts[0](right.T.contiguous()).contiguous(), layouts[1](left).T, of_transposed)
    assert torch.equal(of_transposed, outputs.T)


def test_rows_of_outputs_may_be_repeated_inputs() -> None:
    row, column = random(1, 40), random(40, 1, seed=1)
    outputs = torch.empty(50, 33)
    multiply(row.expand(50, 40), column.expand(40, 33), outputs)
    assert_near(outputs, row.expand(50, 40), column.expand(40, 33))


# Rows of outputs that begin a line of memory each, of 64 bytes, are written in another way.
@pytest.mark.parametrize(("start", "stride"), [(32, 512), (3, 512), (7, 401)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (33, 32), (40, 45), (520, 390)])
def test_outputs_get_product_and_bias_and_what_is_around_them_stays(
    rows: int,
    width: int,
    *,
    has_bias: bool,
    adds: bool,
    dtype: torch.dtype,
    start: int,
    stride: int,
) -> None:
    whole = torch.full((rows + 2, stride), 7.0, dtype=dtype)
    outputs = whole[1:-1, start : start + width]
    left, right, bias = random(rows, 60), random(60, width, seed=1), random(width, seed=2)
    before = random(rows, width, seed=3).to(dtype)
    # Of what is not added to, nothing may be left.
    outputs.copy_(before) if adds else outputs.fill_(math.nan)
    multiply(left, right, outputs, bias=bias if has_bias else None, adds=adds)
    assert_near(outputs, left, right, has_bias * bias + adds * before.float())
    outputs.fill_(7)
    assert (whole == 7).all()


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("length", "width"), [(1, 1), (31, 33), (32, 32), (33, 5), (257, 47), (700, 391)]
)
def test_totals_are_those_of_the_right_matrix_as_it_is_multiplied(
    length: int, width: int, dtype: torch.dtype, layout: Layout
) -> None:
    left, right = random(20, length), random(length, width, seed=1).to(dtype)
    outputs = torch.empty(20, width)
    room = torch.full((width + 64,), 7.0)
    multiply(left, layout(right), outputs, right_totals=room[32:-32])
    assert_near(outputs, left, right)
    assert_near(room[32:-32][None], torch.ones(1, length), right)
    totals = room[32:-32].clone()
    multiply(left, layout(right), outputs, right_totals=room[32:-32], adds=True)
    assert torch.equal(room[32:-32], totals + totals)
    room[32:-32] = 7
    assert (room == 7).all()


@LAYOUTS
@pytest.mark.parametrize(("rows", "length", "width"), [(1, 700, 33), (65, 257, 40), (600, 300, 800)])
def test_the_number_of_threads_changes_nothing(
    rows: int, length: int, width: int, layout: Layout
) -> None:
    left, right, bias = random(rows, length), random(length, width, seed=1), random(width, seed=2)
    results = []
    for _ in thread_counts(1, 2, 3, 7):
        outputs, totals = torch.empty(rows, width), torch.empty(width)
        multiply(layout(left), layout(right), outputs, bias=bias, right_totals=totals)
        results.append((outputs, totals))
    assert_near(results[0][0], left, right, bias)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


# The first place, the last one, those of a slab's second unit, and those behind whole slabs.
PLACES = pytest.mark.parametrize("place", [(0, 0), (17, 31), (34, 32), (40, 46)])


@PLACES
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("output_dtype", DTYPES, ids=str)
def test_what_is_no_number_comes_to_its_own_outputs_alone(
    output_dtype: torch.dtype, value: float, dtype: torch.dtype, layout: Layout, place: tuple[int, int]
) -> None:
    row, inner = place
    sizes = random(41, 47).to(dtype)
    others = random(47, 37, seed=1).to(dtype)
    others[:, 3] = 0  # With which an infinite number has no product.
    changed = sizes.clone()
    changed[row, inner] = value
    expected, outputs = (torch.empty(41, 37, dtype=output_dtype) for _ in range(2))
    multiply(sizes, others, expected)
    expected[row] = value * others[inner]
    multiply(layout(changed), layout(others), outputs)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0, equal_nan=True)
    # And so on the right side, where it comes to its total, too.
    expected, outputs = expected.T.contiguous(), torch.empty(37, 41, dtype=output_dtype)
    expected_totals, totals = torch.empty(41), torch.empty(41)
    multiply(others.T, sizes.T, torch.empty(37, 41), right_totals=expected_totals)
    expected_totals[row] = value
    multiply(layout(others.T.contiguous()), layout(changed.T.contiguous()), outputs, right_totals=totals)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(totals, expected_totals, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 5])
def test_what_is_no_number_among_what_is_added_stays_in_its_place(
    start: int, dtype: torch.dtype
) -> None:
    left, right, bias = random(3, 20), random(20, 40, seed=1), torch.zeros(40)
    outputs = torch.zeros(3, 64, dtype=dtype)[:, start : start + 40]
    bias[33], outputs[1, 2] = math.nan, math.inf
    multiply(left, right, outputs, bias=bias, adds=True)
    is_nan, is_infinite = torch.zeros(3, 40, dtype=torch.bool), torch.zeros(3, 40, dtype=torch.bool)
    is_nan[:, 33], is_infinite[1, 2] = True, True
    assert torch.equal(outputs.isnan(), is_nan)
    assert torch.equal(outputs.isinf(), is_infinite)


def test_what_is_too_large_for_bfloat16_is_infinite() -> None:
    largest = torch.finfo(torch.float32).max
    outputs = torch.empty(1, 2)
    multiply(torch.ones(1, 40), torch.full((40, 2), largest) * torch.eye(40, 2), outputs)
    assert outputs.tolist() == [[math.inf, math.inf]]


@pytest.mark.parametrize(("rows", "width"), [(0, 5), (5, 0)])
def test_without_outputs_nothing_is_done(rows: int, width: int) -> None:
    multiply(random(rows, 8), random(8, width), torch.empty(rows, width))


def test_a_sum_of_nothing_is_the_bias() -> None:
    outputs, bias = torch.full((40, 50), 5.0), torch.randn(50)
    multiply(torch.empty(40, 0), torch.empty(0, 50), outputs, bias=bias)
    assert torch.equal(outputs, bias.expand(40, 50))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 31, 32, 65, 500, 900])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_symmetric_product_is_the_same_by_half_of_its_sums(
    is_transposed: bool, size: int, dtype: torch.dtype
) -> None:
    matrix = random(size, 70).bfloat16()
    matrix = matrix.T.contiguous().T if is_transposed else matrix
    whole, by_half = (torch.full((size, size), math.nan, dtype=dtype) for _ in range(2))
    multiply(matrix, matrix.T, whole)
    multiply(matrix, matrix.T, by_half, is_symmetric=True)
    assert torch.equal(whole, by_half)
    # Of a symmetric matrix with itself, with itself added.
    gram = whole.bfloat16()
    square = partial(multiply, gram, gram, scale=2.0315, added=gram, added_scale=-4.775)
    whole, by_half = (torch.empty_like(gram) for _ in range(2))
    square(whole)
    square(by_half, is_symmetric=True)
    assert torch.equal(whole, by_half)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 3])
def test_outputs_are_scaled_and_added_to_in_this_order(start: int, dtype: torch.dtype) -> None:
    left, right, bias = random(70, 90), random(90, 40, seed=1), random(40, 1, seed=2)[:, 0]
    added = random(70, 64, seed=3).bfloat16()[:, start : start + 40]
    residual = random(70, 64, seed=5)[:, start : start + 40]
    outputs = random(70, 64, seed=4).to(dtype)[:, start : start + 40]
    product = left.bfloat16().double() @ right.bfloat16().double()
    expected = -0.5 * product + bias + 3 * added.double() + residual.double() + outputs.double()
    put = partial(multiply, added=added, added_scale=3.0, residual=residual, adds=True)
    put(left, right, outputs, bias=bias, scale=-0.5)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    assert (outputs.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("start", [0, 3])
def test_outputs_may_be_activated_too(start: int) -> None:
    left, right = random(70, 90), random(90, 40, seed=1)
    outputs, activated = torch.empty(2, 70, 64, dtype=torch.bfloat16)[..., start : start + 40].unbind()
    multiply(left, right, outputs, activated=activated)
    assert_near(outputs, left, right)
    expected = F.gelu(outputs.double(), approximate="tanh")
    assert ((activated.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()
    far = torch.tensor([[-60.0, 60.0, -1e30, 1e30]] * 16).T.repeat(8, 1).bfloat16()
    outputs, activated = torch.empty(2, 32, 32, dtype=torch.bfloat16).unbind()
    multiply(far[:, :1], torch.ones(1, 32), outputs, activated=activated)
    assert torch.allclose(activated.float(), far[:, :1].float().clamp(min=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("length", [31, 64])
def test_the_left_matrix_is_activated_and_outputs_are_multiplied_with_the_slope(
    length: int, is_transposed: bool
) -> None:
    left = (3 * random(64, length)).bfloat16()
    given = left.T.contiguous().T if is_transposed else left
    right, outputs = random(length, 50, seed=1).bfloat16(), torch.empty(64, 50)
    multiply(given, right, outputs, is_left_activated=True)
    # Its own rounding of what is activated differs from torch's where they are a bit of float32 apart.
    activated = F.gelu(left.float(), approximate="tanh").bfloat16()
    expected = activated.double() @ right.double()
    assert (outputs.double() - expected).abs().max() <= 2**-9 * expected.abs().max()
    at = (3 * random(64, 50, seed=2)).bfloat16()
    point = at.double().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(point, approximate="tanh").sum(), point)
    expected = (left.double() @ right.double()) * slope
    multiply(given, right, outputs, slopes_at=at)
    assert (outputs.double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    far = torch.tensor([[-60.0, 60.0, -1e30, 1e30]]).bfloat16()
    outputs = torch.empty(1, 4)
    multiply(torch.ones(1, 1), torch.ones(1, 4), outputs, slopes_at=far)
    assert outputs[0].tolist() == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-18)
