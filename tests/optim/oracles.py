"""Published updates written out in float64 NumPy, with the counters and the order of their own code.

Written from the description of that code, sharing nothing with adamwprune.optim. Each takes gradients
(steps, N) and the weights before the first step (N,), and returns the weights after each step.
"""

import math
from collections import deque

import numpy as np


def spam(grads, weights, *, lr, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0, theta=5000.0):
    """The published SPAM: resets every 500 steps, cosine of 150, clipping 20 steps into a cycle."""
    gap, warmup, delay = 500, 150, 20
    w, m, v = weights.astype(np.float64), np.zeros(len(weights)), np.zeros(len(weights))
    history, current_step = [], warmup + 1
    for total_step, g in enumerate(grads.astype(np.float64)):
        death = 0.0 if current_step >= warmup else 0.99 * (1 + math.cos(math.pi * current_step / 151)) / 2
        step = total_step + 1
        if step % gap == 0:
            m, v = np.zeros_like(m), np.zeros_like(v)
        if step >= delay and step % gap >= delay:
            spike = g**2 > theta * v
            g = np.where(spike, np.sign(g) * np.sqrt(theta * v), g)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        w = w - size * (1 - death) * m / (np.sqrt(v) + eps)
        w = w - lr * weight_decay * w
        history.append(w)
        current_step = 0 if (step + 1) % gap == 0 else current_step + 1
    return np.stack(history)


def ancestor_spam(grads, weights, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """The ancestor's loop: two functions that count the same counter, interval and warm-up of 1,000."""
    w = weights.astype(np.float64)
    m, v, v_max = (np.zeros(len(w)) for _ in range(3))
    norms, global_step, warmup_until, history = deque(maxlen=100), 0, 0, []
    for iteration, g in enumerate(grads.astype(np.float64), start=1):
        if iteration > 1:  # the optimizer has a state
            limit = np.sqrt(50.0 * (v + 1e-12))
            g = np.where(np.abs(g) > limit, np.sign(g) * limit, g)
        norm = math.sqrt((g**2).sum())
        norms.append(norm)
        global_step += 1
        if len(norms) >= 10:
            before = np.array(list(norms)[:-1])
            if before.std() > 0 and (norm - before.mean()) / before.std() > 2.0:
                m, v = 0.5 * m, 0.9 * v
        g = g * min(1.0, 1.0 / (norm + 1e-6))
        global_step += 1
        if global_step % 1000 == 0:
            m, v, warmup_until = np.zeros_like(m), np.zeros_like(v), global_step + 1000
        applied = lr
        if warmup_until > global_step:
            done = (1000 - (warmup_until - global_step)) / 1000
            applied = lr * max(1e-3, 0.5 * (1 - math.cos(math.pi * done)))
        w = w * (1 - applied * weight_decay)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - beta1**iteration)
        w = w - applied * m_hat / (np.sqrt(v_max) / math.sqrt(1 - beta2**iteration) + eps)
        history.append(w)
    return np.stack(history)


def stable_spam(
    grads, weights, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, gap=1000, total=None, published
):
    """Stable-SPAM on one tensor; resets as its code does, or else moments alone, before the update."""
    gamma1, gamma2, gamma3 = 0.7, 0.9, 0.999
    w, m, v = weights.astype(np.float64), np.zeros(len(weights)), np.zeros(len(weights))
    largest = mean_norm = mean_square = 0.0
    step = norm_step = 0
    history = []
    for total_step, g in enumerate(grads.astype(np.float64), start=1):
        scale = 1.0 if total is None else 0.5 + 0.5 * (1 + math.cos(math.pi * total_step / (total + 1))) / 2
        w = w * (1 - lr * weight_decay)
        step, norm_step = step + 1, norm_step + 1
        count = step if published else norm_step
        top = np.abs(g).max()
        largest = gamma3 * largest + (1 - gamma3) * top
        limit = largest / (1 - gamma3**count)
        g = np.where(np.abs(g) > limit, g / top * limit, g)
        norm = math.sqrt((g**2).sum())
        g1 = gamma1 * scale
        mean_norm = g1 * mean_norm + (1 - g1) * norm
        mean_square = gamma2 * mean_square + (1 - gamma2) * norm**2
        target = mean_norm / (1 - g1**count) / (math.sqrt(mean_square / (1 - gamma2**count)) + eps)
        if norm > 0:
            g = g / norm * target
        is_reset = total_step % gap == 0
        if is_reset:
            step = 1
            if not published:
                m, v = np.zeros_like(m), np.zeros_like(v)
        b1 = beta1 * scale
        m, v = b1 * m + (1 - b1) * g, beta2 * v + (1 - beta2) * g**2
        denominator = np.sqrt(v) / math.sqrt(1 - beta2**step) + eps
        w = w - lr / (1 - b1**step) * m / denominator
        if is_reset and published:  # the new zeros were put in place while the old tensors were still used
            m, v = np.zeros_like(m), np.zeros_like(v)
        history.append(w)
    return np.stack(history)
