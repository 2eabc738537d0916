"""The commands that make these bytes again."""

from __future__ import annotations

import shlex

from w4afp8.report.facts import Facts

RECIPE = "w4afp8/recipe.yaml"


def reproduce(facts: Facts) -> str:
    """One command, or two where what was quantized was converted; capitals stand for what is not recorded."""
    name = shlex.quote(facts.name)
    if facts.layout:
        split = f"--tp {facts.layout['tensor_parallel']} --ep {facts.layout['expert_parallel']}"
        split += f" --tolerance {facts.tolerance:g}" if facts.tolerance else ""
        return f"w4afp8 convert CANONICAL --layout {facts.layout['layout']} {split} -o {name}"
    verdict = facts.validation or {}
    source = shlex.quote(verdict.get("against") or "SOURCE")
    if not facts.conversion:
        return _quantize(source, name)
    made = f"--format {facts.conversion.get('to')} -o {name}"
    if not facts.record.get("method"):
        return f"w4afp8 convert {source} {made}"
    # A claim is about what was converted; else the validation compared with what was quantized.
    return f"{_quantize('SOURCE' if verdict.get('claim') else source, 'QUANTIZED')}\nw4afp8 convert QUANTIZED {made}"


def _quantize(source: str, out: str) -> str:
    return f"w4afp8 quantize --model {source} --recipe {RECIPE} -o {out}"
