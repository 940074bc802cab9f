"""bfloat16 and half in the emulator: every bit pattern, and pairs, against torch and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from emulated import build, compiler  # noqa: F401, the fixture

pytestmark = pytest.mark.usefixtures("compiler")
FORMATS = {"__nv_bfloat16": torch.bfloat16, "__half": torch.float16}
each_format = pytest.mark.parametrize("name", FORMATS)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16)


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    "Bit for bit, except that any NaN equals any NaN."
    return bool(((bits(got) == bits(expected)) | (got.isnan() & expected.isnan())).all())


def every_value(dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


@each_format
def test_widening_every_bit_pattern(name):
    out = torch.zeros(1 << 16)
    build("numbers.cu", f"widen_kernel<{name}>").launch(64, 1024, [out])
    expected = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(FORMATS[name]).float()
    assert torch.equal(out.view(torch.int32)[~out.isnan()], expected.view(torch.int32)[~expected.isnan()])
    assert torch.equal(out.isnan(), expected.isnan())


def hard_floats(dtype) -> torch.Tensor:
    "Random bit patterns; every value of the format, every midpoint of two neighbours, and the floats beside those."
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=generator).to(torch.int32).view(torch.float32)
    near_one = torch.randn(50_000, generator=generator)
    values = every_value(dtype).float()
    values = values[values.isfinite()].sort().values
    midpoints = ((values[1:].double() + values[:-1].double()) / 2).float()
    exact = torch.cat([values, midpoints])
    return torch.cat(
        [random, near_one, exact, torch.nextafter(exact, torch.tensor(1e38)), torch.nextafter(exact, torch.tensor(-1e38))]
    )


@each_format
def test_rounding(name):
    dtype, x = FORMATS[name], hard_floats(FORMATS[name])
    out, from_double = torch.zeros(len(x), dtype=torch.int16), torch.zeros(len(x), dtype=torch.int16)
    build("numbers.cu", f"round_kernel<{name}>").launch(16, 256, [x, x.double(), out, from_double, len(x)])
    assert same(out.view(dtype), x.to(dtype))
    assert same(from_double.view(dtype), x.to(dtype))


@each_format
def test_rounding_doubles_once(name):
    "Just beside a midpoint, by less than a float can tell: rounding to float first would tie."
    dtype = FORMATS[name]
    values = every_value(dtype).double()
    values = values[values.isfinite()].sort().values
    midpoint = (values[1:] + values[:-1]) / 2
    up, down = midpoint + midpoint.abs() * 2.0**-40, midpoint - midpoint.abs() * 2.0**-40
    for x, expected in ((up, values[1:]), (down, values[:-1])):
        out, unused = (torch.zeros(len(x), dtype=torch.int16) for _ in range(2))
        build("numbers.cu", f"round_kernel<{name}>").launch(16, 256, [x.float(), x, unused, out, len(x)])
        keep = midpoint != 0
        assert torch.equal(out.view(dtype).double()[keep], expected[keep])


def pairs(dtype):
    generator = torch.Generator().manual_seed(1)
    n = 60_000
    random = [torch.randint(-(1 << 15), 1 << 15, (n,), generator=generator).to(torch.int16).view(dtype) for _ in range(3)]
    close = [torch.randn(n, generator=generator).to(dtype) for _ in range(3)]
    return [torch.cat([a, b]) for a, b in zip(random, close, strict=True)]


@each_format
def test_arithmetic(name):
    dtype = FORMATS[name]
    a, b, c = pairs(dtype)
    out = torch.zeros(12, len(a), dtype=torch.int16)
    build("numbers.cu", f"arithmetic_kernel<{name}>").launch(16, 256, [bits(a), bits(b), bits(c), out, len(a)])
    rows = out.view(dtype)
    x, y = a.double(), b.double()  # sums, products and quotients of 8 or 11 bits round from a double as from the exact value
    for row, expected in zip(rows, (x + y, x - y, x * y, x / y), strict=False):
        assert same(row, through_float(expected, dtype))
    assert same(rows[7], -a) and same(rows[8], a.abs())
    assert torch.equal(out[9] != 0, a == b) and torch.equal(out[10] != 0, a < b)
    assert same(rows[11], a.double().sqrt().to(dtype))
    either = torch.where(a.isnan(), b, a), torch.where(b.isnan(), a, b)  # the number, where the other is NaN
    assert same_value(rows[5], torch.maximum(*either)) and same_value(rows[6], torch.minimum(*either))


def through_float(x: torch.Tensor, dtype) -> torch.Tensor:
    "Double to 16 bits in one rounding: numpy rounds to half directly; bfloat16 by an exact float, made odd where it is not."
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(x.numpy().astype(np.float16))
    f = x.float()
    wrong = (f.double() != x) & f.isfinite()
    towards_zero = torch.where(f.double().abs() > x.abs(), torch.nextafter(f, torch.zeros(())), f)
    odd = (towards_zero.view(torch.int32) | 1).view(torch.float32)
    return torch.where(wrong, odd, f).to(dtype)


def same_value(got, expected) -> bool:
    return bool(((got == expected) | (got.isnan() & expected.isnan())).all())


def rounded(exact: Fraction, dtype) -> float:
    "An exact number to the nearest value of the format, ties to even, by search among all values."
    values = _sorted_values(dtype)
    i = int(np.searchsorted(values, float(exact)))
    near = sorted({max(0, i - 2), max(0, i - 1), min(i, len(values) - 1), min(i + 1, len(values) - 1)})
    best = min(near, key=lambda j: (abs(Fraction(float(values[j])) - exact), _odd(values[j], dtype)))
    return float(values[best])


def _odd(value, dtype) -> int:
    return int(torch.tensor(float(value)).to(dtype).view(torch.int16)) & 1


_sorted: dict = {}


def _sorted_values(dtype):
    if dtype not in _sorted:
        values = every_value(dtype).double()
        _sorted[dtype] = np.unique(values[values.isfinite()].numpy())
    return _sorted[dtype]


@each_format
def test_fused_multiply_add_rounds_once(name):
    "Against exact fractions, with addends far below the product's last bit and products just beside a midpoint."
    dtype = FORMATS[name]
    a, b, c = (x[-3000:].clone() for x in pairs(dtype))
    c[::2] = (c[::2].float() * 2.0**-20).to(dtype)
    a[:200], b[:200] = torch.tensor(1.0 + 2.0**-4), torch.tensor(1.0 + 2.0**-4)
    c[:200] = torch.linspace(-1, 1, 200).to(dtype) * 2.0**-8
    a[1::10], b[1::10] = torch.tensor(1.0 + 1 / 128), torch.tensor(1.5)  # 1.5117…: a midpoint in bfloat16
    c[1::10], c[11::20] = torch.tensor(2.0**-60), torch.tensor(-(2.0**-60))  # too small for a double beside it
    a[2::10], b[2::10] = torch.tensor(1.0 + 1 / 1024), torch.tensor(1.5)  # a midpoint in half
    out = torch.zeros(12, len(a), dtype=torch.int16)
    build("numbers.cu", f"arithmetic_kernel<{name}>").launch(4, 256, [bits(a), bits(b), bits(c), out, len(a)])
    got, largest = out[4].view(dtype), float(_sorted_values(dtype)[-1])
    for i in range(len(a)):
        exact = Fraction(a[i].item()) * Fraction(b[i].item()) + Fraction(c[i].item())
        if abs(exact) < largest:
            assert got[i].item() == rounded(exact, dtype), (a[i], b[i], c[i])


def test_fused_multiply_add_of_special_values():
    inf, nan = float("inf"), float("nan")
    rows = [(inf, 0.0, 1.0), (inf, 2.0, -inf), (inf, -2.0, 5.0), (0.0, -3.0, 0.0), (nan, 1.0, 1.0), (3e38, 3e38, -inf)]
    for name, dtype in FORMATS.items():
        a, b, c = (torch.tensor(x).to(dtype) for x in zip(*rows, strict=True))
        out = torch.zeros(12, len(a), dtype=torch.int16)
        build("numbers.cu", f"arithmetic_kernel<{name}>").launch(1, 32, [bits(a), bits(b), bits(c), out, len(a)])
        assert same(out[4].view(dtype), (a.double() * b.double() + c.double()).to(dtype))


def test_pairs():
    a, b = torch.tensor([1.5, -2.25, 0.125, 300.0]).bfloat16(), torch.tensor([1.5, -2.25, 0.125, 300.0]).half()
    out, to_bf16, to_half = torch.zeros(6, 2), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.float16)
    build("numbers.cu", "pairs_kernel").launch(1, 1, [a, b, out, to_bf16, to_half])
    x, y = torch.tensor([1.5, -2.25]), torch.tensor([0.125, 300.0])
    rows = [(x * y + 1).bfloat16(), (x * y).bfloat16() + x.bfloat16(), y, (x * y + 1).half(), torch.maximum(x, y), y]
    assert torch.equal(out, torch.stack([r.float() for r in rows]))
    assert to_bf16.tolist() == [1.5, -2.5, 3.0, 0.0] and to_half.tolist() == [1.5, -2.5, 1.5, -2.25]


def test_integers_and_bits():
    x = torch.cat([torch.tensor([0, 1, -1, 8, 2**31 - 1, -(2**31)]), torch.randint(-(2**31), 2**31, (500,))]).to(torch.int32)
    out = torch.zeros(10, len(x), dtype=torch.int32)
    build("numbers.cu", "bits_kernel").launch(1, 64, [x, out, len(x)])
    signed = lambda u: (u + 2**31) % 2**32 - 2**31  # noqa: E731
    for v, row in zip(x.tolist(), out.T.tolist(), strict=True):
        u = v % 2**32
        text = f"{u:032b}"
        both = u | 0x04030201 << 32
        byte = [both >> 8 * i & 255 for i in range(8)]
        permuted = byte[0] | byte[3] << 8 | (255 if byte[4] & 128 else 0) << 16 | byte[7] << 24
        half = float(np.float32(v) * np.float32(0.5))
        expected = [
            text.count("1"), (v & -v).bit_length(), 32 - u.bit_length(), signed(int(text[::-1], 2)), v, signed(permuted),
            signed(max(v, 3) - min(v, 3)), v * 123456789 >> 32, signed((0x12345678 << 12 | u >> 20) % 2**32), round(half),
        ]  # fmt: skip
        assert row == expected, v


def test_floats():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(8, 1000)
    build("numbers.cu", "float_kernel").launch(1, 64, [x, out, 1000])
    d = x.double()
    expected = [d.exp(), d.exp2(), d.abs().log(), d.abs().rsqrt(), d * d + 1, d / 3, d, d.floor()]
    torch.testing.assert_close(out, torch.stack(expected).float(), rtol=3e-7, atol=1e-7)
    assert torch.equal(out[4], (d * d + 1).float())  # one rounding: the product of two floats is exact in double
