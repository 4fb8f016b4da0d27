"""What a loss may be given: predictions, targets and masks that fit together."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, check_float, is_concrete, is_inexact
from ..core.contraction import accumulated

Array = jax.Array


def unpack(name: str, x: Any) -> tuple[Any, Any, Any]:
    """prediction, target and mask (None where there is none)."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise LayerError(name, "x must be the pair (prediction, target)")
    prediction, target = x
    if isinstance(prediction, (tuple, list)):
        raise LayerError(
            name,
            f"the model returns a tuple of {len(prediction)}, a loss takes one array; end the "
            "model with pick(0), or for (prediction, balance) use auxiliary(loss, coefficient)",
        )
    check_float(name, prediction, "prediction")
    if prediction.ndim == 0 or prediction.shape[0] == 0:
        raise LayerError(
            name, f"prediction has shape {prediction.shape}, a batch of one example or more is due"
        )
    mask = None
    if isinstance(target, (tuple, list)):
        if len(target) != 2 or not any(_is_array(part) for part in target):
            raise LayerError(
                name,
                f"target is a {type(target).__name__} of {len(target)}, an array is due, or the "
                "tuple (target, mask) of two; make an array of numbers with jnp.asarray",
            )
        target, mask = target
    if isinstance(target, (bool, int, float)):
        target = np.asarray(target)  # whose shape is refused, as it is under jit
    if not hasattr(target, "dtype"):
        raise LayerError(name, f"target is a {type(target).__name__}, an array is due")
    if mask is not None:
        check_mask(name, prediction, mask)
    return prediction, target, mask


def _is_array(part: Any) -> bool:
    return getattr(part, "ndim", 0) > 0


def _described(part: Any) -> str:
    """What it is, the same for a Python number and what jit makes of one."""
    if isinstance(part, (bool, int, float)) or hasattr(part, "dtype"):
        return f"{jnp.result_type(part)}{list(jnp.shape(part))}"
    return f"a {type(part).__name__}"


def check_mask(name: str, prediction: Array, mask: Any) -> None:
    tokens = prediction.shape[:-1]
    if prediction.ndim < 3:
        raise LayerError(
            name,
            f"a mask is for tokens, prediction (B, T, ...) is due and is {prediction.shape}; "
            "to leave examples out use sample_weight",
        )
    if not _is_array(mask) or mask.shape != tokens or mask.dtype != bool:
        raise LayerError(name, f"mask is {_described(mask)}, bool{list(tokens)} is due")


def check_alike(name: str, prediction: Array, target: Array, integers: bool) -> None:
    if prediction.shape != target.shape:
        advice = "give them one shape"
        if target.ndim + 1 == prediction.ndim:
            advice = "use target[:, None], or prediction[:, 0]"
            if not is_inexact(target):
                advice = "these look like labels; use jax.nn.one_hot, or softmax_cross_entropy()"
        raise LayerError(
            name, f"prediction is {prediction.shape}, target is {target.shape}; {advice}"
        )
    if math.prod(prediction.shape) == 0:
        raise LayerError(name, f"prediction is empty, its shape is {prediction.shape}")
    if integers and jnp.issubdtype(target.dtype, jnp.integer):
        return
    if not is_inexact(target):
        raise LayerError(name, f"target is {target.dtype}, floats are due; cast it")
    _check_dtype(name, prediction, target)


def _check_dtype(name: str, prediction: Array, target: Array) -> None:
    # A numpy float64 becomes what JAX makes of it; anything else must match.
    if jax.dtypes.canonicalize_dtype(target.dtype) != prediction.dtype:
        raise LayerError(
            name, f"prediction is {prediction.dtype}, target is {target.dtype}; cast one of them"
        )


def check_classes(name: str, prediction: Array, target: Any, mask: Any, *, labels: bool) -> None:
    if prediction.ndim < 2 or prediction.shape[-1] == 0:
        raise LayerError(
            name, f"prediction is {prediction.shape}, a batch of scores (B, ..., C > 0) is due"
        )
    tokens, classes = prediction.shape[:-1], prediction.shape[-1]
    if is_inexact(target):
        if target.shape != prediction.shape:
            hint = "; labels must be integers" if target.shape == tokens else ""
            raise LayerError(
                name,
                f"target is {target.shape} of {target.dtype}, distributions "
                f"{prediction.shape} are due{hint}",
            )
        _check_dtype(name, prediction, target)
        if is_concrete(target):
            values = np.asarray(target, np.float64)[kept(mask, target)]
            if not (values >= 0).all():
                raise LayerError(name, f"a target is {values.min()}, a distribution is due")
            sums = values.sum(-1)
            if not (np.abs(sums - 1) <= _tolerance(classes, prediction.dtype)).all():
                worst = sums[np.argmax(np.abs(sums - 1))]
                raise LayerError(name, f"a target sums to {worst:.6g}, a distribution is due")
        return
    if not labels:
        raise LayerError(
            name,
            f"target is {target.dtype}, distributions {prediction.shape} are due; "
            "use jax.nn.one_hot, or softmax_cross_entropy()",
        )
    check_labels(name, prediction, target, mask, classes)


def check_labels(name: str, prediction: Array, target: Any, mask: Any, classes: int) -> None:
    """Raises unless there is a label in [0, classes) for each token of ``prediction``."""
    tokens = prediction.shape[:-1]
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise LayerError(name, f"target is {target.dtype}, integer labels or distributions are due")
    if target.shape != tokens:
        hint = "; use target[..., 0]" if target.shape == (*tokens, 1) else ""
        if target.shape == prediction.shape:
            hint = "; distributions must be floats"
        raise LayerError(name, f"labels are {target.shape}, {tokens} are due{hint}")
    if is_concrete(target):
        values = np.asarray(target)[kept(mask, target)]
        bad = values[(values < 0) | (values >= classes)]
        if bad.size:
            raise LayerError(
                name, f"a label is {bad[0]}, labels of {classes} classes lie in [0, {classes})"
            )


def kept(mask: Any, target: Any) -> Any:
    """Index of the positions to check: all, those under a concrete mask, or none."""
    if mask is None:
        return ...
    if not is_concrete(mask):
        return np.zeros(np.shape(target)[: np.ndim(mask)], bool)
    return np.asarray(mask)


def share_of(name: str, prediction: Array, mask: Any) -> Array:
    """What a token contributes to its example's loss, (B, ..., 1) or one number for all.

    In the prediction's dtype, to be at least float32: a count overflows narrower ones.
    """
    if mask is None:
        return jnp.asarray(1 / math.prod(prediction.shape[1:-1]), prediction.dtype)
    mask = jnp.asarray(mask)
    count = jnp.sum(mask, axis=tuple(range(1, mask.ndim)), keepdims=True)
    return jnp.where(mask, 1 / jnp.maximum(count, 1), 0).astype(prediction.dtype)[..., None]


# ------------------------------------------------------------------- values under a trace


def share_where(good: Array, share: Array) -> Array:
    """NaN in the place of the share of what is not good, and counts: so it is NaN in all of loss,
    deltas and curvature, by hand and by autodiff.
    """
    return jnp.where(good | (share == 0), share, jnp.nan)


def _tolerance(classes: int, dtype: Any) -> float:
    """How far from 1 the sum of a distribution may be."""
    return min(32 * classes * float(jnp.finfo(dtype).eps), 1 / 8)


def slack_of(dtype: Any) -> float:
    """How far a value may be out of its range under a trace.

    In float64 gradients are checked: by differences, which move a target out of its range, and of
    targets that were rounded to bfloat16 before.
    """
    return 2**-7 if jnp.finfo(dtype).bits == 64 else 0.0


def is_distribution(target: Array) -> Array:
    """Where ``target`` (..., C) is one, (..., 1)."""
    wide, slack = accumulated(target), slack_of(target.dtype)
    total = jnp.sum(wide, axis=-1, keepdims=True)
    near = jnp.abs(total - 1) <= max(_tolerance(target.shape[-1], target.dtype), slack)
    return near & jnp.all(wide >= -slack, axis=-1, keepdims=True)


def as_labels(target: Any, classes: int) -> Array:
    """Labels as int32, -1 for those out of [0, classes), which int32 might wrap into it."""
    on = np if isinstance(target, np.ndarray) else jnp
    if target.dtype.itemsize < 4:
        target = target.astype(np.int32)
    inside = (target >= 0) & (target < classes)
    return jnp.asarray(on.where(inside, target.astype(np.int32), -1))


def as_floats(target: Any, dtype: Any) -> Array:
    """Floats; a NumPy integer that JAX would wrap around is rounded."""
    if isinstance(target, np.ndarray) and not is_inexact(target):
        target = target.astype(np.float64)
    return jnp.asarray(target).astype(dtype)


def one_hot(name: str, target: Any, prediction: Array) -> Any:
    """Labels, integers for each token of ``prediction``, as distributions; others as they are.

    Under a trace a label out of range gives NaN.
    """
    integers = hasattr(target, "dtype") and not is_inexact(target)
    if not integers or target.ndim + 1 != prediction.ndim:
        return target
    classes = prediction.shape[-1]
    check_labels(name, prediction, target, None, classes)
    labels = as_labels(target, classes)[..., None]
    found = (labels == jnp.arange(classes, dtype=jnp.int32)).astype(prediction.dtype)
    return jnp.where(labels >= 0, found, jnp.nan)
