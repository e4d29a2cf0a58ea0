"""Float64 references of the losses, written from the formulas, for scalars and arrays alike.

Complex numbers pass through: an imaginary step of 1e-30 in an argument gives the exact derivative. So nothing
here takes an absolute value or compares anything but real parts.
"""

import numpy as np

STEP = 1e-30


def exact(*arrays):
    converted = [np.asarray(x, np.result_type(x, np.float64)) for x in arrays]
    return converted if len(converted) > 1 else converted[0]


def gradient(loss, arrays, wanted):
    """Derivatives of the summed loss by the arrays at the wanted positions, one complex step per number."""
    gradients = []
    for position in wanted:
        gradient = np.zeros(len(arrays[position]))
        for i in range(len(gradient)):
            stepped = [np.array(x, np.complex128) if k == position else x for k, x in enumerate(arrays)]
            stepped[position][i] += 1j * STEP
            gradient[i] = np.sum(loss(*stepped)).imag / STEP
        gradients.append(gradient)
    return gradients


def negative_log_sigmoid(z):
    z = exact(z)
    # log(1 + e^-z), with the exponent turned so that it never overflows.
    positive = z.real > 0
    return np.where(positive, 0.0, -z) + np.log1p(np.exp(np.where(positive, -z, z)))


def sigmoid(z):
    return np.exp(-negative_log_sigmoid(z))


def relu(z):
    return np.where(exact(z).real > 0, z, 0.0)


def log_ratios(pi_w, pi_l, ref_w, ref_l):
    pi_w, pi_l, ref_w, ref_l = exact(pi_w, pi_l, ref_w, ref_l)
    return pi_w - ref_w, pi_l - ref_l


def gap(*logps):
    d_w, d_l = log_ratios(*logps)
    return d_w - d_l


def per_token(logps, length):
    logps, length = exact(logps, length)
    return logps / np.where(length > 1, length, 1.0)


# DPO, with margins and with weights


def dpo(*logps, beta):
    return negative_log_sigmoid(beta * gap(*logps))


def cat_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, margin, *, beta):
    u_w, u_l, margin = exact(u_w, u_l, margin)
    return negative_log_sigmoid(beta * gap(pi_w, pi_l, ref_w, ref_l) - (u_l - u_w) * margin)


def safe_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, *, beta, delta):
    u_w, u_l = exact(u_w, u_l)
    return negative_log_sigmoid(beta * gap(pi_w, pi_l, ref_w, ref_l) - (u_l - u_w) * delta)


def b_dpo(pi_w, pi_l, ref_w, ref_l, w_w, w_l, *, beta, scale=1.0):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    return negative_log_sigmoid(scale * beta * (exact(w_w) * d_w - exact(w_l) * d_l))


def cat_b_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, margin, w_w, w_l, *, beta, scale=1.0):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    u_w, u_l, margin, w_w, w_l = exact(u_w, u_l, margin, w_w, w_l)
    return negative_log_sigmoid(scale * beta * (w_w * d_w - w_l * d_l) - (u_l - u_w) * margin)


def bfpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, *, beta):
    target = {(0, 0): 0.5, (0, 1): 1.0, (1, 0): -1.0, (1, 1): -0.5}
    u_w, u_l = np.atleast_1d(u_w), np.atleast_1d(u_l)
    f = np.array([target[int(w), int(other)] for w, other in zip(u_w, u_l, strict=True)])
    return (gap(pi_w, pi_l, ref_w, ref_l) - f / beta) ** 2


# Noisy labels


def cdpo(*logps, beta, label_smoothing):
    x, e = beta * gap(*logps), label_smoothing
    return (1 - e) * negative_log_sigmoid(x) + e * negative_log_sigmoid(-x)


def robust_dpo(*logps, beta, label_smoothing):
    x, e = beta * gap(*logps), label_smoothing
    return ((1 - e) * negative_log_sigmoid(x) - e * negative_log_sigmoid(-x)) / (1 - 2 * e)


def exo(*logps, beta, label_smoothing):
    x, e = beta * gap(*logps), label_smoothing
    q, log_q, log_rest = sigmoid(x), -negative_log_sigmoid(x), -negative_log_sigmoid(-x)
    return q * (log_q - np.log(1 - e)) + (1 - q) * (log_rest - np.log(e))


# Squared errors


def ipo(*logps, beta):
    return (gap(*logps) - 1 / (2 * beta)) ** 2


def ipo_average(pi_w, pi_l, ref_w, ref_l, n_w, n_l, *, beta):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    return (per_token(d_w, n_w) - per_token(d_l, n_l) - 1 / (2 * beta)) ** 2


def sppo(*logps, beta):
    d_w, d_l = log_ratios(*logps)
    return (d_w - 1 / (2 * beta)) ** 2 + (d_l + 1 / (2 * beta)) ** 2


def cal_dpo(*logps, beta):
    d_w, d_l = log_ratios(*logps)
    calibration = (d_w - 1 / (2 * beta)) ** 2 + (d_l + 1 / (2 * beta)) ** 2
    return negative_log_sigmoid(d_w - d_l) + calibration / 2


# Other shapes


def hinge(*logps, beta):
    return relu(1 - beta * gap(*logps))


def discopop(*logps, beta, temperature):
    x = beta * gap(*logps)
    m = sigmoid(x / temperature)
    return (1 - m) * negative_log_sigmoid(x) + m * np.exp(-x)


# Without a reference


def sft(logps, length):
    return -per_token(logps, length)


def simpo(pi_w, pi_l, n_w, n_l, *, beta, gamma):
    return negative_log_sigmoid(beta * (per_token(pi_w, n_w) - per_token(pi_l, n_l)) - gamma)


def alphapo(pi_w, pi_l, n_w, n_l, *, beta, gamma, alpha):
    r_w = (1 - np.exp(-alpha * per_token(pi_w, n_w))) / alpha
    r_l = (1 - np.exp(-alpha * per_token(pi_l, n_l))) / alpha
    return negative_log_sigmoid(beta * (r_w - r_l) - gamma)


def orpo(pi_w, pi_l, n_w, n_l, *, lam):
    a_w, a_l = per_token(pi_w, n_w), per_token(pi_l, n_l)
    odds_w, odds_l = np.exp(a_w) / (1 - np.exp(a_w)), np.exp(a_l) / (1 - np.exp(a_l))
    return -a_w + lam * negative_log_sigmoid(np.log(odds_w) - np.log(odds_l))


def cpo(pi_w, pi_l, n_w, *, beta, alpha):
    return negative_log_sigmoid(beta * (exact(pi_w) - exact(pi_l))) - alpha * per_token(pi_w, n_w)


# DPO with a hold on one response


def rpo(pi_w, pi_l, ref_w, ref_l, n_w, *, beta, alpha):
    return dpo(pi_w, pi_l, ref_w, ref_l, beta=beta) - alpha * per_token(pi_w, n_w)


def dpop(*logps, beta, lam):
    d_w, d_l = log_ratios(*logps)
    return negative_log_sigmoid(beta * (d_w - d_l - lam * relu(-d_w)))


def bounded_dpo(*logps, beta, lam):
    d_w, d_l = log_ratios(*logps)
    return negative_log_sigmoid(beta * d_w - beta * np.log(lam * np.exp(d_l) + 1 - lam))


# A term per response


def nca(*logps, beta):
    r_w, r_l = (beta * d for d in log_ratios(*logps))
    return negative_log_sigmoid(r_w) + 0.5 * negative_log_sigmoid(-r_w) + 0.5 * negative_log_sigmoid(-r_l)


def apo_zero(*logps, beta):
    d_w, d_l = log_ratios(*logps)
    return 1 - sigmoid(beta * d_w) + sigmoid(beta * d_l)


def apo_down(*logps, beta):
    d_w, d_l = log_ratios(*logps)
    return sigmoid(beta * d_w) + 1 - sigmoid(beta * (d_w - d_l))


def bco_pair(*logps, beta, reward_shift=0.0):
    d_w, d_l = log_ratios(*logps)
    return negative_log_sigmoid(beta * d_w - reward_shift) + negative_log_sigmoid(reward_shift - beta * d_l)


def kto(pi, ref, desirable, *, beta, kl, desirable_weight=1.0, undesirable_weight=1.0):
    d, z = exact(pi) - exact(ref), max(0.0, kl)
    good, bad = 1 - sigmoid(beta * (d - z)), 1 - sigmoid(beta * (z - d))
    return np.where(exact(desirable) == 1, desirable_weight * good, undesirable_weight * bad)


def bco(pi, ref, desirable, *, beta, reward_shift=0.0):
    x = beta * (exact(pi) - exact(ref)) - reward_shift
    return np.where(exact(desirable) == 1, negative_log_sigmoid(x), negative_log_sigmoid(-x))


def apo_zero_unpaired(pi, ref, desirable, *, beta):
    x = beta * (exact(pi) - exact(ref))
    return np.where(exact(desirable) == 1, 1 - sigmoid(x), sigmoid(x))


# Lengths, scores, factors


def r_dpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, *, beta, alpha):
    margin = alpha * (exact(n_w) - exact(n_l))
    return negative_log_sigmoid(beta * gap(pi_w, pi_l, ref_w, ref_l) - margin)


def sigmoid_norm(pi_w, pi_l, ref_w, ref_l, n_w, n_l, *, beta):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    return negative_log_sigmoid(beta * (per_token(d_w, n_w) - per_token(d_l, n_l)))


def odpo(pi_w, pi_l, ref_w, ref_l, s_w, s_l, *, beta, alpha):
    offset = alpha * np.log(exact(s_w) - exact(s_l))
    return negative_log_sigmoid(beta * gap(pi_w, pi_l, ref_w, ref_l) - offset)


def madpo_weight(m, *, tau, lam, minimum, maximum):
    m = exact(m)
    rise = (maximum - 1) / (1 - minimum) * np.exp(lam * (np.abs(m) - tau))
    c = minimum + (maximum - minimum) / (1 + rise)
    return np.where(m > -tau, sigmoid(c * m) / sigmoid(m), 1.0)


def madpo(pi_w, pi_l, ref_w, ref_l, m, *, beta, **shape):
    return madpo_weight(m, **shape) * dpo(pi_w, pi_l, ref_w, ref_l, beta=beta)


def modpo(pi_w, pi_l, ref_w, ref_l, m_w, m_l, *, beta, weight, margin_weight):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    r_w = (beta * d_w - margin_weight * exact(m_w)) / weight
    r_l = (beta * d_l - margin_weight * exact(m_l)) / weight
    return negative_log_sigmoid(r_w - r_l)


def weighted_dpo(pi_w, pi_l, ref_w, ref_l, factor, *, beta):
    return exact(factor) * dpo(pi_w, pi_l, ref_w, ref_l, beta=beta)


# Over a batch


def of_sorted(upper, lower, beta):
    """Logistic loss of the sorted upper minus the sorted lower values, put back to the places of the upper."""
    by_upper, by_lower = np.argsort(upper.real), np.argsort(lower.real)
    loss = np.zeros(len(upper), np.result_type(upper, lower))
    loss[by_upper] = negative_log_sigmoid(beta * (upper[by_upper] - lower[by_lower]))
    return loss


def aot(pi_w, pi_l, ref_w, ref_l, *, beta):
    return of_sorted(exact(pi_w) - exact(pi_l), exact(ref_w) - exact(ref_l), beta)


def aot_unpaired(*logps, beta):
    return of_sorted(*log_ratios(*logps), beta)
