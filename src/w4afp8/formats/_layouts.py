"""The peers' runtime layouts (formats: C), one row each.  Adding one is a row and its golden file.

Weights are logical as low-even bytes [E, N, K/2], scales as [E, N, G].  A weight's last logical axis counts nibbles,
16-bit words or bits of those bytes.  The codes themselves stay as they are: offset binary where the consumer wants it
(Machete, Marlin) is what the caller stores.
"""

from __future__ import annotations

from w4afp8.formats._layout import BITS, HALFWORDS, NIBBLES, Layout

FLASHINFER_V1 = "FlashInfer 0.6.10..0.6.15, 0.6.16.post3, 0.6.16.post4, 0.6.17"
FLASHINFER_V2 = "FlashInfer 0.6.16, 0.6.16.post1, 0.6.16.post2, 0.6.18rc, 0.7"
# FlashInfer v2 spreads four source bytes over one 32-bit word: bit t of byte j goes to bit FP4_WORD[8 j + t].
FP4_WORD = (
    6, 7, 8, 15, 22, 23, 24, 31,
    3, 4, 5, 12, 19, 20, 21, 28,
    0, 1, 2, 9, 16, 17, 18, 25,
    13, 10, 11, 14, 29, 26, 27, 30,
)  # fmt: skip
BLOCK_N = {"n2": 8, "n1": 2, "n0": 8}  # a Machete block is 128 rows x 64 inputs

ALL = (
    Layout(
        "sglang_cutlass_scales_by_four", "SGLang 0.5.23 cutlass w4a8 where G is a multiple of 4",
        "e n (g four) -> e g (n four)", {"four": 4},
    ),
    Layout(
        "sglang_cutlass_scales_by_one", "SGLang 0.5.23 cutlass w4a8 where G is no multiple of 4",
        "e n g -> e g n",
    ),
    Layout(
        "flashinfer_sm90_v1_scales_32", FLASHINFER_V1,
        "e n (g four) -> e g (n four)", {"four": 4},
    ),
    Layout(
        "flashinfer_sm90_v2_scales_32", FLASHINFER_V2 + ", e8m0 bytes per 32 inputs",
        "e (r slice fold) (c four) -> e r c fold (slice four)", {"slice": 4, "fold": 16, "four": 4},
    ),
    Layout(
        "flashinfer_sm90_v2_scales_128", FLASHINFER_V2 + ", bfloat16 per 128 inputs",
        "e (r slice fold) c -> e r c fold slice", {"slice": 8, "fold": 8},
    ),
    Layout(
        "flashinfer_sm90_int4", "FlashInfer, every release with sm90 mixed-input GEMM",
        "e (r half row8) (p a b c) -> e (r b row8) (p a c half)", {"half": 2, "row8": 8, "a": 2, "b": 2, "c": 4},
        HALFWORDS,
    ),
    Layout(
        "flashinfer_sm90_v1_fp4", FLASHINFER_V1,
        "e (r half row8) (p x y v w nibble) -> e (r y row8) (p x w v nibble half)",
        {"half": 2, "row8": 8, "x": 2, "y": 2, "v": 2, "w": 4, "nibble": 2}, NIBBLES,
    ),
    Layout(
        "flashinfer_sm90_v2_fp4", FLASHINFER_V2,
        "e (r half row8) (p m1 m0 t q bit) -> e (r m0 row8) (p m1 q t half bit)",
        {"half": 2, "row8": 8, "m1": 2, "m0": 2, "t": 2, "q": 4, "bit": 8}, BITS, FP4_WORD,
    ),
    Layout(
        "machete_16bit", "vLLM 0.33 Machete, bfloat16 or float16 activations",
        "e (bn n2 n1 n0) (bk kb ka k1 k0) -> e (bk bn n2 n0 k1 kb k0 ka n1)",
        {**BLOCK_N, "kb": 4, "ka": 2, "k1": 4, "k0": 2}, NIBBLES,
    ),
    Layout(
        "machete_e4m3", "vLLM 0.33 Machete, e4m3 activations without 16-bit group scales",
        "e (bn n2 n1 n0) (bk k2 k1 k0) -> e (bk bn n2 n0 k1 k2 n1 k0)",
        {**BLOCK_N, "k2": 4, "k1": 4, "k0": 4}, NIBBLES,
    ),
    Layout(
        "machete_e4m3_group_scales", "TMElyralab lyraW4AFp8, e4m3 activations with 16-bit group scales",
        "e (bn n2 n1 n0) (bk k2 k1 q p) -> e (bk bn n2 n0 k1 k2 p n1 q)",
        {**BLOCK_N, "k2": 4, "k1": 4, "q": 2, "p": 2}, NIBBLES,
    ),
    Layout(
        "marlin_16bit", "vLLM 0.33, SGLang 0.5.23 Marlin, 16-bit activations",
        "e (bn w h c) (bk a b p) -> e bk (bn c b w p h a)",
        {"w": 4, "h": 2, "c": 8, "a": 2, "b": 4, "p": 2}, NIBBLES,
    ),
    Layout(
        "marlin_8bit", "vLLM 0.33 Marlin, 8-bit activations",
        "e (bn u v c) (bk a b i) -> e (bk bn c b u v i a)",
        {"u": 2, "v": 2, "c": 8, "a": 2, "b": 4, "i": 4}, NIBBLES,
    ),
    Layout(
        "marlin_scales_16bit", "Marlin, grouped scales, 16-bit activations",
        "e (bn m i) g -> e g (bn i m)", {"m": 8, "i": 8},
    ),
    Layout(
        "marlin_scales_8bit", "Marlin, channelwise scales or 8-bit activations",
        "e (bn x y z) g -> e g (bn y x z)", {"x": 4, "y": 4, "z": 2},
    ),
    Layout(
        "marlin_scales_mxfp4_16bit", "Marlin, e8m0 bytes, 16-bit activations",
        "e (bn m s t i) g -> e g (bn i m t s)", {"m": 2, "s": 2, "t": 2, "i": 8},
    ),
)  # fmt: skip
BY_NAME = {layout.name: layout for layout in ALL}
