"""Which pairs share a micro-batch: every pair of an epoch once, about as many tokens everywhere. No rows here."""

import numpy as np

from jaxalign.data.ordering import permutation

_NOISE_BITS = 8
_SORT, _BATCHES, _WITHIN = 1, 2, 3  # last parts of the keys that draw; each kind of draw has its own


def balanced_batches(sizes: np.ndarray, num_batches: int, *key: int) -> np.ndarray:
    """Deal items of sizes [n] to batches: [num_batches, ceil(n / num_batches)] int64 item numbers, -1 for none.

    Each item is in one batch, the batches have equal numbers of items, or one less, and nearly equal total sizes.
    The key alone decides which of the many such dealings it is. All in integers, so the same on every machine.
    """
    depth = -(-len(sizes) // num_batches)
    order = np.full(depth * num_batches, -1)
    order[: len(sizes)] = _nearly_descending(sizes, *key)
    sized = np.append(sizes, 0)  # item -1 has no size
    dealt = deal(sized[order.reshape(1, depth, num_batches)])[0]
    batches = np.empty((num_batches, depth), np.int64)
    np.put_along_axis(batches.T, dealt, order.reshape(depth, num_batches), axis=1)
    return _shuffled(batches, *key)


def deal(sizes: np.ndarray) -> np.ndarray:
    """Deal strata of items of sizes [X, depth, width] to `width` batches, one of each stratum: batch [X, depth, width].

    The largest item of a stratum goes to the batch that is emptiest so far, in each of the X problems by itself.
    """
    batch = np.empty(sizes.shape, np.int64)
    load = np.zeros((sizes.shape[0], sizes.shape[2]), np.int64)
    for stratum in range(sizes.shape[1]):
        largest = np.argsort(-sizes[:, stratum], axis=1, kind="stable")
        emptiest = np.argsort(load, axis=1, kind="stable")
        np.put_along_axis(batch[:, stratum], largest, emptiest, axis=1)
        load += np.take_along_axis(
            sizes[:, stratum], np.argsort(batch[:, stratum], axis=1, kind="stable"), axis=1
        )
    return batch


def _nearly_descending(sizes: np.ndarray, *key: int) -> np.ndarray:
    """The items from large to small, where sizes that differ by less than an eighth may come in either order."""
    one = 1 << _NOISE_BITS
    noise = permutation(len(sizes), *key, _SORT) % (one // 8)
    noisy = sizes.astype(np.int64) * (one + noise)
    return np.lexsort((permutation(len(sizes), *key, _SORT), -noisy))


def _shuffled(batches: np.ndarray, *key: int) -> np.ndarray:
    """The batches in random order, and the items of each one too, with -1 at the end."""
    num_batches, depth = batches.shape
    batches = batches[permutation(num_batches, *key, _BATCHES)]
    bits = permutation(num_batches * depth, *key, _WITHIN).reshape(num_batches, depth)
    last = np.argsort(np.where(batches < 0, bits.size, bits), axis=1)
    return np.take_along_axis(batches, last, axis=1)
