"""The notations of HLO text for groups of devices."""

import pytest

from jaxalign.run.plan.groups import permute_pairs, replica_groups
from jaxalign.run.plan.hlo import HloError

NOTATIONS = {
    "lists": ("replica_groups={{0,1},{2,3}}, x=1", [[0, 1], [2, 3]]),
    "none": ("replica_groups={}, x=1", [[0, 1, 2, 3]]),
    "absent": ("channel_id=1", [[0, 1, 2, 3]]),
    "iota": ("replica_groups=[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
    "iota in another order": ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    "mesh": ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=1", [[0, 1], [2, 3]]),
    "first axis of a mesh": ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    "two axes of a mesh": ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    "axis of size one": ("replica_groups=mesh['a'=1,'b'=4] {'b'}", [[0, 1, 2, 3]]),
    "part of an axis": ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    "first part of an axis": ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    "mesh in another order": (
        "replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}",
        [[3, 2], [1, 0]],
    ),
    "transposed mesh": ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
}


@pytest.mark.parametrize("name", NOTATIONS)
def test_notation(name):
    text, groups = NOTATIONS[name]
    assert replica_groups(text, 4) == groups


def test_pairs_of_a_permutation():
    assert permute_pairs("source_target_pairs={{0,1},{1,0}}, x=1", 2) == [[0, 1], [1, 0]]


def test_permutation_without_pairs_is_refused():
    with pytest.raises(HloError, match="a permutation of 2 devices without pairs"):
        permute_pairs("channel_id=1", 2)


def test_unknown_notation_is_refused():
    with pytest.raises(HloError, match="unknown notation of replica groups"):
        replica_groups("replica_groups=<new>", 4)
