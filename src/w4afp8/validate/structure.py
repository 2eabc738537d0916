"""Structure, from headers only: a finished directory, an index that tells the truth, every tensor there once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from w4afp8 import formats
from w4afp8.checkpoint.atomic import PARTIAL
from w4afp8.checkpoint.header import read_header
from w4afp8.checkpoint.journal import FINGERPRINT
from w4afp8.checkpoint.reader import CONFIG, INDEX, read_json
from w4afp8.checkpoint.spec import TensorSpec
from w4afp8.errors import FormatError, W4AFP8Error
from w4afp8.families._inventory import Item, is_number, refuse_the_absurd
from w4afp8.families._spec import PROJECTIONS, Expected, Family, Role, Sizes
from w4afp8.formats._spec import PlainWeight
from w4afp8.formats._target import CheckpointFormat
from w4afp8.validate.config import WEIGHT_FILES
from w4afp8.validate.findings import Check

REMAKE = "copy it again, or quantize into a new directory"
LINEAR = (Role.ATTENTION, Role.DENSE_MLP, Role.SHARED_EXPERT)
RESUME = "the directory is unfinished: run the command that writes it again, it goes on after the last finished layer"


def check_finished(folder: Path) -> Check:
    """No half-written file, no journal of a run that still has to end, both files that are written last."""
    check = Check("finished", "the directory is finished")
    for path in sorted(folder.rglob(f"*{PARTIAL}")):
        check.blame(path.relative_to(folder).as_posix(), "a half-written file", "none", RESUME)
    for path in sorted(folder.rglob(FINGERPRINT)):
        check.blame(path.parent.relative_to(folder).as_posix(), "the journal of an unfinished run", "none", RESUME)
    for name in (INDEX, CONFIG):
        check.examined += 1
        if not (folder / name).exists():
            check.blame(name, "no such file", "it, written last", RESUME)
    return check


def check_index(folder: Path) -> tuple[Check, dict[str, TensorSpec]]:
    """The index against the headers of every weight file; also the tensors that both agree on."""
    check = Check("index", "the index lists every tensor of every file, once, and the true total size")
    found: dict[str, TensorSpec] = {}
    try:
        index = read_json(folder / INDEX)
    except W4AFP8Error as error:
        check.blame(INDEX, str(error), "the map of tensors to files", REMAKE)
        return check, found
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        check.blame(INDEX, f"weight_map is {type(weight_map).__name__}", "an object of names to file names", REMAKE)
        return check, found
    headers = _headers(folder, sorted(set(weight_map.values())), check)
    _place(weight_map, headers, found, check)
    for path in sorted(p for p in folder.iterdir() if p.is_file() and WEIGHT_FILES.search(p.name)):
        if path.name not in headers:
            check.blame(path.name, "a weight file that the index does not list", "no orphan", "remove it")
    true_size = sum(spec.span_bytes for spec in found.values())
    metadata = index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    if said != true_size and not check.failed:
        check.blame(f"{INDEX} metadata.total_size", said, f"{true_size}, the bytes of all tensors", REMAKE)
    check.examined = len(weight_map)
    return check, found


def _headers(folder: Path, shards: list[str], check: Check) -> dict[str, dict[str, TensorSpec]]:
    headers: dict[str, dict[str, TensorSpec]] = {}
    for shard in shards:
        path = folder / shard
        headers[shard] = {}
        if Path(shard).name != shard:
            check.blame(INDEX, f"the file name {shard!r}", "a plain name beside the index", REMAKE)
        elif not _is_file(path):
            check.blame(shard, "no such file", "it, as the index lists it", "copy it again, or remake the checkpoint")
        else:
            try:
                headers[shard] = {spec.name: spec for spec in read_header(path)[0]}
            except W4AFP8Error as error:
                check.blame(shard, f"a damaged file ({error})", "a sound one", "copy it again")
    return headers


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _place(
    weight_map: Mapping[str, str],
    headers: Mapping[str, Mapping[str, TensorSpec]],
    found: dict[str, TensorSpec],
    check: Check,
) -> None:
    for name, shard in weight_map.items():
        spec = headers[shard].get(name)
        if spec is not None:
            found[name] = spec
        elif headers[shard]:
            check.blame(name, f"nothing in {shard}", "it there, as the index says", "the index or the file is stale")
    for shard, specs in headers.items():
        for name in specs:
            listed = weight_map.get(name)
            if listed is None:
                check.blame(name, f"it in {shard}, not in the index", "it in the index", "the index is stale")
            elif listed != shard:
                check.blame(name, f"it in {shard}, the index says {listed}", "it in one file", "the index is stale")


def tensors_check() -> Check:
    """The check of `check_tensors` before it ran."""
    return Check("tensors", "every expected tensor is there with its dtype and shape, and no other")


def check_tensors(
    specs: Mapping[str, TensorSpec], family: Family, d: Sizes, target: CheckpointFormat
) -> tuple[Check, dict[str, Item]]:
    """Every tensor that config.json and the format promise, with its dtype and shape, and no other.

    Raises: CheckpointError for a config that promises absurdly many.
    """
    check = tensors_check()
    unknown = dict(specs)
    items: dict[str, Item] = {}
    refuse_the_absurd(d, len(specs))
    for expected in family.expected(d).values():
        item = _item(expected, specs, target, check)
        if item is not None:
            items[expected.name] = item
        for name in _names_of(expected) if item is None else [spec.name for spec in item.tensors]:
            unknown.pop(name, None)
    for name, file in input_scales(family, d, target).items():
        got = unknown.pop(name, None)
        if got is None:
            check.blame(name, "nothing", "a float32 number: without it the engine uses 1", REMAKE)
        elif not is_number(got):
            check.blame(name, f"{got.dtype} {list(got.shape)} in {got.shard}", f"F32 [1] in {file}", REMAKE)
    for spec in unknown.values():
        check.blame(spec.name, f"{spec.dtype} {list(spec.shape)} in {spec.shard}", "no such tensor", "remove it")
    check.examined = len(specs)
    return check, items


def has_sixteen_bit_linears(items: Mapping[str, Item]) -> bool:
    """Whether the linears beside the experts have 16 bits; engines are told so once for all of them."""
    linears = (item for item in items.values() if item.expected.role in LINEAR and item.format is not None)
    return any(item.format is not None and item.format.form is PlainWeight for item in linears)


def input_scales(family: Family, d: Sizes, target: CheckpointFormat) -> dict[str, str]:
    """The static activation scales that engines of the format read for every expert, and the file that has ours."""
    rule = target.input_scale
    if rule.within or not rule.indexed:
        return {}
    return dict.fromkeys(scale_names(family, d, target), rule.file)


def scale_names(family: Family, d: Sizes, target: CheckpointFormat) -> list[str]:
    """The name of every expert's activation scales in a format that has or keeps them."""
    rule = target.input_scale
    return [
        rule.tensor_name(family.expert(d, layer, expert), projection)
        for layer in range(d.all_layers)
        if d.is_moe(layer)
        for expert in range(d.experts)
        for projection in PROJECTIONS
    ]


def _names_of(expected: Expected) -> set[str]:
    """Every name that a matrix can have in any format, or a vector's one."""
    return {expected.stem + suffix for suffix in formats.suffixes()} if expected.matrix else {expected.name}


def _item(expected: Expected, specs: Mapping[str, TensorSpec], target: CheckpointFormat, check: Check) -> Item | None:
    near = {name: specs[name] for name in sorted(_names_of(expected)) if name in specs}
    held = [expected.stem + suffix for suffix in formats.carriers()] if expected.matrix else [expected.name]
    found = next((near[name] for name in held if name in near), None)
    if found is None and not expected.required:
        return None
    if found is None:
        check.blame(expected.name, "nothing", f"a {expected.role} of {list(expected.shape)}", REMAKE)
        return None
    if not expected.matrix:
        shape = (expected.stack, *expected.shape) if expected.stack else expected.shape
        if found.dtype not in expected.dtypes or found.shape != shape:
            check.blame(
                str(found), f"{found.dtype} {list(found.shape)}", f"{' or '.join(expected.dtypes)} {list(shape)}",
                REMAKE,
            )  # fmt: skip
            return None
        return Item(expected, None, (found,))
    n, k = expected.shape
    packed = target.expert_weight
    if expected.role == Role.EXPERT:
        refusal = packed.refusal(expected.stem, near, n, k, expected.stack)
        if refusal is not None:
            check.blame(str(found), refusal, f"a matrix [{n}, {k}] in {packed.name}", REMAKE)
            return None
        return Item(expected, packed, tuple(specs[expected.stem + part.suffix] for part in packed.parts))
    try:
        fmt = formats.detect(expected.stem, near, n, k, expected.stack)
    except FormatError as error:
        check.blame(str(found), str(error), f"a matrix [{n}, {k}]", REMAKE)
        return None
    if fmt is packed and fmt.bits == 4:
        check.blame(str(found), fmt.name, f"a {expected.role} as the source has it", "only routed experts have 4 bits")
        return None
    if fmt not in target.linear_weights and (expected.role in LINEAR or fmt.form is not PlainWeight):
        names = " or ".join(form.name for form in target.linear_weights)
        check.blame(str(found), fmt.name, f"{names}, as engines of {target.name} read it", REMAKE)
        return None
    return Item(expected, fmt, tuple(specs[expected.stem + part.suffix] for part in fmt.parts))
