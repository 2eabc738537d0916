"""Every row names a compiled kernel and says what it is; choosing refuses in words."""

import re
from pathlib import Path

import pytest

from w4afp8.errors import KernelError
from w4afp8.kernels import build, schedules, tuned
from w4afp8.kernels.schedules import Problem

INSTANCES = build.CSRC / "sm90" / "grouped_gemm" / "instances"
R1 = Problem(tokens=512, experts=256, rows=4096, cols=7168)


def test_rows_and_instances_are_the_same_set():
    assert {row.kernel for row in schedules.ROWS} == {p.stem for p in INSTANCES.glob("*.cu")}
    listed = re.findall(r"ROW\((\w+)\)", (INSTANCES.parent / "launch.cu").read_text())
    assert {row.kernel for row in schedules.ROWS} == set(listed) - {"name"}


@pytest.mark.parametrize("row", schedules.ROWS, ids=lambda r: f"{r.kernel}-{r.split_groups}")
def test_a_row_says_what_its_instance_compiles(row):
    text = (INSTANCES / f"{row.kernel}.cu").read_text()
    defaults = re.search(r"struct Defaults \{(.*?)\n\};", (INSTANCES.parent / "config.h").read_text(), re.DOTALL)[1]
    said = dict(re.findall(r"(k\w+) = ([\w:]+)", defaults + text))
    numbers = ("kConsumers", "kStageGroups", "kCluster", "kRoom", "kBlocks")
    assert [int(said[key]) for key in numbers] == [row.consumers, row.stage_groups, row.cluster, row.room, row.blocks]
    counts = re.search(r"TokenCounts<([\d, ]+)>", text)[1]
    assert max(map(int, counts.split(","))) == row.max_tokens
    assert (said["kGroupScale"] == "true") == row.group_scale
    assert (said["kScales"] == "Scales::kAny") == (row.weight_scales != "bfloat16")
    assert f"launch_{row.kernel}(" in text


def test_wgmma_header_is_what_its_script_writes():
    import runpy

    ptx = build.CSRC / "ptx"
    made = runpy.run_path(str(ptx / "make_wgmma.py"))
    text = made["HEAD"] + "".join(made["struct"](n) for n in made["TOKENS"]) + "\n}  // namespace w4afp8::ptx\n"
    assert (ptx / "wgmma.cuh").read_text() == text


@pytest.mark.parametrize("tokens", [1, 7, 64, 1000, 65536])
@pytest.mark.parametrize("shape", [(256, 4096, 7168), (1, 24576, 1536), (32, 512, 256), (1, 64, 128)])
def test_something_runs_every_plausible_problem(tokens, shape):
    experts, rows, cols = shape
    assert not schedules.choose(Problem(tokens, experts, rows, cols)).refusals(Problem(tokens, experts, rows, cols))
    assert schedules.choose(Problem(tokens, experts, rows, cols, group_scale=True)).group_scale
    assert schedules.choose(Problem(tokens, experts, rows, cols, float_scale=True)).weight_scales == "float32"


def test_more_tokens_never_get_a_smaller_tile():
    tiles = [schedules.choose(Problem(8 * m, 256, 4224, 7168)).max_tokens for m in (1, 64, 256, 512, 1024, 4096)]
    assert tiles == sorted(tiles)


@pytest.mark.parametrize("tokens", [8, 512, 4096, 65536])
@pytest.mark.parametrize("shape", [(256, 4096, 7168), (256, 512, 256), (1, 7168, 16384)], ids=str)
def test_a_cluster_is_chosen_only_where_it_was_measured_faster(tokens, shape, monkeypatch):
    """The cost model knows no worth of theirs, but what an odd row tile costs it knows."""
    problem = Problem(tokens, *shape)
    monkeypatch.setattr(tuned, "lookup", lambda *where: None)
    schedules.forget()
    assert schedules.choose(problem).cluster == 1
    rows = {(row.kernel, row.split_groups): row for row in schedules.ROWS}
    for name, split in rows:
        if (name + "c", split) in rows:
            pair, alone = rows[name + "c", split], rows[name, split]
            assert schedules.cost_us(problem, pair) >= schedules.cost_us(problem, alone)
            odd = Problem(65536, 256, 64 * alone.consumers, 1536)
            assert schedules.cost_us(odd, pair) > 1.5 * schedules.cost_us(odd, alone)
    monkeypatch.setattr(tuned, "lookup", lambda *where: ("t152c", 4))
    schedules.forget()
    assert schedules.choose(problem).kernel == "t152c"
    schedules.forget()


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (Problem(5, 1000, 4096, 7168), "1000 experts"),
        (Problem(5, 8, 4100, 7168), "N=4100"),
        (Problem(5, 8, 4096, 7100), "K=7100"),
        (Problem(5, 8, 4096, 7100, float_scale=True), "scales are float32, this kernel reads bfloat16"),
    ],
)
def test_a_refusal_has_words(problem, word):
    with pytest.raises(KernelError, match=word):
        schedules.choose(problem)


def test_every_measured_choice_can_be_made():
    rows = {(row.kernel, row.split_groups): row for row in schedules.ROWS}
    for shape, measured in tuned.table("h200").schedules.items():
        for tokens, kernel, split in measured:
            problem = Problem(tokens, *map(int, shape.split()))
            assert schedules.choose(problem) == rows[kernel, split]


def test_a_measured_problem_far_away_is_not_used():
    assert tuned.lookup(256, 4096, 7168, 512) is not None
    assert tuned.lookup(256, 4096, 7168, 10_000_000) is None
    assert tuned.lookup(255, 4096, 7168, 512) is None


def test_the_build_is_named_by_its_sources(tmp_path, monkeypatch):
    before = build.digest()
    assert before == build.digest()
    monkeypatch.setattr(build, "CUDA_FLAGS", (*build.CUDA_FLAGS, "-DX"))
    assert build.digest() != before


def test_no_nvcc_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(KernelError, match="nvcc"):
        build.build(Path(tmp_path) / "x.so", 1)
    assert build.main(["--compile-only"]) == 2
