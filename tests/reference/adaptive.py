"""Float64 references of the adaptive rules and weight maps, with plain loops over categories and pairs."""

import numpy as np


def category_sums(violation, categories, weight):
    num_pairs, num_categories = np.shape(categories)
    violations, pairs = np.zeros(num_categories), np.zeros(num_categories)
    for i in range(num_pairs):
        for k in range(num_categories):
            if weight[i] and categories[i][k]:
                violations[k] += violation[i]
                pairs[k] += 1
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
