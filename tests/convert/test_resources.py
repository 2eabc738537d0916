"""What a run needs, and the refusal when it is not there."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from w4afp8 import families, quantize
from w4afp8.convert import resources
from w4afp8.convert.plan_quantize import make_plan
from w4afp8.convert.resources import Needs
from w4afp8.errors import ResourceError
from w4afp8.families._inventory import take_inventory
from w4afp8.recipes._load import load
from w4afp8.synthetic import specs_of, style_of

Disk = namedtuple("Disk", "total used free")
Memory = namedtuple("Memory", "available")


def needs_of(config: dict[str, Any], tokens: int, sequence: int = 512) -> Needs:
    family = families.of(config)
    d = family.dimensions(config)
    specs = {s.name: s for item in family.expected(d).values() for s in specs_of(item, style_of("fp8"))}
    recipe, method = quantize.resolve(load("balanced"))
    plan = make_plan(family, d, config, take_inventory(family, d, specs), recipe)
    return resources.estimate(plan, method, tokens, sequence)


@pytest.fixture
def needs() -> Needs:
    return Needs(resident=500, phases={"attention": 2000, "experts": 3000}, output=10_000, state=700)


def machine(monkeypatch: pytest.MonkeyPatch, free: int, available: int) -> None:
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: Disk(0, 0, free))
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: Memory(available))


def test_the_peak_is_the_largest_phase(needs: Needs) -> None:
    assert (needs.peak, needs.peak_phase, needs.disk) == (3500, "experts", 10_700)


def test_a_machine_that_is_large_enough_is_accepted(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, free=10_700, available=3000)
    resources.check(needs, tmp_path / "not" / "yet" / "there")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("free", "available", "words"),
    [(10_699, 3000, ["disk: the output takes 11 kB", "11 kB free"]),
     (10_700, 2999, ["memory: the phase 'experts' takes 3 kB", "lower calibration.tokens"]),
     (0, 0, ["2 problems", "disk", "memory"])],
)  # fmt: skip
def test_a_machine_that_is_too_small_is_refused(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, available: int, words: list[str]
) -> None:
    machine(monkeypatch, free, available)
    with pytest.raises(ResourceError) as caught:
        resources.check(needs, tmp_path / "out")
    assert all(word in str(caught.value) for word in words)
    assert caught.value.exit_code == 4


def test_what_is_written_already_is_not_asked_for_again(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped half way on a disk that is just large enough must be able to go on."""
    out = tmp_path / "out"
    (out / "w4afp8").mkdir(parents=True)
    (out / "model-00001-of-00002.safetensors").write_bytes(b"\0" * 6000)
    (out / "w4afp8" / "layer-000.states").write_bytes(b"\0" * 350)
    machine(monkeypatch, free=4350, available=3000)
    resources.check(needs, out)
    machine(monkeypatch, free=4349, available=3000)
    with pytest.raises(ResourceError, match="disk: the output takes 4 kB"):
        resources.check(needs, out)


def test_more_layers_need_no_more_memory(miniature_config: dict[str, Any]) -> None:
    few = needs_of(miniature_config, 65536)
    many = needs_of(miniature_config | {"num_hidden_layers": 32}, 65536)
    assert many.phases == few.phases
    assert many.output > 5 * few.output


def test_more_experts_need_their_statistics_only(miniature_config: dict[str, Any]) -> None:
    few = needs_of(miniature_config, 65536)
    many = needs_of(miniature_config | {"n_routed_experts": 256}, 65536)
    growth = max(many.phases.values()) - max(few.phases.values())
    assert growth <= 65536 * 240 * 4 * 3  # a few floats per token and expert: the routing


def test_r1_on_a_cpu_stays_under_20_gb(miniature_config: dict[str, Any]) -> None:
    r1 = {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 128, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip
    found = needs_of(miniature_config | r1, 65536)
    assert max(found.phases.values()) < 20e9
    assert 340e9 < found.output < 400e9


def test_tokens_and_sequences_cost_memory(miniature_config: dict[str, Any]) -> None:
    base, more = needs_of(miniature_config, 4096), needs_of(miniature_config, 65536)
    assert more.peak - more.resident > base.peak - base.resident
    assert more.state == 16 * base.state
    longer = needs_of(miniature_config, 65536, 4096)
    assert longer.phases["attention"] > more.phases["attention"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_400_000, "1.4 MB"),
        (2.5e9, "2.5 GB"),
        (7e12, "7.0 TB"),
        (-5, "-5 B"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert resources.human(count) == text


def test_the_peak_so_far_is_known_on_linux() -> None:
    assert resources.peak_resident_bytes() > 50e6
