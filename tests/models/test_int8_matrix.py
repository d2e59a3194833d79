"""Products with a matrix of bytes are exact where bytes hold all, and near the product elsewhere."""

from __future__ import annotations

import pytest
import torch

from gptcli.models import int8_matrix
from gptcli.models.int8_matrix import Int8Matrix
from gptcli.training.device import multiplies_int8

pytestmark = pytest.mark.skipif(not multiplies_int8(), reason="no exact products of bytes here")


@pytest.fixture(params=["layout for few rows", "layout for many rows"])
def _layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_matrix, "_MANY_ROWS", 0 if "many" in request.param else 10**9)


@pytest.mark.usefixtures("_layout")
def test_a_product_of_what_bytes_hold_is_exact() -> None:
    # Whole numbers, from 0 or less to 255 more, times a scale for each row and for each output.
    generator = torch.Generator().manual_seed(4)
    weight = torch.randint(-127, 128, (24, 40), generator=generator).float()
    inputs = torch.randint(-100, 156, (9, 40), generator=generator).float()
    weight[:, 0], inputs[:, 1], inputs[:, 2] = 127, -100, 155
    of_output, of_row = 2.0 ** -torch.arange(24)[:, None], 2.0 ** torch.arange(-4, 5)[:, None]
    bias = torch.randn(24, generator=generator)
    expected = (inputs * of_row).double() @ (weight * of_output).double().t() + bias.double()
    matrix = Int8Matrix(weight * of_output, bias)
    together = matrix.product(inputs * of_row)
    alone = torch.cat([matrix.product(row[None]) for row in inputs * of_row])
    for found in (together, alone):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_layout")
def test_a_product_is_near_the_product() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(64, 96, generator=generator), torch.randn(64, generator=generator)
    inputs = torch.randn(20, 96, generator=generator)
    expected = inputs @ weight.t() + bias
    found = Int8Matrix(weight, bias).product(inputs)
    # Each factor is off by at most half a level: 1/254 of the largest, 1/510 of a range.
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.usefixtures("_layout")
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    generator = torch.Generator().manual_seed(6)
    matrix = Int8Matrix(torch.randn(64, 96, generator=generator))
    inputs = torch.randn(20, 96, generator=generator) * 10.0 ** torch.linspace(-1, 4, 20)[:, None]
    inputs[3], inputs[4], inputs[5] = 0, inputs[4].abs(), -inputs[5].abs()
    alone = torch.cat([matrix.product(row[None]) for row in inputs])
    largest = alone.abs().amax(1, keepdim=True)
    largest[3] = 1
    torch.testing.assert_close(matrix.product(inputs) / largest, alone / largest, rtol=0, atol=1e-5)
    assert torch.equal(matrix.product(inputs[7:9]), matrix.product(inputs)[7:9])


@pytest.mark.usefixtures("_layout")
@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_gives_the_bias(rows: int) -> None:
    matrix = Int8Matrix(torch.zeros(8, 16), torch.arange(8.0))
    assert torch.equal(matrix.product(torch.zeros(rows, 16)), torch.arange(8.0).expand(rows, -1))


def test_the_layout_for_many_rows_gives_the_same_to_the_last_digits() -> None:
    generator = torch.Generator().manual_seed(7)
    weight, bias = torch.randn(64, 96, generator=generator), torch.randn(64, generator=generator)
    matrix = Int8Matrix(weight, bias)
    inputs = torch.randn(200, 96, generator=generator)
    few, many = matrix.product(inputs), matrix.product(inputs)
    assert matrix._for_many_rows is not None
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-5)
