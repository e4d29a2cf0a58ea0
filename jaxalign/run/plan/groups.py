"""Which devices take part in a collective, from the notations of HLO text."""

import math
import re

import numpy as np

from jaxalign.run.plan.hlo import HloError

_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(([^ ]*)\))?\s*\{([^}]*)\}")
_IDS = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, num_devices: int) -> list[list[int]]:
    """Groups of device numbers; all devices in one group where none are named. Raises HloError for a new notation.

    Known are lists {{0,1},{2,3}}, iota [groups,size]<=[dims]T(order) and mesh['x'=2,'y'=4] {'y'}, where the devices
    of a mesh may come in another order: device_ids=([dims]T(order)) or device_ids=(3,2,1,0).
    """
    if match := _LISTS.search(attributes):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
        return groups or [list(range(num_devices))]
    if match := _IOTA.search(attributes):
        return _iota(match[3], match[4]).reshape(int(match[1]), int(match[2])).tolist()
    if match := _MESH.search(attributes):
        return _mesh_groups(match[1], match[2], match[3])
    if "replica_groups=" in attributes:
        raise HloError(f"unknown notation of replica groups: {attributes[:200]!r}")
    return [list(range(num_devices))]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """The numbers from 0 on, in the order of an array of `dims` whose dimensions are transposed."""
    sizes = [int(n) for n in dims.split(",")]
    axes = [int(n) for n in order.split(",")] if order else None
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes).ravel()


def _device_ids(ids: str) -> np.ndarray:
    match = _IDS.fullmatch(ids)
    return np.array([int(n) for n in ids.split(",")]) if match is None else _iota(match[1], match[2])


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
    numbers = np.arange(math.prod(sizes.values())) if ids is None else _device_ids(ids)
    numbers = numbers.reshape([size for _, _, size in split])
    along = [i for i, (name, before, size) in enumerate(split) if (name, before) in wanted and size > 1]
    across = [i for i in range(len(split)) if i not in along]
    length = math.prod(split[i][2] for i in along)
    return numbers.transpose(across + along).reshape(-1, length).tolist()


def permute_pairs(attributes: str, num_devices: int) -> list[list[int]]:
    """Source and target of each transfer of a collective permutation. Raises HloError where none are named."""
    match = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", attributes)
    if match is None:
        raise HloError(f"a permutation of {num_devices} devices without pairs: {attributes[:200]!r}")
    return [[int(source), int(target)] for source, target in re.findall(r"\{(\d+),(\d+)\}", match[1])]
