"""Which devices take part in a collective, from the notations of HLO text."""

import math
import re

import numpy as np

_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(?\[([\d,]+)\]\)?)?\s*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, num_devices: int) -> list[list[int]]:
    """Groups of device numbers; all devices in one group where none are named. Raises ValueError for a new notation.

    Known are lists {{0,1},{2,3}}, iota [groups,size]<=[dims]T(order) and mesh['x'=2,'y'=4] {'y'}.
    """
    if match := _LISTS.search(attributes):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
        return groups or [list(range(num_devices))]
    if match := _IOTA.search(attributes):
        dims = [int(n) for n in match[3].split(",")]
        order = [int(n) for n in match[4].split(",")] if match[4] else list(range(len(dims)))
        numbers = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return numbers.reshape(int(match[1]), int(match[2])).tolist()
    if match := _MESH.search(attributes):
        return _mesh_groups(match[1], match[2], match[3])
    if "replica_groups=" in attributes:
        raise ValueError(f"unknown notation of replica groups: {attributes[:200]!r}")
    return [list(range(num_devices))]


def _mesh_groups(mesh: str, ids: str | None, axes: str) -> list[list[int]]:
    """The groups along some axes of a mesh; of an axis 'x':(a)b only the part of size b that comes after a."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = {name: [(1, size)] for name, size in sizes.items()}
    wanted: list[tuple[str, int]] = []
    for name, before, size in _AXIS.findall(axes):
        first, length = (int(before), int(size)) if size else (1, sizes[name])
        parts[name] = [(1, first), (first, length), (first * length, sizes[name] // (first * length))]
        wanted.append((name, first if size else 1))
    split = [(name, before, size) for name in sizes for before, size in parts[name]]
    numbers = (
        np.arange(math.prod(sizes.values())) if ids is None else np.array([int(n) for n in ids.split(",")])
    )
    numbers = numbers.reshape([size for _, _, size in split])
    along = [i for i, (name, before, size) in enumerate(split) if (name, before) in wanted and size > 1]
    across = [i for i in range(len(split)) if i not in along]
    length = math.prod(split[i][2] for i in along)
    return numbers.transpose(across + along).reshape(-1, length).tolist()


def permute_pairs(attributes: str) -> list[list[int]]:
    """Source and target of each transfer of a collective permutation."""
    match = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    found = re.findall(r"\{(\d+),(\d+)\}", match[1] if match else "")
    return [[int(source), int(target)] for source, target in found]
