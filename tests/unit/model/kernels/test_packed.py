"""Packed weights multiply as the plain ones do, and a row's bits are its own."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.native import library
from glm_cluster.model.kernels.packed import PackedLinear

native = library()
pytestmark = pytest.mark.skipif(isinstance(native, Refusal), reason=getattr(native, "reason", ""))

DTYPES = [torch.bfloat16, torch.float32]
SHAPES = [(2, 1), (24, 65), (64, 64), (576, 130), (1026, 200), (3072, 64)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    native.glm_set_threads(2)
    yield
    native.glm_set_threads(torch.get_num_threads())


def _linear(columns: int, rows: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(columns + rows)
    linear.weight.copy_(torch.randn(rows, columns, generator=generator))
    if bias:
        linear.bias.copy_(torch.randn(rows, generator=generator))
    return linear.to(dtype)


def _x(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
def test_equals_the_product_in_double(columns: int, rows: int, dtype: torch.dtype) -> None:
    """bf16: one rounding of the result; fp32: the error of a chain of `columns` additions."""
    linear = _linear(columns, rows, dtype, bias=True)
    x = _x(19, columns, dtype)
    wanted = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    bound = 2**-8 if dtype == torch.bfloat16 else 1e-6
    atol = bound * columns**0.5 if dtype == torch.bfloat16 else 1e-7 * columns  # the terms cancel, their errors do not
    torch.testing.assert_close(PackedLinear(native, [linear])(x).double(), wanted, rtol=bound, atol=atol)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
def test_a_row_has_the_same_bits_in_any_company(columns: int, rows: int, dtype: torch.dtype, quantization: str) -> None:
    """Alone, among any number of rows up to those of a prompt, behind a neighbour a thousand times larger."""
    packed = PackedLinear(native, [_linear(columns, rows, dtype)], quantization)
    x = _x(80, columns, dtype)
    alone = torch.cat([packed(row) for row in x.split(1)])
    for count in (2, 3, 5, 6, 7, 8, 13, 16, 31, 80):
        assert torch.equal(packed(x[:count]), alone[:count]), count
        assert torch.equal(packed(x[-count:]), alone[-count:]), count
    loud = x.clone()
    loud[0] *= 1000
    assert torch.equal(packed(loud)[1:], alone[1:])


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_threads_do_not_move_a_bit(quantization: str) -> None:
    packed = PackedLinear(native, [_linear(576, 1000, torch.bfloat16)], quantization)
    x = _x(33, 576, torch.bfloat16)
    wanted = packed(x)
    for threads in (1, 3, 8):
        native.glm_set_threads(threads)
        assert all(torch.equal(packed(x), wanted) for _ in range(20))


def test_several_read_the_same_rows_and_answer_side_by_side() -> None:
    def linears() -> list[nn.Linear]:
        return [_linear(96, rows, torch.bfloat16, bias=True) for rows in (70, 10, 10)]

    x = _x(4, 96, torch.bfloat16)
    wanted = torch.cat([PackedLinear(native, [linear])(x) for linear in linears()], dim=-1)
    assert torch.equal(PackedLinear(native, linears())(x), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [2, 22, 576])
def test_int8_is_what_rounding_weights_by_row_and_activations_by_token_gives(columns: int, dtype: torch.dtype) -> None:
    linear = _linear(columns, 70, dtype, bias=True)
    x = _x(9, columns, dtype)

    def whole(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        peak = t.float().abs().amax(-1, keepdim=True)
        return (t.float() * torch.tensor(127.0).div(peak)).round(), peak / 127

    (q, q_scale), (w, w_scale) = whole(x), whole(linear.weight)
    wanted = (q.double() @ w.double().T) * (q_scale * w_scale.T) + linear.bias
    got = PackedLinear(native, [linear], "int8")(x)
    bound = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(got.double(), wanted, rtol=bound, atol=1e-6)


def test_int8_of_nothing_is_nothing() -> None:
    linear = _linear(64, 64, torch.bfloat16)
    linear.weight[3] = 0
    packed = PackedLinear(native, [linear], "int8")
    assert packed(torch.zeros(2, 64, dtype=torch.bfloat16)).abs().max() == 0
    assert packed(_x(2, 64, torch.bfloat16))[:, 3].abs().max() == 0


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_row_with_nan_says_so_and_spoils_no_other(quantization: str) -> None:
    packed = PackedLinear(native, [_linear(64, 70, torch.bfloat16)], quantization)
    x = _x(9, 64, torch.bfloat16)
    wanted = packed(x)
    x[4, 3] = float("nan")
    got = packed(x)
    assert got[4].isnan().all()
    assert torch.equal(torch.cat([got[:4], got[5:]]), torch.cat([wanted[:4], wanted[5:]]))


def test_int8_takes_half_the_memory() -> None:
    sizes = [PackedLinear(native, [_linear(1024, 1024, torch.bfloat16)], way).num_bytes for way in ("int8", "none")]
    assert sizes[0] < 0.51 * sizes[1]


def test_the_plain_layer_lets_go_of_its_weight() -> None:
    linear = _linear(64, 64, torch.bfloat16)
    PackedLinear(native, [linear])
    assert linear.weight is None
