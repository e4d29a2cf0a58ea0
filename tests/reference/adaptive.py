"""Float64 references of the adaptive rules and weight maps, with plain loops over categories and pairs.

States are tuples in the order of the fields; the steps take a batch as arrays and skip pairs of weight 0.
"""

import itertools

import numpy as np


def category_sums(violation, categories, weight):
    num_pairs, num_categories = np.shape(categories)
    violations, pairs = np.zeros(num_categories), np.zeros(num_categories)
    for i in range(num_pairs):
        for k in range(num_categories):
            if weight[i] and categories[i][k]:
                violations[k] += weight[i] * violation[i]
                pairs[k] += weight[i]
    return violations, pairs


def margin_step(margin, rate, seen, violations, pairs, *, step_size, ema_rate, target, low, high, update):
    margin, rate, seen = np.array(margin, np.float64), np.array(rate, np.float64), np.array(seen)
    for k in range(len(margin)):
        if not pairs[k]:
            continue
        newest = violations[k] / pairs[k]
        rate[k] = (1 - ema_rate) * rate[k] + ema_rate * newest if seen[k] else newest
        excess = step_size * (rate[k] - np.broadcast_to(target, len(margin))[k])
        ascended = margin[k] + excess if update == "additive" else margin[k] * np.exp(excess)
        margin[k] = min(max(ascended, low), high)
        seen[k] += pairs[k]
    return margin, rate, seen


def projected_mean(margin, mean, low, high):
    """Bisection for the shift whose clipped margins have the wanted mean."""
    margin = np.asarray(margin, np.float64)
    left, right = low - margin.max(), high - margin.min()
    for _ in range(200):
        middle = (left + right) / 2
        if np.clip(margin + middle, low, high).mean() < mean:
            left = middle
        else:
            right = middle
    return np.clip(margin + (left + right) / 2, low, high)


def ratio_weights(mi_w, mi_l, floor):
    mi_w, mi_l = np.maximum(np.float64(mi_w), floor), np.maximum(np.float64(mi_l), floor)
    return 2 * mi_l / (mi_w + mi_l), 2 * mi_w / (mi_w + mi_l)


def softmax_weights(mi_w, mi_l, temperature):
    e_w, e_l = np.exp(-np.float64(mi_w) / temperature), np.exp(-np.float64(mi_l) / temperature)
    return 2 * e_w / (e_w + e_l), 2 * e_l / (e_w + e_l)


def power_weights(mi_w, mi_l, mean_mi, alpha, floor):
    w_w = (mean_mi / np.maximum(np.float64(mi_w), floor)) ** alpha
    w_l = (mean_mi / np.maximum(np.float64(mi_l), floor)) ** alpha
    return 2 * w_w / (w_w + w_l), 2 * w_l / (w_w + w_l)


def mean_of(values, weight):
    """Mean over what has weight, and its weight; the mean is None without any."""
    total = count = 0.0
    for value, w in zip(values, weight, strict=True):
        if w:
            total += w * float(value)
            count += w
    return (total / count if count else None), count


def running_mean_step(mean, seen, values, weight, *, ema_rate):
    newest, count = mean_of(values, weight)
    if count:
        mean = (1 - ema_rate) * mean + ema_rate * newest if seen else newest
    return mean, seen + count


def balance_step(mi_w, mi_l, gradient, seen, batch_mi_w, batch_mi_l, batch_gradient, weight, *, ema_rate):
    mi_w, _ = running_mean_step(mi_w, seen, batch_mi_w, weight, ema_rate=ema_rate)
    mi_l, _ = running_mean_step(mi_l, seen, batch_mi_l, weight, ema_rate=ema_rate)
    gradient, seen = running_mean_step(gradient, seen, batch_gradient, weight, ema_rate=ema_rate)
    return mi_w, mi_l, gradient, seen


def balance_value(mi_w, mi_l, gradient, seen, *, floor, scale, maximum_scale=None):
    if not seen:
        return 0.0, scale
    if maximum_scale is not None:
        scale = min(scale / gradient, maximum_scale) if gradient else maximum_scale
    return max((mi_w + mi_l) / 2, floor), scale


def group_dro_step(q, seen, num_pairs, loss, categories, weight, *, step_size):
    losses, pairs = category_sums(loss, categories, weight)
    q, seen = np.array(q, np.float64), np.array(seen, np.float64)
    present = [k for k in range(len(q)) if pairs[k]]
    mass = sum(q[k] for k in present)
    for k in present:
        q[k] *= np.exp(step_size * losses[k] / pairs[k])
        seen[k] += pairs[k]
    scale = mass / sum(q[k] for k in present) if present else 1.0
    for k in present:
        q[k] *= scale
    return q, seen, num_pairs + np.sum(weight)


def group_dro_value(q, seen, num_pairs, *, maximum_factor):
    known = sum(q[k] for k in range(len(q)) if seen[k])
    factors = [(q[k] / known) / (seen[k] / num_pairs) if seen[k] else 1.0 for k in range(len(q))]
    return np.array([min(factor, maximum_factor) for factor in factors])


def group_weights(factors, categories):
    weights = []
    for row in categories:
        own = [factor for factor, belongs in zip(factors, row, strict=True) if belongs]
        weights.append(sum(own) if own else 1.0)
    return np.array(weights)


def beta_dpo_step(mean, std, seen, gap, weight, *, ema_rate):
    newest, count = mean_of(gap, weight)
    if count:
        deviation = np.sqrt(mean_of((np.float64(gap) - newest) ** 2, weight)[0])
        mean = (1 - ema_rate) * mean + ema_rate * newest if seen else newest
        std = (1 - ema_rate) * std + ema_rate * deviation if seen else deviation
    return mean, std, seen + count


def adapted_beta(gap, keep, mean, *, beta, alpha, minimum):
    kept = [float(h) for h, k in zip(gap, keep, strict=True) if k]
    return max(minimum, beta * (1 + alpha * (sum(kept) / len(kept) - mean)))


def keep_probabilities(gap, mean, std):
    """Of the first draw."""
    weights = np.exp(-0.5 * ((np.float64(gap) - mean) / std) ** 2)
    return weights / weights.sum()


def inclusion_probabilities(probabilities, num_kept):
    """That an item is among the first `num_kept` drawn without replacement, by going through all orders."""
    included = np.zeros(len(probabilities))
    for drawn in itertools.permutations(range(len(probabilities)), num_kept):
        left, chance = 1.0, 1.0
        for i in drawn:
            chance *= probabilities[i] / left
            left -= probabilities[i]
        for i in drawn:
            included[i] += chance
    return included
