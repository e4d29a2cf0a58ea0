"""Float64 references of the losses, scalars and arrays alike."""

import numpy as np


def negative_log_sigmoid(z):
    return np.logaddexp(0.0, -np.asarray(z, np.float64))


def log_ratios(pi_w, pi_l, ref_w, ref_l):
    pi_w, pi_l, ref_w, ref_l = (np.asarray(x, np.float64) for x in (pi_w, pi_l, ref_w, ref_l))
    return pi_w - ref_w, pi_l - ref_l


def dpo(pi_w, pi_l, ref_w, ref_l, *, beta):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    return negative_log_sigmoid(beta * (d_w - d_l))


def cat_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, margin, *, beta):
    ones = np.ones_like(pi_w, dtype=np.float64)
    return cat_b_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, margin, ones, ones, beta=beta)


def safe_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, *, beta, delta):
    return cat_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, np.full(np.shape(pi_w), delta, np.float64), beta=beta)


def b_dpo(pi_w, pi_l, ref_w, ref_l, w_w, w_l, *, beta, scale=1.0):
    zeros = np.zeros_like(pi_w, dtype=np.float64)
    return cat_b_dpo(pi_w, pi_l, ref_w, ref_l, zeros, zeros, zeros, w_w, w_l, beta=beta, scale=scale)


def cat_b_dpo(pi_w, pi_l, ref_w, ref_l, u_w, u_l, margin, w_w, w_l, *, beta, scale=1.0):
    d_w, d_l = log_ratios(pi_w, pi_l, ref_w, ref_l)
    u_w, u_l, margin, w_w, w_l = (np.asarray(x, np.float64) for x in (u_w, u_l, margin, w_w, w_l))
    return negative_log_sigmoid(scale * beta * (w_w * d_w - w_l * d_l) - (u_l - u_w) * margin)
