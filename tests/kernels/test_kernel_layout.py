"""The sm90 layout is a bijection, and its bytes unpack as the kernel unpacks them."""

import torch

from w4afp8.kernels import layout
from w4afp8.numerics.axes import backwards


def codes(seed: int, experts: int, rows: int, cols: int) -> torch.Tensor:
    return torch.randint(-8, 8, (experts, rows, cols), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def test_every_code_survives():
    before = codes(0, 2, 192, 384)
    stored = layout.store_codes(before)
    assert stored.shape == (2, 3, 3, 4096)
    assert torch.equal(layout.load_codes(stored), before)


def test_all_pairs_of_codes_survive():
    before = torch.cartesian_prod(*[torch.arange(-8, 8, dtype=torch.int8)] * 2)  # 256 pairs
    tile = before.repeat(16, 1).T.reshape(1, 2, 4096).reshape(1, 64, 128)
    assert torch.equal(layout.load_codes(layout.store_codes(tile)), tile)


def test_scales_survive():
    before = torch.arange(2 * 128 * 3, dtype=torch.float32).reshape(2, 128, 3)
    stored = layout.store_scales(before)
    assert stored.shape == (2, 2, 3, 64)
    assert torch.equal(layout.load_scales(stored), before)


def test_rows_r_and_r_plus_8_have_neighbouring_scales():
    rows = torch.arange(64.0).reshape(1, 64, 1)
    assert layout.store_scales(rows).flatten()[:4].tolist() == [0, 8, 1, 9]


def test_a_thread_finds_its_fragments_as_the_kernel_reads_them():
    """Thread t, k-step s of `wgmma.m64nNk32`: registers (row, k16), (row + 8, k16), (row, k16 + 16), (row + 8, ..)."""
    before = codes(1, 1, 64, 128)
    words = layout.store_codes(before).view(torch.int32).reshape(2, 128, 4)
    e4m3 = lambda word: word.reshape(1).view(torch.uint8).view(torch.float8_e4m3fn).float() * 512  # noqa: E731
    for thread in (0, 5, 37, 127):
        warp, lane = divmod(thread, 32)
        row, quad = 16 * warp + lane // 4, lane % 4
        for step in range(4):
            for c16 in range(2):
                word = int(words[step // 2, thread, 2 * (step % 2) + c16]) & 0xFFFFFFFF
                signs = word & 0x88888888
                magnitudes = (word & 0x77777777) + rotated(signs, 7)
                lower = magnitudes & 0x0F0F0F0F | signs & 0xF0F0F0F0
                upper = rotated(magnitudes & 0xF0F0F0F0 | signs & 0x0F0F0F0F, 4)
                for half, register in enumerate((lower, upper)):
                    found = e4m3(torch.tensor(register, dtype=torch.int64).to(torch.uint32).view(torch.int32))
                    k = 32 * step + 16 * c16 + 4 * quad
                    assert found.tolist() == before[0, row + 8 * half, k : k + 4].tolist()


def rotated(word: int, bits: int) -> int:
    return (word >> bits | word << 32 - bits) & 0xFFFFFFFF


def test_backwards_twice_is_the_same_pattern():
    assert backwards(backwards(layout.CODES)) == layout.CODES
