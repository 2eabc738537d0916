"""Every way in which a push fails, as people meet it: the row of docs/publishing.md, its exit code, its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import TOKEN, Entry, FakeHub

from w4afp8.checkpoint.reader import CONFIG, INDEX
from w4afp8.cli import cli, code_of
from w4afp8.validate import gate, validate
from w4afp8.validate.seal import take_seal

REPO = "org/toy"
DOCUMENTED = Path(__file__).parents[2] / "docs/publishing.md"


@dataclass
class Scene:
    """Where a failure is prepared."""

    hub: FakeHub
    folder: Path
    patch: pytest.MonkeyPatch

    def refuse(self, kind: str, status: int | str, after: int = 0) -> None:
        self.hub.trouble = lambda of, count: status if of == kind and count > after else None

    def other_checkpoint(self) -> None:
        tree = self.hub.add_repo(REPO, private=True).trees["main"]
        self.hub.blobs["x"] = b"{}"
        tree[CONFIG] = Entry("x", 2)

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)

    def fails(self) -> None:
        path = self.folder / "act_scales.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 0x40]))
        seal = take_seal(self.folder)
        gate.write_verdict(self.folder, validate(self.folder, sample=1), seal)

    def somebody_commits(self) -> None:
        def meanwhile(kind: str, count: int) -> None:
            if kind == "batch":
                self.hub.branch(self.hub.repos[REPO], "main", dict(self.hub.repos[REPO].trees["main"]))

        self.hub.trouble = meanwhile

    def loses_a_byte(self) -> None:
        keep = self.hub.branch

        def lossy(repo: object, revision: str, tree: dict[str, Entry]) -> None:
            keep(repo, revision, tree)  # type: ignore[arg-type]
            if CONFIG in tree:
                tree[CONFIG].oid = "0" * 40

        self.patch.setattr(self.hub, "branch", lossy)


Failure = tuple[int, Callable[[Scene], object], str]
FAILURES: dict[str, Failure] = {
    "no login": (8, lambda s: s.patch.delenv("HF_TOKEN"), "not logged in to the Hub: run `hf auth login`"),
    "a login that ended, also on the way": (8, lambda s: s.refuse("commit", 401, 1), "401 .*missing or expired"),
    "no network": (8, lambda s: s.patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"),
                   "no connection .*check the network"),
    "a name that others own": (8, lambda s: s.hub.namespaces.clear(), "creating org/toy: .* 403 .*write permission"),
    "a repository of others": (8, lambda s: (s.hub.add_repo(REPO, private=True), s.refuse("preupload", 403)),
                               "sending card and side files to org/toy: .* 403 .*write permission"),
    "no storage left": (8, lambda s: s.refuse("batch", 413), "413 .*free or buy storage"),
    "a bill to be paid": (8, lambda s: s.refuse("commit", 402), "402 .*billing"),
    "a commit by somebody else in between": (8, lambda s: s.somebody_commits(), "412 .*changed meanwhile"),
    "another checkpoint under that name": (8, lambda s: s.other_checkpoint(), "holds another checkpoint.*--create-pr"),
    "a file over the Hub's limit": (8, lambda s: s.patch.setattr("w4afp8.hub.shipment.LARGEST_FILE_BYTES", 10**5),
                                    "one file may have 100000; .*shard_gb"),
    "what arrived is not what was sent": (8, lambda s: s.loses_a_byte(), "does not hold what was sent"),
    "never validated": (7, lambda s: (s.folder / "w4afp8/validation.json").unlink(), "is unvalidated: .*validate"),
    "a validation that is stale": (7, lambda s: s.append("tokenizer.json", " "), "is stale: tokenizer.json has"),
    "a validation that failed": (7, lambda s: s.fails(), "is failed: .*input scales.* make or fetch .* again"),
    "a secret in a side file": (7, lambda s: s.append("w4afp8/report.json", f"\n{'hf_' + 'B' * 34}"),
                                r"report\.json, line 2: a Hugging Face token"),
    "a new repository, neither private nor public": (2, lambda s: None, "give --private or --public"),
    "no such directory, or an unfinished one": (3, lambda s: (s.folder / INDEX).unlink(), "found no model.safetensors"),
}  # fmt: skip
NEITHER = "a new repository, neither private nor public"


def test_the_documented_failures_are_the_tested_ones() -> None:
    section = DOCUMENTED.read_text().split("## When it fails")[1]
    rows = {row[1]: int(row[2]) for row in re.finditer(r"^\| ([^|]+) \| (\d+) \|", section, re.M)}
    assert rows == {name: code for name, (code, _, _) in FAILURES.items()}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_has_its_exit_code_and_words(
    hub: FakeHub, proven: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, prepare, says = FAILURES[name]
    prepare(Scene(hub, proven, monkeypatch))
    words = ["push", str(proven), "--repo", REPO, *(() if name == NEITHER else ("--private",))]
    assert code_of(lambda: cli.main(args=words, standalone_mode=False)) == code
    out, err = capsys.readouterr()
    assert re.search(says, err, re.DOTALL), err
    assert TOKEN not in out + err and "Traceback" not in err and "B" * 34 not in out + err
    for repo in hub.repos.values():
        assert INDEX not in repo.trees["main"] or name == "what arrived is not what was sent"
