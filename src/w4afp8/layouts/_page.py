"""docs/layouts.md: what every layout holds, how, and who reads it.  Printed from the layouts themselves."""

from __future__ import annotations

from w4afp8 import layouts
from w4afp8.layouts._order import Order
from w4afp8.layouts._orders import ORDERS
from w4afp8.layouts._spec import FORMS, Holding, Layout, Store

HEAD = """# Runtime layouts

```
cd DeepSeek-R1-W4AFP8 && w4afp8 convert --layout sm90      # writes ../DeepSeek-R1-W4AFP8-sm90
w4afp8 convert DeepSeek-R1-W4AFP8 --layout sglang-cutlass --tp 8 -o R1-cutlass-tp8
w4afp8 convert R1-cutlass-tp8 --layout canonical -o R1-again    # the first directory, byte for byte
```

A layout holds a layer's routed experts as an engine's kernels hold them in memory: two stacks, w13 (gate and up)
and w2 (down), codes and scales each in the order in which they are read. Everything else is carried as it is. The
tables are printed from `src/w4afp8/layouts/` by `python tests/layouts/test_layouts.py`.

**Every layout is reversible.** The canonical headers, config, index, activation scales and the digests of every
tensor and file are kept in `w4afp8/canonical/` and `w4afp8/layout.json`; `--layout canonical` compares each as it
writes, `--jobs` experts at a time as on the way there. A header or a kept file that is damaged is refused before the
first byte is written.

**`w4afp8 validate` proves it without a second copy.** It makes the canonical files again, one expert at a time in the
order of their bytes, and hashes them instead of writing them: every tensor, every shard and the checksum of all shards
are compared with the record. Every expert is laid out again and compared with the stored bytes, padding too. The stacks
of `sm90` are then multiplied as they stand in the files, rank by rank: `torch.ops.w4afp8.grouped_gemm` on every expert,
`fused_moe` with the rank's own activation scales, beside float64 (`--device cuda`: by the kernels on a Hopper GPU;
`--quick`: a sample of the experts, every byte still compared). The verdict is a proof if the canonical checkpoint was
proven, with these tensors, this config and these side files: validate that first, or give it as `--against`. The
checksum of the canonical bytes stands in every shard's
metadata, in `config.json` and in `layout.json`.

**Ranks.** `--tp N` cuts gate and up by rows and down by inputs, each projection by itself, never through a group
that shares a scale; where the groups do not divide, the last rank is shorter and padded. `--ep N` gives every group
of ranks as many whole experts. Rank r = EP rank x N(tp) + TP rank has the folder `rank-r-of-n` with its stacks, an
index and a config that says which experts it holds; what is carried stands once, beside the folders. Static
activation scales are reduced to the largest of a rank's experts, as the engines do; biases are cut, joined and
padded with the rows, that of down on the first TP rank only, because results are added up.

**Padding.** Hidden and intermediate sizes are padded with zeros (codes and scales) to the multiple below, each half
of w13 by itself; the true sizes stand in `config.json` (`quantization_config.sizes`) and `layout.json`.

**Scales that are searched.** `vllm-cutlass` multiplies with an e4m3 number per group and one float32 factor per row.
Where no factor gives a row's scales exactly the layout refuses, and says which `--tolerance` (the largest relative
change of a scale) would be enough; the true scales are then kept beside, so the way back stays exact. On the
miniature under plain rounding 0.0323 is enough: the scales change by 0.7 % (rms), the weights by -43.2 dB, and by
-33.6 dB as that engine multiplies, which rounds the products of scale and code to e4m3 again whatever the scale;
rounding to int4 had changed them by -19.0 dB, and all together by -18.9 dB (`benchmarks/bench_tolerance.py`).
"""


def page() -> str:
    """The whole page."""
    lines = [
        HEAD,
        "| layout | version | read by | w13 | int4 | MXFP4 | static scales | biases | pads to |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for name in layouts.names():
        layout = layouts.get(name)
        cells = [_form(layout, form, notes) for form in FORMS.values()]
        halves = " ; ".join(half.removesuffix("_proj") for half in layout.w13)
        static = {"F32": "largest", "BF16": "largest, rounded to bfloat16 first", None: "none"}[layout.input_scale]
        lines.append(
            f"| `{name}` | {layout.version} | {layout.read_by} | {halves} | {' | '.join(cells)} | {static} | "
            f"{'yes' if layout.bias else 'no'} | {layout.pad} |"
        )
    lines += ["", *(f"{number}. {note}." for number, note in enumerate(notes, 1)), ""]
    lines += [
        "## Orders",
        "",
        "Read a line from left to right to lay out, backwards to take apart. e experts, n outputs, k inputs; the last",
        "axis of a weight counts its bytes or 16-bit words, low nibble first.",
        "",
        "| order | logical axes -> stored axes | sizes | of |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| `{name}` | {_line(order)} |" for name, order in sorted(ORDERS.items())]
    return "\n".join(lines) + "\n"


def _form(layout: Layout, form: str, notes: list[str]) -> str:
    holdings = layout.holdings(form)
    words = [holdings] if isinstance(holdings, str) else [layout.note] if layout.note else []
    for word in words:
        if word not in notes:
            notes.append(word)
    marks = "".join(f" ({notes.index(word) + 1})" for word in words)
    return f"no{marks}" if isinstance(holdings, str) else f"{'; or '.join(map(_holding, holdings))}{marks}"


def _holding(holding: Holding) -> str:
    pieces = [f"{piece.dtype} {_name(piece.order)}" for piece in (holding.codes, *holding.scales.pieces)]
    return ", ".join(pieces)


def _name(order: Store) -> str:
    for name, known in ORDERS.items():
        if known is order:
            return f"`{name}`"
    first: tuple[Store, ...] = getattr(order, "orders", ())
    return " or ".join(_name(each) for each in first)


def _line(order: Order) -> str:
    sizes = ", ".join(f"{axis} {size}" for axis, size in order.sizes.items())
    bits = "; then bits within 32-bit words" if order.bits else ""
    unit = {0: "elements", 4: "nibbles", 16: "16-bit words"}[order.unit]
    return f"`{order.pattern}` | {sizes} | {unit}{bits}"
