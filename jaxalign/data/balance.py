"""Which pairs share a micro-batch: every pair of an epoch once, about as many tokens everywhere. No rows here."""

import numpy as np

from jaxalign.data.ordering import permutation

_NUM_ROUNDS = 64  # of swaps; each one looks at no more batches and items than the next two say
_NUM_SWAPPING = 256
_NUM_CANDIDATES = 32
_EVEN = 256  # batches that differ by less than one part in so many are even enough
_SORT, _BATCHES, _WITHIN = 1, 2, 3  # last parts of the keys that draw; each kind of draw has its own


def balanced_batches(sizes: np.ndarray, num_batches: int, *key: int) -> np.ndarray:
    """Deal items of sizes [n, D] to batches: [num_batches, ceil(n / num_batches)] int64 item numbers, -1 for none.

    Each item is in one batch. The batches have equal numbers of items, or one less, and nearly equal total sizes
    of each of the D kinds; the items should differ most in the first. The key alone decides which of the many
    such dealings it is. All in integers, so it is the same on every machine.
    """
    depth = -(-len(sizes) // num_batches)
    order = np.full(depth * num_batches, -1)
    order[: len(sizes)] = _nearly_descending(sizes[:, 0], *key)
    strata = order.reshape(depth, num_batches)
    sized = np.append(sizes[:, 0], 0)  # item -1 has no size
    batches = np.empty((num_batches, depth), np.int64)
    np.put_along_axis(batches.T, deal(sized[None, strata])[0], strata, axis=1)
    # Only columns without -1, or a batch could end up two items short.
    _swap(batches[:, : len(sizes) // num_batches], batches, sizes)
    return _shuffled(batches, *key)


def deal(sizes: np.ndarray) -> np.ndarray:
    """Deal items of sizes [X, depth, width] to `width` batches, one of each of the `depth` strata: batch of each item.

    The largest item of a stratum goes to the batch that is emptiest so far, in each of the X problems by itself.
    """
    batch = np.empty(sizes.shape, np.int64)
    load = np.zeros((sizes.shape[0], sizes.shape[2]), np.int64)
    for stratum in range(sizes.shape[1]):
        largest = np.argsort(-sizes[:, stratum], axis=1, kind="stable")
        emptiest = np.argsort(load, axis=1, kind="stable")
        np.put_along_axis(batch[:, stratum], largest, emptiest, axis=1)
        item = np.argsort(batch[:, stratum], axis=1)
        load += np.take_along_axis(sizes[:, stratum], item, axis=1)
    return batch


def _nearly_descending(sizes: np.ndarray, *key: int) -> np.ndarray:
    """The items from large to small, where sizes that differ by less than a factor of 2 may come in either order."""
    random = permutation(len(sizes), *key, _SORT)
    return np.lexsort((random, -sizes.astype(np.int64) * (256 + random % 256)))


def _swap(free: np.ndarray, batches: np.ndarray, sizes: np.ndarray) -> None:
    """Make the total sizes [D] of the batches more even by swaps of items in the columns `free`, a view, in place.

    A round takes the batches that have most of a kind, each with one that has least, and makes the best swap.
    """
    num_batches, num_columns = free.shape
    num_swapping = min(num_batches // 2, _NUM_SWAPPING)
    if num_swapping == 0 or num_columns == 0:
        return
    scale = np.maximum(sizes[:, 0].sum() // np.maximum(sizes.sum(axis=0), 1), 1)  # all kinds count alike
    sized = np.concatenate([sizes * scale, np.zeros_like(sizes[:1])])
    load = sized[batches].sum(axis=1)
    for round_ in range(_NUM_ROUNDS):
        if ((load.max(axis=0) - load.min(axis=0)) * num_batches * _EVEN <= load.sum(axis=0)).all():
            break
        rank = np.argsort(load[:, round_ % load.shape[1]], kind="stable")
        low, high = np.roll(rank[:num_swapping], round_ // load.shape[1]), rank[::-1][:num_swapping]
        columns = np.roll(np.arange(num_columns), -round_ * _NUM_CANDIDATES)[:_NUM_CANDIDATES]
        # [P, C, C, D]: what the high batch of each of the P couples would lose to the low one.
        given = sized[free[high][:, columns]][:, :, None] - sized[free[low][:, columns]][:, None]
        squares = (given * (given - (load[high] - load[low])[:, None, None])).sum(axis=-1)
        best = squares.reshape(num_swapping, -1).argmin(axis=1)
        i, j = np.divmod(best, len(columns))
        couple = np.flatnonzero(squares[np.arange(num_swapping), i, j] < 0)
        low, high, i, j = low[couple], high[couple], i[couple], j[couple]
        load[high] -= given[couple, i, j]
        load[low] += given[couple, i, j]
        i, j = columns[i], columns[j]
        free[high, i], free[low, j] = free[low, j], free[high, i]


def _shuffled(batches: np.ndarray, *key: int) -> np.ndarray:
    """The batches in random order, and the items of each one too, with -1 at the end."""
    num_batches, depth = batches.shape
    batches = batches[permutation(num_batches, *key, _BATCHES)]
    place = permutation(num_batches * depth, *key, _WITHIN).reshape(num_batches, depth)
    order = np.argsort(np.where(batches < 0, place.size, place), axis=1, kind="stable")
    return np.take_along_axis(batches, order, axis=1)
