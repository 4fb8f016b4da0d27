import jax.numpy as jnp

IGNORE = 255
GAMMA = 2


def log_softmax(logits):
    shifted = logits - jnp.max(logits, axis=0, keepdims=True)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=0, keepdims=True))


def encode(labels, num_classes, dtype):
    valid = labels != IGNORE
    target = jnp.where(valid, labels, 0)
    onehot = jnp.arange(num_classes)[:, None, None] == target[None]
    return onehot.astype(dtype), valid.astype(dtype)


def f(logits, labels, class_weight):
    """Focal loss of a (C, H, W) score map; pixels labelled 255 are left out of the mean."""
    onehot, valid = encode(labels, logits.shape[0], logits.dtype)
    logpt = jnp.sum(onehot * log_softmax(logits), axis=0)
    pt = jnp.exp(logpt)
    weight = jnp.sum(onehot * class_weight[:, None, None], axis=0)
    pixel = -weight * (1 - pt) ** GAMMA * logpt
    return jnp.sum(pixel * valid) / jnp.sum(valid)


def g(logits, labels, class_weight):
    onehot, valid = encode(labels, logits.shape[0], logits.dtype)
    logp = log_softmax(logits)
    p = jnp.exp(logp)
    logpt = jnp.sum(onehot * logp, axis=0)
    pt = jnp.exp(logpt)
    weight = jnp.sum(onehot * class_weight[:, None, None], axis=0)

    upstream = jnp.ones_like(pt) / valid.sum()
    upstream *= valid
    # d pixel / d logpt
    focus = GAMMA * (1 - pt) ** (GAMMA - 1) * pt * logpt
    focus -= (1 - pt) ** GAMMA
    dlogpt = upstream * weight * focus
    dlogits = dlogpt * (onehot - p)
    dweight = -jnp.sum(upstream * onehot * (1 - pt) ** GAMMA * logpt, axis=(1, 2))
    return dlogits, dweight


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 2)


def draw(rng, c=4, h=3, w=5, scale=1.0):
    labels = rng.integers(0, c, (h, w))
    labels[0, 0] = IGNORE if h * w > 1 else 0
    labels[-1, h:] = IGNORE
    return rng.normal(size=(c, h, w)) * scale, labels, rng.uniform(0.5, 2.0, c)


def sure(rng):
    logits, labels, weight = draw(rng)
    right = np.arange(4)[:, None, None] == labels
    return 12.0 * right + 0.1 * logits, labels, weight


FAULTS = (
    Fault(
        "the minus of the loss is lost",
        "dlogits = dlogpt * (onehot - p)",
        "dlogits = -dlogpt * (onehot - p)",
        "sign",
        "0",
        "pixel = -weight",
        "unsky/focal-loss#18",
    ),
    Fault(
        "the softmax has a derivative for the own class alone",
        "dlogits = dlogpt * (onehot - p)",
        "dlogits = dlogpt * (onehot - onehot * p)",
        "missing term",
        "0",
        "return shifted - jnp.log",
        "deeplearning4j/libnd4j#440",
    ),
    Fault(
        "pixels to ignore get a gradient",
        "upstream *= valid",
        "upstream *= 1",
        "mask ignored",
        "0 2",
        "return jnp.sum(pixel * valid)",
        "PaddlePaddle/Paddle#28622",
    ),
    Fault(
        "the second of two joined terms with the other sign",
        "focus -= (1 - pt) ** GAMMA",
        "focus += (1 - pt) ** GAMMA",
        "sign",
        "0",
        "pixel = -weight",
        "jhwjhw0123/Imbalance-XGBoost#1",
    ),
    Fault(
        "the power is not lowered by one",
        "focus = GAMMA * (1 - pt) ** (GAMMA - 1) * pt * logpt",
        "focus = GAMMA * (1 - pt) ** GAMMA * pt * logpt",
        "wrong function",
        "0",
        "pixel = -weight",
    ),
)
HARD = (
    Hard("sure and right", "saturation", sure),
    Hard("sure and wrong", "saturation", lambda rng: draw(rng, scale=30.0), "float64"),
    Hard("no class stands out", "ties", lambda rng: (np.zeros((4, 3, 5)), *draw(rng)[1:])),
    Hard("one pixel", "sizes", lambda rng: draw(rng, c=2, h=1, w=1)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
