"""The search: every row is verified before it is timed, the fastest right one is kept, the table is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_stand import ABOUT, Clock

from w4afp8.errors import KernelError, RecipeError
from w4afp8.kernels import layers, reference, schedules, settings, tuned
from w4afp8.measure import data, table, truth, tune
from w4afp8.measure.race import Found
from w4afp8.measure.shapes import NAMED, Gemm, Layer, Shape
from w4afp8.measure.stand import Stand

PLAIN = [row for row in schedules.ROWS if not row.refusals(schedules.Problem(8, 1, 64, 256))]


def search(kind: Any, shape: Shape, stand: Stand, tokens: tuple[int, ...] = (16,)) -> list[Found]:
    return list(tune.search(kind, [shape], tokens, stand, lambda *step: None))


def test_the_fastest_row_wins_and_every_row_was_tried(stand: Stand, clock: Clock, small: Shape) -> None:
    clock.price = lambda kernel: {"t48": 5.0, "t64": 5.5}.get(kernel, 30.0)
    found = search("gemm", small, stand)
    assert [f.problem.name for f in found] == ["small.gate_up", "small.down", "small.o"]
    for f in found:
        kernel, us = ("s64", 30.0) if f.problem.cols == 128 else ("t48", 5.0)
        assert f.best.kernel == kernel and f.timing.us == us
        fits = [
            row for row in schedules.ROWS if not row.refusals(schedules.Problem(16, 1, f.problem.rows, f.problem.cols))
        ]
        assert len(f.tried) == len(fits) > 0 and len(f.refused) == len(schedules.ROWS) - len(fits)
        assert not f.wrong and f.before_us in (30.0, 5.0, 5.5)
    assert found[1].refused["t48/0"] == "K=128 is no multiple of 256"


def test_progress_is_a_bar_a_gemm_and_a_step_a_schedule(stand: Stand, small: Shape) -> None:
    steps: list[tuple[str, int, int]] = []
    list(tune.search("gemm", [small], (1, 16), stand, lambda *step: steps.append(step)))
    assert {name for name, _, _ in steps} == {gemm.name for gemm in small.gemms}
    for gemm in small.gemms:
        done = [(done, total) for name, done, total in steps if name == gemm.name]
        assert done == [(n, 2 * len(schedules.ROWS)) for n in range(1, 2 * len(schedules.ROWS) + 1)]


def test_a_wrong_row_is_reported_and_never_timed(stand: Stand, clock: Clock, small: Shape) -> None:
    def spoil(row: schedules.Schedule, out: torch.Tensor) -> None:
        if row.kernel == "t8":
            out[0] *= 1.1
        if row.kernel == "t16":
            out[-1, -1] = float("nan")

    clock.spoils = spoil
    clock.price = lambda kernel: 1.0 if kernel in ("t8", "t16") else 30.0
    (found,) = search("gemm", Shape("d", None, (Gemm("d.o", 128, 256),)), stand)
    assert found.best.kernel not in ("t8", "t16")
    assert set(found.wrong) == {"t8/0", "t8/4", "t16/0", "t16/4"}
    assert "an error of" in found.wrong["t8/0"] and "not finite" in found.wrong["t16/0"]
    assert not set(found.wrong) & set(found.tried)


def test_nothing_right_is_an_error_with_every_reason(stand: Stand, clock: Clock, small: Shape) -> None:
    clock.spoils = lambda row, out: out.zero_()
    with pytest.raises(KernelError, match=r"no schedule is right on this device(.|\n)*g16/0: activation scales"):
        search("gemm", small, stand)


def test_the_layer_runs_under_the_row_that_is_tried(stand: Stand, clock: Clock, small: Shape) -> None:
    assert small.layer
    clock.price = lambda kernel: {"t32": 7.0}.get(kernel, 20.0)  # of what down ran under
    gate_up, down, _ = search("moe", WIDE, stand)
    assert (gate_up.problem.name, down.problem.name) == ("wide.gate_up", "wide.down")
    assert down.best.kernel == "t32" and len(down.tried) == len(PLAIN)
    assert not tuned._pinned
    seen = {row.kernel for row in clock.ran}
    assert {row.kernel for row in PLAIN} <= seen


WIDE = Shape("wide", Layer("wide", 256, 256, 4, 8, 2))


def test_the_layer_in_one_launch_is_raced_with_the_schedules_that_won(stand: Stand, clock: Clock) -> None:
    clock.price = lambda kernel: {"n16": 4.0, "n8": 4.5, "n8f": 4.75, "t32": 6.0}.get(kernel, 20.0)
    steps: list[tuple[str, int, int]] = []
    *gemms, found = tune.search("moe", [WIDE], (16, 64), stand, lambda *step: steps.append(step))
    (few,) = (f for f in gemms if f.problem == WIDE.layer)
    assert few.chosen == found.chosen == "n16"
    assert few.tried == {"several": 6.0, "n8f": 4.75, "n8": 4.5, "n16": 4.0} and not few.wrong and not few.refused
    assert (found.key, found.tokens, found.rows) == ("4 256 256", 64, 64)
    assert found.tried == {"several": 6.0, "n8": 4.5, "n16": 4.0} and not found.wrong
    assert found.refused == {"n8f": "128 pairs, this kernel holds 64"}
    assert (few.before_us, found.before_us) == (4.75, 6.0), "as the rows say"
    assert [s[1:] for s in steps if s[0] == "wide"] == [(n, 8) for n in range(1, 9)]
    clock.price = lambda kernel: {"n16": 8.0, "t32": 6.0}.get(kernel, 20.0)
    assert search("moe", WIDE, stand)[-1].chosen == "several"


def test_a_layer_that_one_launch_spoils_or_cannot_run_takes_several(stand: Stand, clock: Clock, small: Shape) -> None:
    clock.price = lambda kernel: 1.0 if kernel in ("n8f", "n8", "n16") else 9.0
    found = search("moe", small, stand)[-1]
    assert found.chosen == "several" and found.refused["n8"] == "hidden 256 or inner 128 is no multiple of 256"

    def spoil(row: Any, out: torch.Tensor) -> None:
        if row.kernel in ("n8f", "n8"):
            out *= 1.1
        if row.kernel == "n16":
            out[3, -1] = float("nan")

    clock.spoils = spoil
    found = search("moe", WIDE, stand)[-1]
    assert found.chosen == "several" and set(found.wrong) == {"n8f", "n8", "n16"} and found.tried.keys() == {"several"}
    assert "an error of" in found.wrong["n8"] and "not finite" in found.wrong["n16"] and found.before_us is None


def test_a_measured_way_is_taken_and_the_bounds_of_the_rows_elsewhere(
    stand: Stand, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    monkeypatch.setenv("W4AFP8_TUNED", str(path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: ABOUT["device"])
    asked = layers.Layer(pairs=128, likely=64, experts=4, hidden=256, inner=256)
    path.write_text(json.dumps({"device": ABOUT["device"], "schedules": {}}))
    by_rule = layers.choose(asked)
    assert by_rule is None, "16 rows an expert and a deviation are too many"
    clock.price = lambda kernel: {"n8": 4.0}.get(kernel, 20.0)
    for cell, kernel in ((4.0, "n8"), (30.0, None)):
        clock.price = lambda kernel, cell=cell: cell if kernel == "n8" else 20.0
        assert table.write(path, search("moe", WIDE, stand, (64,)), ABOUT, "x") == 3
        assert json.loads(path.read_text())["layers"] == {"4 256 256": [[64, kernel or "several"]]}
        chosen = layers.choose(asked)
        assert (chosen.kernel if chosen else None) == kernel
        again = layers.choose(replace(asked, likely=90))
        assert (again.kernel if again else None) == kernel, "within a factor of 1.6"
    few = replace(asked, likely=8)
    assert layers.choose(few) == layers.ROWS[1], "nothing measured near"
    assert layers.choose(replace(few, pairs=64)) == layers.ROWS[0], "of all ranks' pairs"
    path.write_text(path.read_text().replace("several", "n7"))
    tuned.forget(), layers.forget()
    assert layers.choose(asked) == by_rule, "a kernel that this build has not"
    path.write_text(json.dumps({"device": ABOUT["device"], "schedules": {}, "layers": {"4 256 256": [[64, "n8"]]}}))
    tuned.forget(), layers.forget()
    assert layers.choose(replace(asked, pairs=8192)) is None, "a kernel that cannot run this"


def test_the_truth_of_a_layer_sees_the_busiest_expert_and_every_sampled_token() -> None:
    cpu = torch.device("cpu")
    assert WIDE.layer
    gate_up, down = (data.weight(gemm, cpu) for gemm in WIDE.layer.gemms)
    (call, *_) = data.layer_calls(WIDE.layer, gate_up, down, 64)
    exact, right = truth.sample_layer(call), reference.fused_moe(call)
    assert exact.error(right) == 0 and len(exact.rows) >= truth.TOKENS
    counts = call.topk_ids[call.topk_ids < 4].bincount()
    (own,) = (call.topk_ids == counts.argmax()).any(1).nonzero(as_tuple=True)
    assert {0, 63, int(own[0]), int(own[-1])} <= set(exact.rows.tolist())
    for row in exact.rows.tolist():
        if not right[row].any():
            continue  # a token of other ranks
        wrong = right.clone()
        wrong[row] *= 1.2
        assert exact.error(wrong) > truth.WORST_LAYER_ERROR


def test_the_table_is_stamped_read_first_and_only_on_its_device(
    stand: Stand, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock.price = lambda kernel: {"t48": 5.0}.get(kernel, 30.0)
    shape = Shape("d", None, (Gemm("d.q", 24576 // 96, 1536),))
    (found,) = search("gemm", shape, stand)
    path = settings.tuned_table("a Hopper")
    assert path == tmp_path / "config" / "w4afp8" / "tuned" / "a-hopper.json"
    assert table.write(path, [found], ABOUT, "w4afp8 tune gemm") == 1
    content = json.loads(path.read_text())
    assert {key: content[key] for key in ABOUT} == ABOUT and content["made_by"] == "w4afp8 tune gemm"
    problem = schedules.Problem(16, 1, 256, 1536)
    assert schedules.choose(problem).kernel != "t48", "no GPU, no table"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, kernel in (("a Hopper", "t48"), ("another", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=device: device)
        schedules.forget()
        assert (tuned.lookup(1, 256, 1536, 17) or (None,))[0] == kernel
        assert (schedules.choose(problem).kernel == "t48") == (kernel is not None)
    monkeypatch.setenv("W4AFP8_TUNED", str(path))
    assert tuned.lookup(1, 256, 1536, 16) is None, "another device's table, though it is named"
    shipped = json.loads((Path(tuned.__file__).parent / "h200.json").read_text())["schedules"]["256 4096 7168"]
    assert [tuned.lookup(256, 4096, 7168, rows) for rows, *_ in shipped] == [tuple(row) for _, *row in shipped]
    monkeypatch.setenv("W4AFP8_TUNED", str(tmp_path / "none.json"))
    with pytest.raises(KernelError, match=r"none.json: cannot be read"):
        tuned.lookup(1, 256, 1536, 16)


def test_a_second_search_keeps_the_other_rows(stand: Stand, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    one = Shape("d", None, (Gemm("d.q", 256, 512),))
    table.write(path, search("gemm", one, stand, (1, 16)), ABOUT, "x")
    clock.price = lambda kernel: {"t96": 1.0}.get(kernel, 30.0)
    assert table.write(path, search("gemm", one, stand, (16,)), ABOUT, "x") == 2
    assert [row[:2] for row in tuned.parse(path).schedules["1 256 512"]][1] == (16, "t96")
    assert table.write(path, search("gemm", one, stand, (64,)), ABOUT, "x", keep=False) == 1
    with pytest.raises(RecipeError, match="is the table of a Hopper, this is another"):
        table.refuse_foreign(path, "another")
    table.refuse_foreign(path, "a Hopper")
    table.refuse_foreign(tmp_path / "none.json", "another")
    for odd in (
        '{"device": "x"}',
        '{"device": "x", "schedules": {"1 256 512": [[0, "t8", 0]]}}',
        "[]",
        '{"device": "x", "schedules": {}, "layers": {"4 256 256": [["n8", 64]]}}',
    ):
        (tmp_path / "odd.json").write_text(odd)
        with pytest.raises(KernelError, match=r"odd.json: is no table"):
            table.refuse_foreign(tmp_path / "odd.json", "x")


def test_the_shipped_table_can_be_extended(tmp_path: Path) -> None:
    """What stands in the package is what `tune` reads and writes."""
    path = tmp_path / "h200.json"
    path.write_bytes((tuned.HERE / "h200.json").read_bytes())
    table.refuse_foreign(path, "NVIDIA H200")
    before = tuned.parse(path)
    table.write(path, [], {**ABOUT, "device": "NVIDIA H200"}, "x")
    assert tuned.parse(path) == before


def test_the_truth_sees_a_single_wrong_expert(small: Shape) -> None:
    (call, *_) = calls_of(small.gemms[0], 64)
    right = reference.grouped_gemm(call)
    exact = truth.sample(call)
    assert exact.error(right) < truth.WORST_ERROR
    counts = call.expert_offsets.diff().tolist()
    for expert, (begin, count) in enumerate(zip(call.expert_offsets.tolist(), counts)):
        wrong = right.clone()
        wrong[begin : begin + count] *= 1.02
        assert count and exact.error(wrong) > truth.WORST_ERROR, expert


def test_the_sample_of_many_experts_has_the_busiest() -> None:
    gemm = Gemm("g", 64, 128, experts=40, routed=40, top_k=4)
    (call, *_) = calls_of(gemm, 200)
    exact = truth.sample(call)
    counts = call.expert_offsets.diff()
    busiest = int(counts.argmax())
    assert int(call.expert_offsets[busiest]) in exact.rows.tolist()
    assert {0, len(call.x) - 1} <= set(exact.rows.tolist()) and len(exact.rows) < len(call.x) / 2


def calls_of(gemm: Gemm, tokens: int) -> list[Any]:
    cpu = torch.device("cpu")
    return data.gemm_calls([data.weight(gemm, cpu)], data.routings(gemm, tokens, cpu), gemm.cols)


def test_named_shapes_are_all_runnable() -> None:
    for shape in NAMED.values():
        for gemm in shape.gemms:
            assert not PLAIN[-1].refusals(schedules.Problem(8, gemm.experts, gemm.rows, gemm.cols))


def test_a_dense_call_is_measured_as_linear_makes_it() -> None:
    """Without offsets: a kernel that knows them asks for weights before the one before has ended."""
    (call,) = calls_of(Gemm("dense", 128, 256), 7)
    assert call.expert_offsets is None and len(call.x) == 7
    assert all(c.expert_offsets is not None for c in calls_of(Gemm("moe", 128, 256, 4, 4, 2), 7))
