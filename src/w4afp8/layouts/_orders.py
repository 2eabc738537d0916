"""The peers' orders (formats: C), one row each.  Adding one is a row and its golden file.

Weights are logical as low-even bytes [E, N, K/2], scales as [E, N, G].  A weight's last logical axis counts
those bytes, or 16-bit words of them.  What a consumer calls the codes (offset binary, ...) is the layout's `values`.
"""

from __future__ import annotations

from w4afp8.layouts._order import HALFWORDS, Order

# FlashInfer v2 spreads four source bytes over one 32-bit word: bit t of byte j goes to bit FP4_WORD[8 j + t].
FP4_WORD = (
    6, 7, 8, 15, 22, 23, 24, 31,
    3, 4, 5, 12, 19, 20, 21, 28,
    0, 1, 2, 9, 16, 17, 18, 25,
    13, 10, 11, 14, 29, 26, 27, 30,
)  # fmt: skip
# FlashInfer's fp4 x fp8: the signs of nibbles 0..3 go to bit 7 of byte 0..3, those of nibbles 4..7 to bit 3.
FP4_FP8_WORD = tuple(
    4 * nibble + bit if bit < 3 else 8 * (nibble % 4) + (7 if nibble < 4 else 3)
    for nibble in range(8) for bit in range(4)
)  # fmt: skip
# Words of four source bytes (a, b), low nibbles first: nibble n of byte 2 a + b becomes nibble 4 n + 2 a + b.
LOW_NIBBLES_FIRST = tuple(4 * (4 * n + j) + bit for j in range(4) for n in range(2) for bit in range(4))
# The same within each half of the word: nibble n of byte 2 a + b becomes nibble 4 a + 2 n + b.
PAIRED_BYTES = tuple(4 * (4 * a + 2 * n + b) + bit for a in range(2) for b in range(2) for n in range(2)
                     for bit in range(4))  # fmt: skip
# Words of two 16-bit units a: nibble i of unit a becomes nibble 2 i + a.
PAIRED_UNITS = tuple(4 * (2 * i + a) + bit for a in range(2) for i in range(4) for bit in range(4))
# lyra: nibble p + 2 q of unit a becomes nibble 4 p + 2 a + q.
LYRA_WORD = tuple(4 * (4 * p + 2 * a + q) + bit for a in range(2) for q in range(2) for p in range(2)
                  for bit in range(4))  # fmt: skip
# sm90: sign and low bits of nibble b of unit h, where `kernels/layout.py` says; the second sign goes one byte on.
SM90_WORD = tuple(
    8 * b + 4 * h + bit if bit < 3 else (8 * b + 7, 8 * ((b + 1) % 4) + 3)[h]
    for h in range(2) for b in range(4) for bit in range(4)
)  # fmt: skip
SM90_ROWS = {"warp": 4, "half": 2, "row8": 8}
BLOCK_N = {"n2": 8, "n1": 2, "n0": 8}  # a Machete block is 128 rows x 64 inputs
INT4_LDSM = "e (r half row8) (p a b c) -> e (r b row8) (p a c half)"
INT4_LDSM_SIZES = {"half": 2, "row8": 8, "a": 2, "b": 2, "c": 4}

ORDERS = {
    "as_it_is": Order("e n k -> e n k"),
    "sglang_cutlass_scales_by_four": Order("e n (g four) -> e g (n four)", {"four": 4}),
    "scales_by_group": Order("e n g -> e g n"),
    "bias_as_it_is": Order("e n -> e n"),
    "marlin_bias": Order("e (bn x y z) -> e (bn y x z)", {"x": 4, "y": 4, "z": 2}),
    "scales_per_row": Order("e n -> e n"),
    "flashinfer_sm90_v1_scales_32": Order("e n (g four) -> e g (n four)", {"four": 4}),
    "flashinfer_sm90_v2_scales_32": Order(
        "e (r slice fold) (c four) -> e r c fold (slice four)", {"slice": 4, "fold": 16, "four": 4}
    ),
    "flashinfer_sm90_v2_scales_128": Order("e (r slice fold) c -> e r c fold slice", {"slice": 8, "fold": 8}),
    "flashinfer_sm90_int4": Order(INT4_LDSM, INT4_LDSM_SIZES, HALFWORDS),
    "flashinfer_sm90_fp4_fp8": Order(INT4_LDSM, INT4_LDSM_SIZES, HALFWORDS, FP4_FP8_WORD),
    "flashinfer_sm90_v1_fp4": Order(
        "e (r half row8) (p x y v w) -> e (r y row8) (p x w v half)",
        {"half": 2, "row8": 8, "x": 2, "y": 2, "v": 2, "w": 4}, bits=PAIRED_BYTES,
    ),
    "flashinfer_sm90_v2_fp4": Order(
        "e (r half row8) (p m1 m0 t q) -> e (r m0 row8) (p m1 q t half)",
        {"half": 2, "row8": 8, "m1": 2, "m0": 2, "t": 2, "q": 4}, bits=FP4_WORD,
    ),
    "machete_16bit": Order(
        "e (bn n2 n1 n0) (bk kb ka k1) -> e bk bn (n2 n0 k1 kb ka n1)",
        {**BLOCK_N, "kb": 4, "ka": 2, "k1": 4}, bits=LOW_NIBBLES_FIRST,
    ),
    "machete_e4m3": Order(
        "e (bn n2 n1 n0) (bk k2 k1) -> e bk bn (n2 n0 k1 k2 n1)", {**BLOCK_N, "k2": 4, "k1": 4}, HALFWORDS
    ),
    # lyra stacks the experts on N: blocks of one K follow each other over all experts.
    "machete_e4m3_group_scales": Order(
        "e (bn n2 n1 n0) (bk k2 k1) -> bk e bn (n2 n0 k1 k2 n1)", {**BLOCK_N, "k2": 4, "k1": 4}, HALFWORDS, LYRA_WORD
    ),
    "machete_scales_stacked": Order("e n g -> g e n"),
    "marlin_16bit": Order(
        "e (bn w h c) (bk a b) -> e bk (bn c b w h a)", {"w": 4, "h": 2, "c": 8, "a": 2, "b": 4}, bits=LOW_NIBBLES_FIRST
    ),
    # 32 x 32 tiles; [K/32, 4 N] 32-bit words are those of [K/16, 2 N].
    "marlin_8bit": Order(
        "e (bn u v c) (bk a b) -> e bk (bn c b u v a)", {"u": 2, "v": 2, "c": 8, "a": 2, "b": 4}, HALFWORDS,
        PAIRED_UNITS,
    ),
    "marlin_scales_16bit": Order("e (bn m i) g -> e g (bn i m)", {"m": 8, "i": 8}),
    "marlin_scales_8bit": Order("e (bn x y z) g -> e g (bn y x z)", {"x": 4, "y": 4, "z": 2}),
    "marlin_scales_mxfp4_16bit": Order("e (bn m s t i) g -> e g (bn i m t s)", {"m": 2, "s": 2, "t": 2, "i": 8}),
    "sm90": Order(
        "e (row_block warp half row8) (col_block piece step c16 quad) -> "
        "e row_block col_block (piece warp row8 quad step c16 half)",
        {**SM90_ROWS, "piece": 2, "step": 2, "c16": 2, "quad": 4}, HALFWORDS, SM90_WORD,
    ),
    "sm90_scales": Order("e (row_block warp half row8) g -> e row_block g (warp row8 half)", SM90_ROWS),
    "vllm_cutlass": Order(
        "e (bn n1 n0) (bk k2 k1) -> e bk bn (n0 k1 k2 n1)", {"n1": 2, "n0": 8, "k2": 2, "k1": 4}, HALFWORDS
    ),
    "vllm_cutlass_table": Order("e n g m -> e g n m"),
}  # fmt: skip
