"""The report's words: the verdict, the figures that a manager reads, the tables below them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from w4afp8.report.facts import Facts, Json
from w4afp8.report.scales import column, number, percent, size

WORST = 8  # experts listed by name

QUANTIZED = "nearly all of the bytes; each token reads only a few of them"
# Why a role keeps the source's precision.  Roles as the record names them.
REASONS = {
    "attention": "few bytes, read for every token; FP8 already",
    "dense mlp": "the first layers: few bytes, and every token passes them",
    "shared expert": "every token passes it; FP8 already",
    "router": "decides who computes at all; a fraction of a percent of the bytes",
    "norm": "vectors: nothing to gain",
    "embedding": "a table that is looked up, not multiplied",
    "head": "the logits themselves",
    "mtp": "what joins the extra layer to the model; the source keeps it unquantized too",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the summary."""

    title: str
    value: str
    note: str
    tone: str = ""  # good, bad, or nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, one tone, one sentence."""

    word: str
    tone: str
    sentence: str


def verdict(facts: Facts) -> Verdict:
    """What the validation says, as far as it went."""
    report = facts.validation
    if report is None:
        return Verdict("Not validated", "warn", "No validation was run on these bytes. Run `w4afp8 validate` first.")
    if facts.stale:
        return Verdict("Stale", "warn", f"Changed after the validation: {facts.stale[0]}. Run `w4afp8 validate` again.")
    failed = [check for check in report.get("checks", []) if check.get("problems")]
    if failed:
        count = sum(len(check["problems"]) + check.get("more", 0) for check in failed)
        names = ", ".join(check["name"] for check in failed)
        if names == "source":
            return Verdict("Not compared", "bad", "The directory given as the source is another one, as named below.")
        return Verdict("Do not use", "bad", f"{plural(count, 'problem')} in {names}, named below.")
    skipped = [check["name"] for check in report.get("checks", []) if check.get("skipped")]
    tested = sum(check.get("examined", 0) for check in report.get("checks", []))
    by = f" (by {report['proven_by']})" if report.get("proven_by") else ""
    if report.get("proven") and any(check.get("name") == "canonical proof" for check in report["checks"]):
        sentence = f"{tested:,} checks hold: the canonical checkpoint comes out byte for byte, and that was proven."
        return Verdict("Proven", "good", sentence)
    if report.get("proven") and report.get("claim"):
        return Verdict("Proven", "good", f"{tested:,} checks hold: {report['claim']}.")
    if report.get("proven"):
        sentence = (
            f"{tested:,} checks beside {report.get('against')} hold, among them every expert's output and every "
            f"grouped GEMM{by}."
        )
        return Verdict("Proven", "good", sentence)
    missing = (
        f"not tested: {', '.join(skipped)}" if skipped else f"{report.get('sample')} experts per layer were sampled"
    )
    return Verdict("Passed", "good", f"{tested:,} checks hold; {missing}.")


def brief(facts: Facts) -> list[str]:
    """The whole report in a few sentences, for who reads no further; what is not known is left out."""
    said = []
    if facts.bytes_out and facts.bytes_in:
        share = percent(facts.bytes_out / facts.bytes_in, 0)
        said.append(f"{size(facts.bytes_out)} instead of the source's {size(facts.bytes_in)} ({share}).")
    if facts.evaluations:
        found = facts.evaluations[0]
        change = found["perplexity"] / found["source_perplexity"] - 1
        said.append(
            f"On held-out text its perplexity is {found['perplexity']:.2f} beside the source's "
            f"{found['source_perplexity']:.2f} ({100 * change:+.1f} %), and its first choice is the source's for "
            f"{percent(found['top1_agreement'])} of the tokens."
        )
    else:
        said.append("Its quality beside the source was not measured.")
    coverage = facts.coverage
    if coverage:
        whole = not coverage["none"]
        said.append(
            f"Every expert saw calibration text, {coverage['min']:,} tokens at least." if whole
            else f"{plural(coverage['none'], 'expert')} of {coverage['experts']:,} saw no calibration text."
        )  # fmt: skip
    return said


def tiles(facts: Facts) -> list[Tile]:
    """The summary's figures; what is not known is said to be so."""
    return [*_size_tiles(facts), *_quality_tiles(facts), *_coverage_tiles(facts), _mtp_tile(facts)]


def _size_tiles(facts: Facts) -> list[Tile]:
    found = []
    if facts.bytes_out:
        before = facts.bytes_in
        note = f"from {size(before)}, {percent(facts.bytes_out / before, 0)} of it" if before else "source size unknown"
        found.append(Tile("Size", size(facts.bytes_out), note))
    bits = facts.record.get("bits_per_weight")
    if isinstance(bits, int | float):
        found.append(Tile("Bits per weight", f"{bits:.2f}", "of the experts, scales included"))
    return found


def _quality_tiles(facts: Facts) -> list[Tile]:
    found = []
    if not facts.evaluations:
        found.append(Tile("Quality", "not evaluated", "run w4afp8 eval"))
    else:
        best = facts.evaluations[0]
        text = f"{best['sequences']} × {best['sequence']} tokens, FP8 activations: {best['activations']}"
        found.append(
            Tile("KL divergence", number(best["kl"]), f"± {number(best.get('kl_standard_error', 0))} nats a token")
        )
        change = best["perplexity"] - best["source_perplexity"]
        shown = f"{best['perplexity']:.2f}"
        found.append(Tile("Perplexity", shown, f"source {best['source_perplexity']:.2f}, {change:+.2f}"))
        found.append(Tile("Same first choice", percent(best["top1_agreement"]), text))
    if facts.gain is not None:
        found.append(
            Tile("Error that is left", percent(facts.gain, 0), "of plain rounding's, mean over layers", "good"
                 if facts.gain < 1 else "")
        )  # fmt: skip
    return found


def _coverage_tiles(facts: Facts) -> list[Tile]:
    coverage = facts.coverage
    if coverage is None:
        return []
    least = f"{coverage['min']:,}"
    layer = facts.layer_name(coverage["min_layer"])
    where = f"expert {coverage['min_expert']} of layer {layer}, median {coverage['median']:,.0f}"
    if coverage["none"]:
        return [Tile("Experts without tokens", str(coverage["none"]), f"of {coverage['experts']:,}", "bad")]
    return [Tile("Fewest tokens", least, where)]


def _mtp_tile(facts: Facts) -> Tile:
    state = facts.record.get("mtp")
    kept = facts.config.get("num_nextn_predict_layers") or 0
    words = {"quantize": "kept, 4 bits", "native": "kept as in the source", "drop": "dropped"}
    if state == "drop":
        return Tile("Multi-token prediction", words[state], "the source's layer is not in this checkpoint")
    if isinstance(state, str) and kept:
        return Tile("Multi-token prediction", words.get(state, state), plural(kept, "layer"))
    return Tile(
        "Multi-token prediction", "kept" if kept else "none", plural(kept, "layer") if kept else "none in the source"
    )


def checks(facts: Facts) -> list[dict[str, Any]]:
    """Each promise with its state in a word."""
    found = []
    for check in (facts.validation or {}).get("checks", []):
        problems = check.get("problems") or []
        state = ("failed", "bad") if problems else ("holds", "good")
        if not problems and check.get("skipped"):
            state = ("not tested", "warn")
        elif not problems and check.get("idle"):
            state = ("nothing to test", "idle")
        note = check.get("skipped") or check.get("idle") or f"{check.get('examined', 0):,} examined"
        found.append({**check, "state": state[0], "tone": state[1], "note": note})
    return found


def roles(facts: Facts) -> list[dict[str, Any]]:
    """Bytes by role; for what stayed as it was, why."""
    found = []
    for role, row in facts.roles.items():
        quantized = row.get("bytes_in") != row.get("bytes_out")
        reason = QUANTIZED if quantized else REASONS.get(role, "not a routed expert")
        found.append(
            {
                "role": role, "count": row.get("count", 0), "format": row.get("format", ""), "quantized": quantized,
                "bytes_in": size(row.get("bytes_in")), "bytes_out": size(row.get("bytes_out")), "reason": reason,
            }
        )  # fmt: skip
    return sorted(found, key=lambda row: not row["quantized"])


def worst_experts(facts: Facts) -> list[dict[str, Any]]:
    """The experts whose output lost most."""
    rows = [
        {
            "layer": facts.layer_name(layer["layer"]), "expert": expert["expert"],
            "tokens": f"{expert.get('tokens', 0):,}", "rtn": column(expert["down"]["rtn"]),
            "chosen": column(expert["down"]["chosen"]), "order": expert["down"]["chosen"],
        }
        for layer in facts.layers
        for expert in layer.get("experts") or []
        if {"rtn", "chosen"} <= set(expert.get("down") or {})
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["order"])[:WORST]


def folds(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """How often each exponent was chosen: norm folds over layers, up/down folds over experts."""
    norms: Counter[str] = Counter()
    downs: Counter[str] = Counter()
    for layer in facts.layers:
        fold = layer.get("fold")
        if isinstance(fold, dict):
            norms[_exponents(fold.get("alpha"), fold.get("beta")) if fold.get("kept") else "no fold"] += 1
        for expert in layer.get("experts") or []:
            if "fold_alpha" in expert:
                alpha = expert["fold_alpha"]
                downs[_exponents(*alpha) if isinstance(alpha, list) else _exponents(alpha, None)] += 1
    return {name: _shares(counts) for name, counts in (("norm", norms), ("down", downs)) if counts}


def _exponents(alpha: Any, beta: Any = None) -> str:
    if alpha is None or (alpha == 0 and not beta):
        return "no fold"
    above = _power("x", alpha) if alpha else "1"
    return f"{above} / {_power('w', beta)}" if beta else above


def _power(base: str, exponent: float) -> str:
    return base if exponent == 1 else f"{base}^{exponent:g}"


def _shares(counts: Counter[str]) -> list[dict[str, Any]]:
    total = sum(counts.values())
    return [
        {"name": name, "count": count, "share": round(100 * count / total, 1)} for name, count in sorted(counts.items())
    ]


def provenance(facts: Facts) -> list[tuple[str, str]]:
    """What the bytes depend on."""
    tool = facts.record.get("tool") or {}
    calibration: Json = facts.record.get("calibration") or {}
    rows = [
        ("Tool", " ".join(filter(None, [tool.get("name"), tool.get("version")]))),
        ("torch", tool.get("torch")),
        ("Format", facts.record.get("format") or (facts.validation or {}).get("format")),
        ("Layout", f"{facts.layout['layout']}, read by {facts.layout['read_by']}" if facts.layout else None),
        ("Method", facts.record.get("method")),
        ("Calibration tokens", f"{calibration['tokens']:,}" if "tokens" in calibration else None),
        ("Calibration SHA-256", calibration.get("sha256")),
        ("Time", _duration(sum(facts.seconds.values())) if facts.seconds else None),
    ]
    return [(name, str(value)) for name, value in rows if value]


def timing(facts: Facts) -> str | None:
    """How long the layers took, all together and each."""
    seconds = facts.seconds
    if not seconds:
        return None
    slowest = max(seconds, key=lambda layer: seconds[layer])
    total, middle, longest = map(_duration, (sum(seconds.values()), median(seconds.values()), seconds[slowest]))
    return (
        f"{total} for {plural(len(seconds), 'layer')}: {middle} each in the median, "
        f"layer {facts.layer_name(slowest)} took longest with {longest}."
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def plural(count: int, noun: str) -> str:
    """'1 layer', '2 layers'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
