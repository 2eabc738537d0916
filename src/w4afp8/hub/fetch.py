"""Models and data sets from the Hub, through huggingface_hub's own login and cache."""

from __future__ import annotations

from pathlib import Path

from w4afp8 import families
from w4afp8.checkpoint.lineage import read_lineage
from w4afp8.checkpoint.reader import CONFIG
from w4afp8.errors import HubError, RecipeError

DATA_FILES = ["*.jsonl", "*.parquet", "*.txt"]


def find_model(name: str, revision: str | None = None) -> Path:
    """A local directory of that name, else the Hub's: `org/name`, or a bare name of a family's own organization.

    Raises: HubError when neither exists or the network says no; RecipeError for a name that is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise RecipeError(f"{name}: a file, expected a checkpoint directory; give {Path(name).parent}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecipeError(f"{name}: no such directory; give a checkpoint directory or a Hub id (org/name)")
    return _snapshot(model_id(name), revision, "model")


def source_at_hand(folder: Path) -> Path | None:
    """The directory that `folder` was converted from, where it lies beside it, in the working directory or in the
    Hub's cache; nothing is fetched.  That it is the one, who asks must see.

    Raises: CheckpointError when conversion.json cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    source = read_lineage(folder).source
    if source.hub_id is not None:
        try:
            cached = try_to_load_from_cache(source.hub_id, CONFIG, revision=source.revision)
        except ValueError:  # no name that a repository can have
            return None
        return Path(cached).parent if isinstance(cached, str) else None
    if Path(source.name).name != source.name:
        return None
    near = (folder.resolve().parent / source.name, Path.cwd() / source.name)
    return next((place for place in near if (place / CONFIG).is_file()), None)


def model_id(name: str) -> str:
    """`DeepSeek-R1` -> `deepseek-ai/DeepSeek-R1`; an id that has an organization stays as it is."""
    if "/" in name:
        return name
    for family in families.names():
        organization = families.get(family).hub_organization
        if name.lower().startswith(organization.split("-")[0]):
            return f"{organization}/{name}"
    raise RecipeError(f"{name}: no such directory, and no Hub id; give a path or org/name")


def find_data(name: str) -> Path:
    """A local file or folder, else the text files of a Hub data set `org/name` (or `org/name@revision`)."""
    path = Path(name)
    if path.exists():
        return path
    identifier, _, revision = name.partition("@")
    if identifier.count("/") != 1 or identifier.startswith((".", "/")) or path.suffix in (".jsonl", ".txt", ".parquet"):
        raise RecipeError(f"calibration data {name!r}: no such file or folder, and no Hub data set id (org/name)")
    return _snapshot(identifier, revision or None, "dataset", DATA_FILES)


def _snapshot(identifier: str, revision: str | None, kind: str, patterns: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(identifier, revision=revision, repo_type=kind, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{kind} {identifier}: neither a local directory nor to be had from the Hub ({first_line}); "
            "check the name, the network and `hf auth login`, or download it and give its path"
        ) from error
