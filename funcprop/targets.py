"""What a loss may be given: predictions, targets and masks that fit together."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layer import LayerError, check_float, is_concrete, is_inexact

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
        if len(target) != 2:
            raise LayerError(name, f"target is a tuple of {len(target)}, (target, mask) is due")
        target, mask = target
    if not hasattr(target, "dtype"):
        raise LayerError(name, f"target is a {type(target).__name__}, an array is due")
    return prediction, target, mask


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
            tolerance = 32 * classes * float(jnp.finfo(prediction.dtype).eps)
            if not (np.abs(sums - 1) <= tolerance).all():
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
    """What a token contributes to its example's loss, (B, ..., 1) or one number for all."""
    if mask is None:
        return jnp.asarray(1 / math.prod(prediction.shape[1:-1]), prediction.dtype)
    tokens = prediction.shape[:-1]
    if prediction.ndim < 3:
        raise LayerError(
            name,
            f"a mask is for tokens, prediction (B, T, ...) is due and is {prediction.shape}; "
            "to leave examples out use sample_weight",
        )
    if mask.shape != tokens or mask.dtype != bool:
        raise LayerError(name, f"mask is {mask.dtype}{list(mask.shape)}, bool{list(tokens)} is due")
    mask = jnp.asarray(mask)
    count = jnp.sum(mask, axis=tuple(range(1, mask.ndim)), keepdims=True)
    return jnp.where(mask, 1 / jnp.maximum(count, 1), 0).astype(prediction.dtype)[..., None]


def one_hot(name: str, target: Any, prediction: Array) -> Any:
    """Labels, integers for each token of ``prediction``, as distributions; others as they are.

    Under a trace a label out of range gives NaN.
    """
    integers = hasattr(target, "dtype") and not is_inexact(target)
    if not integers or target.ndim + 1 != prediction.ndim:
        return target
    classes = prediction.shape[-1]
    check_labels(name, prediction, target, None, classes)
    labels = jnp.asarray(target).astype(jnp.int32)[..., None]
    found = (labels == jnp.arange(classes, dtype=jnp.int32)).astype(prediction.dtype)
    return jnp.where((labels >= 0) & (labels < classes), found, jnp.nan)
