"""What the gate knows of a directory, as `inspect` says it: from names, sizes and times, without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from w4afp8.record import RECORD_FOLDER
from w4afp8.validate import gate

STYLES = {
    gate.State.PROVEN: "green", gate.State.UNVALIDATED: "yellow", gate.State.STALE: "yellow",
    gate.State.FAILED: "bold red",
}  # fmt: skip


def gate_json(folder: Path) -> dict[str, Any] | None:
    """`validated` is when; `undated` how many files have another time than the proof says.  None for a source."""
    if not (folder / RECORD_FOLDER).is_dir():
        return None
    found, undated = gate.glance(folder)
    return {"state": found.state.value, "why": list(found.why), "validated": found.at, "undated": undated}


def show_gate(console: Console, said: dict[str, Any]) -> None:
    """One line, a second one where files were copied or touched."""
    state = gate.State(said["state"])
    looked = "examined" if state is gate.State.UNVALIDATED else "validated"
    when = f", {looked} {said['validated'][:16].replace('T', ' ')} UTC" if said["validated"] else ""
    why = "; ".join(said["why"][: gate.MOST_NAMED])
    more = f"; and {len(said['why']) - gate.MOST_NAMED} more" if len(said["why"]) > gate.MOST_NAMED else ""
    console.print(Text.assemble((state.value, STYLES[state]), f"{when}: {why}{more}"), soft_wrap=True)
    if state is gate.State.UNVALIDATED:
        console.print("`w4afp8 validate DIR --against SOURCE` proves it", soft_wrap=True)
    if said["undated"] and state is gate.State.PROVEN:
        count = f"{said['undated']:,} files have" if said["undated"] > 1 else "1 file has"
        console.print(f"{count} another date than the proof: `w4afp8 push` compares every byte", soft_wrap=True)
