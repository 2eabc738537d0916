"""Where a source came from, as far as its place on disk tells: a plain directory, or the Hub's cache."""

from __future__ import annotations

from pathlib import Path


def origin_of(folder: Path) -> dict[str, str | None]:
    """`name`, and of a snapshot in the Hub's cache `hub_id` and `revision`; no path of this machine.

    The cache's layout: models--ORG--NAME/snapshots/REVISION.
    """
    home = folder.resolve()
    repository = home.parent.parent.name
    if home.parent.name == "snapshots" and repository.startswith("models--"):
        identifier = "/".join(repository.split("--")[1:])
        return {"name": identifier, "hub_id": identifier, "revision": home.name}
    return {"name": home.name, "hub_id": None, "revision": None}
