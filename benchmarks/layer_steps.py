#!/usr/bin/env python3
"""Times every step of a branch on the one-launch layer against the commit the branch began at, in separate processes.

    python benchmarks/layer_steps.py build [--base main] [--into build/layer_steps]  # needs nvcc and git
    python build/layer_steps/tree/benchmarks/layer_steps.py run [--rounds 2] [--out DIR]  # needs a Hopper GPU

`build` compiles kernel_layer_driver.cu against the kernels of every commit since `base` that changes them, and copies
the last tree with its compiled library beside them.  `run` tests that library, lets the memory checker look at a small
layer, then takes turns: every step at every shape, `rounds` times.  A step that has a kernel for few pairs (n8f) runs
it where they are few.  All steps add in the same order, so each must have the outputs of the first, bit by bit; a step
that hangs or differs is said and left out of the next round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CSRC = "src/w4afp8/kernels/csrc"
ARCH = "-gencode=arch=compute_90a,code=sm_90a"
KERNELS = {"n8f": "-DFEW", "n8": "-DTOKENS=8", "n16": "-DTOKENS=16"}  # and how the driver is built
FEW_PAIRS = 64  # of a call: n8f takes them
SHAPES = {  # hidden, inner, experts here, experts routed to, choices; token counts of n8 or n8f, and of n16
    "TP8": ((7168, 256, 256, 256, 8), {"n8": "1,8,16,32,64,128", "n16": "256"}),
    "R1": ((7168, 2048, 256, 256, 8), {"n8": "1,8,64"}),
    "EP8": ((7168, 2048, 32, 256, 8), {"n8": "8,64,128"}),
}
CHECKED = (1024, 512, 16, 16, 4)  # what the memory checker runs, at these token counts
CHECKED_TOKENS = {"n8f": "1,9,16", "n8": "1,9,40", "n16": "40"}
LINE = re.compile(r"M=(\d+) floor ([\d.]+) us ([\d.]+) \([\d.]+\) hash (\w{16})(.*)")
HANGS_AFTER_S = 40


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


def commits(base: str) -> list[str]:
    """The base, then every commit since that changes what the driver is compiled of."""
    begin = git("merge-base", base, "HEAD")
    parts = [f"{CSRC}/{part}" for part in ("ptx", "sm90/moe", "sm90/overlap.cuh", "sm90/grouped_gemm/workspace.cu")]
    return [begin, *git("log", "--reverse", "--no-merges", "--format=%h", f"{begin}..HEAD", "--", *parts).split()]


def build(base: str, into: Path) -> None:
    """Drivers in into/<number>-<commit>/n8f (where the commit has it), n8 and n16, into/steps.json, into/tree."""
    shutil.rmtree(into, ignore_errors=True)
    driver = Path("benchmarks/kernel_layer_driver.cu").resolve()
    steps = []
    for number, commit in enumerate(commits(base)):
        name = f"{number}-{commit[:7]}"
        folder = into / name
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit, CSRC], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        csrc = folder / CSRC
        for kernel, flag in KERNELS.items():
            if not (csrc / f"sm90/moe/layer/instances/{kernel}.cu").is_file():
                continue
            words = ["nvcc", "-std=c++20", "-O3", ARCH, f"-I{csrc}", flag, str(driver)]
            words += [str(csrc / "sm90/grouped_gemm/workspace.cu"), "-o", str(folder / kernel)]
            subprocess.run(words, check=True)
        shutil.rmtree(folder / "src")
        steps.append({"name": name, "what": git("log", "-1", "--format=%s", commit) if number else "base"})
        print(name, steps[-1]["what"], flush=True)
    (into / "steps.json").write_text(json.dumps(steps, indent=1))
    tree = into / "tree"
    for part in ("src", "tests/kernels", "benchmarks/layer_steps.py", "pyproject.toml"):
        target = tree / part
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if Path(part).is_dir() else shutil.copy2
        copy(part, target)
    subprocess.run([sys.executable, "-m", "w4afp8.kernels.build"], check=True, env=paths(tree))


def paths(tree: Path) -> dict[str, str]:
    """The environment in which `tree` is what Python imports."""
    return {**os.environ, "PYTHONPATH": str(tree.resolve() / "src")}


def correct(into: Path) -> None:
    """The tests of the layer on the GPU, and the memory checker."""
    tree = into / "tree"
    words = (
        f"{sys.executable} -m pytest -q -x -m gpu --noconftest -p no:cacheprovider tests/kernels/test_kernel_layer.py"
    )
    print("tests:", verdict(words, 180, cwd=tree, env=paths(tree)), flush=True)
    step = into / json.loads((into / "steps.json").read_text())[-1]["name"]
    for kernel, counts in CHECKED_TOKENS.items():
        words = f"compute-sanitizer --tool memcheck {step}/{kernel} {counts} {' '.join(map(str, CHECKED))} once"
        print(f"memcheck {kernel}:", verdict(words, 60), flush=True)


def verdict(words: str, seconds: float, **how: Any) -> str:
    """How a command ended, in its last lines; one that does not end is no reason to time nothing."""
    try:
        return last_lines(subprocess.run(words.split(), capture_output=True, text=True, timeout=seconds, **how))
    except (subprocess.TimeoutExpired, OSError) as why:  # no end, or no memory checker
        return str(why)


def last_lines(done: subprocess.CompletedProcess[str]) -> str:
    """The verdict, and more of it when it is bad."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return f"exit {done.returncode}: " + "\n".join(lines[-1 if done.returncode == 0 else -25 :])


class Race:
    """What was measured, and which steps are out of it."""

    def __init__(self, into: Path) -> None:
        self.into = into
        self.steps = json.loads((into / "steps.json").read_text())
        self.records: list[dict[str, object]] = []
        self.hashes: dict[tuple[str, int], str] = {}
        self.out: dict[str, str] = {}

    def run(self, step: str, shape: str, kernel: str, counts: str) -> None:
        """A step at one shape, few pairs by the kernel for them where the step has it."""
        if kernel == "n8" and (self.into / step / "n8f").is_file():
            top_k = SHAPES[shape][0][-1]
            is_few = {count: int(count) * top_k <= FEW_PAIRS for count in counts.split(",")}
            for name, few in (("n8f", True), ("n8", False)):
                if here := ",".join(count for count in is_few if is_few[count] == few):
                    self._process(step, shape, name, here)
        else:
            self._process(step, shape, kernel, counts)

    def _process(self, step: str, shape: str, kernel: str, counts: str) -> None:
        words = [str(self.into / step / kernel), counts, *map(str, SHAPES[shape][0])]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            self.out[step] = f"hangs at {shape} {kernel}"
            return
        if done.returncode:
            self.out[step] = f"{shape} {kernel}: exit {done.returncode} {done.stderr.strip()[-200:]}"
        for m, floor, us, found, other in LINE.findall(done.stdout):
            if other or self.hashes.setdefault((shape, int(m)), found) != found:
                self.out.setdefault(step, f"{shape} M={m}: other outputs{other}")
            cell = {"shape": shape, "tokens": int(m), "floor_us": float(floor), "us": float(us)}
            self.records.append({"record": "layer_step", "step": step, **cell})

    def show(self) -> None:
        """A line a step, then medians by cell, a column a step."""
        for step in self.steps:
            why = self.out.get(step["name"])
            print(f"{step['name']}: {step['what']}" + (f"  OUT: {why}" if why else ""))
        by_cell: dict[tuple[object, ...], dict[object, list[float]]] = {}
        for r in self.records:
            found = by_cell.setdefault((r["shape"], r["tokens"], r["floor_us"]), {})
            found.setdefault(r["step"], []).append(float(str(r["us"])))
        print("cell".ljust(10), "floor".rjust(7), *(step["name"].partition("-")[0].rjust(8) for step in self.steps))
        for (shape, tokens, floor), found in by_cell.items():
            texts = (f"{statistics.median(found.get(step['name'], [math.nan])):8.2f}" for step in self.steps)
            print(f"{shape} {tokens}".ljust(10), f"{floor:7.1f}", *texts)


def times(into: Path, rounds: int, out: Path | None, deadline: float) -> None:
    """Every step in turn; what is measured is kept after every shape, and no shape is begun after the deadline."""
    race = Race(into)
    for _ in range(rounds):
        for shape, (_, kernels) in SHAPES.items():
            if time.monotonic() > deadline:
                print(f"out of time before {shape}")
                break
            for step in race.steps:
                for kernel, counts in kernels.items():
                    if step["name"] not in race.out:
                        race.run(step["name"], shape, kernel, counts)
            if out:
                (out / "layer_steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in race.records))
    race.show()


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("--base", default="main")
    parser.add_argument("--into", type=Path, default=Path("build/layer_steps"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=220.0, help="begin nothing after so many")
    options = parser.parse_args()
    if options.what == "build":
        build(options.base, options.into)
        return
    begin = time.monotonic()
    into = Path(__file__).resolve().parents[2]
    correct(into)
    times(into, options.rounds, options.out, begin + options.seconds)
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
