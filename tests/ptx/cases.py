"""Every wrapper once: a launch with inputs that say where they came from, and a brute-force oracle for what must come out.

A case is a function of a device that returns pairs (what came out, what the oracle says), all on the CPU. Inputs are small
integers or indices, so that every result is exact and a GPU must agree with the emulator to the last bit."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import torch

from flashmoe_nb import cuda

FOLDER = Path(__file__).parent
ARCHITECTURES = {
    "any.cu": ("sm_75", "sm_80", "sm_90a"),
    "ampere.cu": ("sm_80", "sm_90a"),
    "ada.cu": ("sm_89", "sm_90a"),
    "hopper.cu": ("sm_90a",),
    "wgmma.cu": ("sm_90a",),
    "misuse.cu": ("sm_90a",),
}
CASES = {}


def kernel(file: str, name: str) -> cuda.Kernel:
    "A kernel of one of this folder's files."
    text = (FOLDER / file).read_text()
    cuda.register(f"tests/ptx/{file}", text, key=file, label=file, start=True, architectures=ARCHITECTURES[file])
    return cuda.compile(f"tests/ptx/{file}", name)


def case(**values):
    "Adds the function below as one case for each combination of the values."

    def add(function):
        for combination in itertools.product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            CASES["-".join([function.__name__, *map(str, combination)])] = lambda device, c=chosen: function(
                device, **c
            )
        return function

    return add


def numbers(*shape, dtype=torch.int32):
    return torch.arange(int(np.prod(shape)), dtype=torch.int64).reshape(shape).to(dtype)


def small(*shape, seed=0, low=-8, high=9):
    "Small integers, as floats: their products and sums are exact in every format here."
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def blank(*shape, dtype=torch.int32, device="cpu"):
    return torch.full(shape, -1, dtype=torch.float64).to(dtype).to(device)


def digest(pairs) -> list[str]:
    "A hash of each result's bits."
    return [hashlib.sha256(got.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16] for got, _ in pairs]


# ---- any architecture ----


@case()
def named_barriers(device):
    x, sums = numbers(3, 64), blank(3, 32, device=device)
    kernel("any.cu", "named_barrier_kernel").launch(1, 96, [x.to(device), sums])
    return [(sums.cpu(), x.sum(1).int()[:, None].expand(3, 32))]


@case()
def votes_at_a_barrier(device):
    says = torch.zeros(6, 2, 64, dtype=torch.int32)
    says[1, 0, 5] = says[2, 1, 63] = says[3, 0, 40] = says[3, 1, 0] = 4
    says[4, 1] = 1
    heard = blank(6, 2, 64, device=device)
    kernel("any.cu", "vote_kernel").launch(1, 128, [says.to(device), heard, 6])
    return [(heard.cpu(), (says != 0).any(2, keepdim=True).int().expand(6, 2, 64))]


@case()
def wide_accesses(device):
    x, out = numbers(100, 4), blank(100, 4, device=device)
    kernel("any.cu", "memory_kernel").launch(2, 64, [x.to(device), out, 100])
    return [(out.cpu(), x.flip(0))]


@case()
def acquire_release(device):
    token, flag, counter = (torch.zeros(n, dtype=torch.int32, device=device) for n in (6, 1, 1))
    kernel("any.cu", "release_kernel").launch(5, 32, [token, flag, counter])
    expected = torch.tensor([0, 1, 3, 6, 10, 15]), torch.tensor([5]), torch.tensor([5])
    return [(got.cpu(), want.int()) for got, want in zip((token, flag, counter), expected, strict=True)]


@case(count=(1, 2, 4), transposed=(False, True))
def ldmatrix(device, count, transposed):
    tile = numbers(32, 8, dtype=torch.int16)
    registers = blank(32, 4, device=device)
    kernel("any.cu", "ldmatrix_kernel").launch(
        1, 32, [tile.view(torch.int32).to(device), registers, count, int(transposed)]
    )
    expected = torch.zeros(32, 4, 2, dtype=torch.int16)
    for lane, i, half in itertools.product(range(32), range(count), range(2)):
        row, column = lane // 4, lane % 4 * 2 + half
        if transposed:
            row, column = column, row
        expected[lane, i, half] = tile[(5 * (8 * i + row) + 3) % 32, column]
    return [(registers.cpu().view(torch.int16).view(32, 4, 2), expected)]


def hard_floats(dtype) -> torch.Tensor:
    "What is hard to round to a format: its values, the midpoints between them and their neighbours, and the extremes."
    codes = torch.arange(256, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else None
    if codes is None:
        codes = torch.arange(0, 1 << 16, 97, dtype=torch.int32).to(torch.int16).view(dtype)
    values = codes.float()[codes.float().isfinite()].sort().values
    middles = (values[1:].double() + values[:-1].double()) / 2
    near = [middles.float() * (1 + eps) for eps in (0.0, 2.0**-22, -(2.0**-22))]
    extremes = [torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 1e-45, 448.0, 464.0, 465.0, 65519.0, 65520.0]
    x = torch.cat([values, *near, torch.tensor(extremes)])
    return torch.nn.functional.pad(x, (0, -len(x) % 4))


def rounded(x, dtype):
    "As the conversion instructions do: to nearest even, e4m3 saturating, NaN as the canonical one."
    if dtype.itemsize == 1:
        x = x.clamp(-448, 448)
        return torch.where(x.isnan(), 0x7F, x.to(dtype).view(torch.uint8)).to(torch.uint8)
    return torch.where(x.isnan(), 0x7FFF, x.to(dtype).view(torch.int16)).to(torch.int16)


def packing(device, file, name, dtype, per_word):
    x = hard_floats(dtype)
    words = blank(len(x) // per_word, device=device)
    kernel(file, name).launch(-(-len(words) // 256), 256, [x.to(device), words, len(words)])
    want = rounded(x, dtype)
    return [(words.cpu().view(want.dtype), want)]


@case()
def pack_f16(device):
    return packing(device, "any.cu", "pack_f16_kernel", torch.float16, 2)


@case(element=("__nv_bfloat16", "__half"))
def pack(device, element):
    return packing(device, "ampere.cu", f"pack_kernel<{element}>", DTYPES[element], 2)


@case()
def pack_e4m3(device):
    return packing(device, "ada.cu", "pack_e4m3_kernel", torch.float8_e4m3fn, 4)


@case()
def unpack_e4m3(device):
    words = blank(128, device=device)
    kernel("ada.cu", "unpack_e4m3_kernel").launch(1, 128, [words])
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return [(words.cpu().view(torch.float16).float().nan_to_num(nan=-1), codes.float().nan_to_num(nan=-1))]


# ---- matrices in registers ----

DTYPES = {"__nv_bfloat16": torch.bfloat16, "__half": torch.float16, "__nv_fp8_e4m3": torch.float8_e4m3fn}


def product_of(device, file, name, dtype, k):
    a, b, c = small(16, k, seed=1), small(8, k, seed=2), small(16, 8, seed=3)
    d = torch.empty(16, 8, device=device)
    words = [x.to(dtype).view(torch.int32).contiguous().to(device) for x in (a, b)]
    kernel(file, name).launch(1, 32, [*words, c.to(device), d])
    return [(d.cpu(), c + a @ b.T)]


@case()
def mma_m16n8k8(device):
    return product_of(device, "any.cu", "mma_m16n8k8_kernel", torch.float16, 8)


@case(element=("__nv_bfloat16", "__half"))
def mma_m16n8k16(device, element):
    return product_of(device, "ampere.cu", f"mma_m16n8k16_kernel<{element}>", DTYPES[element], 16)


@case()
def mma_m16n8k32(device):
    return product_of(device, "ada.cu", "mma_m16n8k32_kernel", torch.float8_e4m3fn, 32)


# ---- asynchronous copies and barriers ----


@case(nbytes=(4, 8, 16))
def cp_async(device, nbytes):
    x = torch.randint(0, 256, (2, 128, nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(nbytes))
    out = torch.empty_like(x, device=device)
    kernel("ampere.cu", "cp_async_kernel").launch(1, 128, [x.to(device), out, nbytes])
    want = x.clone()
    want[:, 2::3] = 0
    return [(out.cpu(), want)]


@case()
def cp_async_mbar(device):
    x, out = numbers(64, 4), blank(64, 4, device=device)
    kernel("hopper.cu", "cp_async_mbar_kernel").launch(1, 64, [x.to(device), out])
    return [(out.cpu(), x.flip(0))]


@case()
def elect_one(device):
    elected = blank(2, 32, device=device)
    kernel("hopper.cu", "elect_kernel").launch(1, 64, [elected])
    return [(elected.cpu().sum(1), torch.tensor([1, 1]))]


@case()
def griddep(device):
    out = blank(64, device=device)
    kernel("hopper.cu", "griddep_kernel").launch(1, 64, [out])
    return [(out.cpu(), numbers(64))]


@case()
def mbarrier(device):
    rounds, x = 5, numbers(5, 32)
    seen, tested = blank(rounds, 2, 32, device=device), blank(5, device=device)
    kernel("hopper.cu", "mbarrier_kernel").launch(1, 96, [x.to(device), seen, tested, rounds])
    want = x[:, (torch.arange(32) + 1) % 32][:, None].expand(rounds, 2, 32)
    return [(seen.cpu(), want), (tested.cpu(), torch.tensor([0, 1, 0, 1, 0], dtype=torch.int32))]


@case(count=(1, 2, 4), transposed=(False, True))
def stmatrix(device, count, transposed):
    tile = numbers(count, 8, 8, dtype=torch.int16) + 1
    registers = torch.zeros(32, 4, 2, dtype=torch.int16)
    for lane, i, half in itertools.product(range(32), range(count), range(2)):
        row, column = lane // 4, lane % 4 * 2 + half
        registers[lane, i, half] = tile[i, column, row] if transposed else tile[i, row, column]
    rows = blank(32, 4, device=device)
    words = registers.view(torch.int32).contiguous().to(device)
    kernel("hopper.cu", "stmatrix_kernel").launch(1, 32, [words, rows, count, int(transposed)])
    want = torch.zeros(32, 8, dtype=torch.int16)
    for lane in range(8 * count):
        want[(5 * lane + 3) % 32] = tile[lane // 8, lane % 8]
    return [(rows.cpu().view(torch.int16), want)]


@case()
def registers(device):
    x, out = numbers(384), blank(384, device=device)
    kernel("hopper.cu", "registers_kernel").launch(1, 384, [x.to(device), out])
    return [(out.cpu(), x + torch.where(x < 128, 1, 2).int())]


# ---- TMA ----

SPANS = {"none": 0, "32B": 32, "64B": 64, "128B": 128}
TILES = {  # shape, box, where the box starts (innermost first), swizzle, dtype
    "1d": ((100,), (64,), (48,), "none", torch.int32),
    "2d-none": ((50, 48), (8, 16), (40, 44), "none", torch.float32),
    "2d-32B": ((40, 72), (16, 16), (64, -5), "32B", torch.float16),
    "2d-64B": ((40, 72), (16, 32), (-8, 30), "64B", torch.float16),
    "2d-128B": ((40, 72), (16, 64), (8, 5), "128B", torch.bfloat16),
    "2d-bytes": ((40, 160), (8, 128), (96, 36), "128B", torch.uint8),
    "2d-outside": ((8, 64), (8, 64), (64, 0), "128B", torch.bfloat16),
    "3d": ((3, 40, 72), (2, 8, 64), (16, 33, 1), "128B", torch.bfloat16),
    "4d": ((2, 3, 20, 72), (1, 2, 16, 64), (0, 9, 2, 1), "128B", torch.bfloat16),
    "5d": ((2, 2, 3, 20, 64), (1, 1, 2, 16, 32), (32, 9, 1, 1, 1), "128B", torch.int32),
}


def swizzled(offset: int, span: int) -> int:
    "Where a byte of a tile lies under a swizzle over `span` bytes."
    return offset ^ (offset >> 3 & (span - 16)) if span else offset


def tile_image(x, box, at, span) -> torch.Tensor:
    "Shared memory after a load of `box` at `at`, element by element."
    x, image = x.numpy() if x.dtype != torch.bfloat16 else x.view(torch.int16).numpy(), np.zeros(0, np.uint8)
    image = np.zeros(int(np.prod(box)) * x.itemsize, np.uint8)
    for number, index in enumerate(np.ndindex(*box)):
        position = tuple(i + start for i, start in zip(index, reversed(at), strict=True))
        inside = all(0 <= p < n for p, n in zip(position, x.shape, strict=True))
        value = x[position].tobytes() if inside else bytes(x.itemsize)
        for byte in range(x.itemsize):
            image[swizzled(number * x.itemsize + byte, span)] = value[byte]
    return torch.from_numpy(image)


def tensor(shape, dtype):
    "Elements that can be told apart, exact in the type."
    return (numbers(*shape) % 251).to(dtype)


@case(tile=TILES, hint=(0, 1, 2))
def tma_load(device, tile, hint):
    shape, box, at, swizzle, dtype = TILES[tile]
    x = tensor(shape, dtype)
    nbytes = int(np.prod(box)) * x.element_size()
    image = blank(nbytes, dtype=torch.uint8, device=device)
    args = [cuda.TensorMap(x.to(device), box, swizzle), image, nbytes, len(box), *at, *[0] * (5 - len(at)), hint]
    kernel("hopper.cu", "tma_load_kernel").launch(1, 64, args, nbytes)
    return [(image.cpu(), tile_image(x, box, at, SPANS[swizzle]))]


for name in [n for n in CASES if n.startswith("tma_load") and not n.endswith("0") and "2d-128B" not in n]:
    del CASES[name]  # hints exist for two dimensions only


def inside(shape, box, at):
    "The part of a tensor that a box covers."
    return tuple(slice(max(0, p), max(0, min(n, p + b))) for p, b, n in zip(reversed(at), box, shape, strict=True))


# A store must not start before the tensor, where a load may: an H200 ends in an illegal instruction.
STORES = {name: (*t[:2], tuple(abs(c) for c in t[2]), *t[3:]) for name, t in TILES.items()}
REFUSED = {  # the same, with a negative coordinate; tests/test_ptx_misuse.py and tests/test_ptx_gpu.py
    "1d": (*TILES["1d"][:2], (-16,), *TILES["1d"][3:]),
    "2d-32B": TILES["2d-32B"],
    "2d-64B": TILES["2d-64B"],
    "3d": (*TILES["3d"][:2], (16, 33, -1), *TILES["3d"][3:]),
}


def tma_out(device, tile, kind, before, tile_values, want):
    shape, box, at, swizzle, dtype = tile
    image = tile_image(tile_values, box, at, SPANS[swizzle])
    out = before.to(device)
    args = [cuda.TensorMap(out, box, swizzle), image.to(device), len(image), len(box), *at, *[0] * (5 - len(at)), kind]
    kernel("hopper.cu", "tma_store_kernel").launch(1, 64, args, len(image))
    return [(out.cpu(), want)]


@case(tile=TILES)
def tma_store(device, tile):
    shape, box, at, _, dtype = STORES[tile]
    before, values = torch.full(shape, 7).to(dtype), tensor(shape, dtype)
    want = before.clone()
    want[inside(shape, box, at)] = values[inside(shape, box, at)]
    return tma_out(device, STORES[tile], 1 if tile == "2d-64B" else 0, before, values, want)


@case(tile=("2d-none", "2d-32B", "2d-128B"))
def tma_reduce_add(device, tile):
    shape, box, at, _, dtype = STORES[tile]
    before, values = small(*shape).to(dtype), (numbers(*shape) % 61).to(dtype)
    want = before.clone()
    want[inside(shape, box, at)] += values[inside(shape, box, at)]
    return tma_out(device, STORES[tile], 2, before, values, want)


def refused(device, name, kind=0):
    "A store (kind 0) or an add (kind 2) that starts before its tensor."
    values = tensor(REFUSED[name][0], REFUSED[name][4])
    return tma_out(device, REFUSED[name], kind, torch.zeros_like(values), values, None)


@case(nbytes=(16, 4096))
def bulk(device, nbytes):
    x = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = torch.zeros_like(x, device=device)
    kernel("hopper.cu", "bulk_kernel").launch(1, 32, [x.to(device), out, nbytes], nbytes)
    return [(out.cpu(), x)]


@case(element=("float", "__nv_bfloat16", "__half"))
def bulk_reduce_add(device, element):
    dtype = DTYPES.get(element, torch.float32)
    x, sums = small(4, 64).to(dtype), torch.ones(64, dtype=dtype, device=device)
    kernel("hopper.cu", f"bulk_reduce_kernel<{element}>").launch(4, 32, [x.to(device), sums, 64], 256)
    return [(sums.cpu(), x.sum(0) + 1)]


@case(hint=(0, 1))
def multicast(device, hint):
    x, images = tensor((32, 64), torch.bfloat16), blank(2, 4096, dtype=torch.uint8, device=device)
    with cuda.emulation(cluster=2):
        args = [cuda.TensorMap(x.to(device), (16, 64), "128B"), images, 2048, hint]
        kernel("hopper.cu", "multicast_kernel").launch(2, 64, args, 4096)
    want = torch.cat([tile_image(x, (16, 64), (0, 16 * rank), 128) for rank in (0, 1)])
    return [(images.cpu(), want.expand(2, 4096))]


@case()
def neighbours(device):
    x, out, ranks = numbers(2, 32), blank(2, 32, device=device), blank(2, device=device)
    with cuda.emulation(cluster=2):
        kernel("hopper.cu", "neighbours_kernel").launch(2, 32, [x.to(device), out, ranks])
    return [(out.cpu(), x.flip(0).flip(1)), (ranks.cpu(), torch.tensor([2, 12], dtype=torch.int32))]


# ---- WGMMA ----

SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}  # the descriptor's number, and the bytes of a row


def operand_image(x, dtype, mn_major, swizzle, start, leading, stride, nbytes) -> torch.Tensor:
    "Shared memory with x [mn, k] where a descriptor of these fields finds it; the rest is garbage."
    raw, span = x.to(dtype).view(torch.uint8).view(*x.shape, -1).numpy(), SWIZZLES[swizzle]
    size = raw.shape[2]
    image = np.full(nbytes, 0xCC, np.uint8)
    for mn, k in np.ndindex(*x.shape):
        if span == 16 and not mn_major:
            offset = mn // 8 * stride + k * size // 16 * leading + mn % 8 * 16 + k * size % 16
        elif span == 16:
            offset = mn // 8 * stride + k // 8 * leading + k % 8 * 16 + mn % 8 * size
        elif not mn_major:
            offset = mn // 8 * stride + mn % 8 * span + k * size
        else:
            offset = mn * size // span * leading + k // 8 * stride + k % 8 * span + mn * size % span
        offset = swizzled(start + offset, span if span > 16 else 0)
        image[offset : offset + size] = raw[mn, k]
    return torch.from_numpy(image)


def layout(extent, mn_major, swizzle):
    "Leading and stride offsets, in bytes, with gaps in between, and the bytes of the whole."
    span = SWIZZLES[swizzle]
    if not swizzle and not mn_major:
        return 128, 384, extent // 8 * 384
    if not swizzle:
        return extent // 8 * 128, 128, extent * 32
    if not mn_major:
        return 16, 8 * span + 1024, extent // 8 * (8 * span + 1024)
    spans = -(-2 * extent // span)
    return 16 * span + 1024, 8 * span, spans * (16 * span + 1024)


LAYOUTS = [(e, a, b) for e in ("__nv_bfloat16", "__half") for a in "KM" for b in "KM"] + [("__nv_fp8_e4m3", "K", "K")]


@case(types=LAYOUTS, swizzles=itertools.product(range(4), range(4)))
def wgmma_layout(device, types, swizzles):
    (element, *majors), k = types, 32 if types[0] == "__nv_fp8_e4m3" else 16
    operands, descriptors = [], []
    for extent, major, swizzle in zip((64, 128), majors, swizzles, strict=True):
        leading, stride, nbytes = layout(extent, major == "M", swizzle)
        nbytes = -(-(nbytes + 96) // 1024) * 1024
        start = {1: 96, 2: 32}.get(swizzle, 0) if major == "K" else 0  # a later k step of the same rows
        x = small(extent, k, seed=extent)
        image = operand_image(x, DTYPES[element], major == "M", swizzle, start, leading, stride, nbytes)
        operands.append(x)
        descriptors += [image.to(device), nbytes, start, swizzle, leading, stride]
    accumulate = sum(swizzles) % 2
    d = small(64, 128, seed=7)
    want, d = d * accumulate + operands[0] @ operands[1].T, d.to(device)
    names = ["ptx::K_MAJOR" if major == "K" else "ptx::MN_MAJOR" for major in majors]
    run = kernel("wgmma.cu", f"wgmma_layout_kernel<{element}, {', '.join(names)}>")
    run.launch(1, 128, [*descriptors, accumulate, d], descriptors[1] + descriptors[7])
    return [(d.cpu(), want)]


SHAPES = range(8, 257, 8)


@case(element=DTYPES, major="KM", a_in=("shared", "registers"))
def wgmma_every_n(device, element, major, a_in):
    "On a GPU one kernel for each N, because the assembler takes long over many at once; on the emulator one for all."
    dtype, k = DTYPES[element], 32 if element == "__nv_fp8_e4m3" else 16
    a, b = small(64, k, seed=1), small(256, k, seed=2)
    a_image = operand_image(a, dtype, False, 3, 0, 16, 256, 2048)
    b_image = operand_image(b, dtype, major == "M", 1, 0, 2048, 1024, 8192 if major == "M" else 32768)
    before = [small(64, n, seed=n) for n in SHAPES]
    outs = torch.cat([x.flatten() for x in before]).to(device)
    fixed = [x.to(device) for x in (a.to(dtype).view(torch.int32).contiguous(), a_image, b_image)]
    offset = 0
    for first, last in [(n, n) for n in SHAPES] if outs.is_cuda else [(8, 256)]:
        instance = f"<{first}, {last}, {element}, ptx::{'K' if major == 'K' else 'MN'}_MAJOR, {str(a_in == 'registers').lower()}>"
        size = sum(64 * n for n in range(first, last + 1, 8))
        args = [*fixed, len(b_image), outs[offset : offset + size]]
        kernel("wgmma.cu", "wgmma_every_n_kernel" + instance).launch(1, 128, args, 2048 + len(b_image))
        offset += size
    want = torch.cat([(x + a @ b[:n].T).flatten() for x, n in zip(before, SHAPES, strict=True)])
    return [(outs.cpu(), want)]


for name in [n for n in CASES if n.startswith("wgmma_every_n-__nv_fp8_e4m3-M")]:
    del CASES[name]  # 8-bit operands are K-major
