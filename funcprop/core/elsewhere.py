"""What other libraries call the things of this one, for the error of a name that is not here."""

from __future__ import annotations

NAMES = {
    "linear": "dense(features) is the affine layer",
    "fullyconnected": "dense(features) is the affine layer",
    "sequential": "serial(*layers) puts layers one after the other",
    "chain": "serial(*layers) puts layers one after the other",
    "conv1d": "conv(features, kernel) takes one to three axes",
    "conv2d": "conv(features, kernel) takes one to three axes",
    "conv3d": "conv(features, kernel) takes one to three axes",
    "convtranspose2d": "conv_transpose(features, kernel) takes one to three axes",
    "maxpool2d": "max_pool(window) takes one to three axes",
    "avgpool2d": "avg_pool(window) takes one to three axes",
    "adaptiveavgpool2d": "global_avg_pool is the mean over all of an image",
    "batchnorm1d": "batch_norm() is for inputs of any rank",
    "batchnorm2d": "batch_norm() is for inputs of any rank",
    "swish": "silu is that activation",
    "embed": "embedding(vocab, features) takes ids to vectors",
    "multiheaddotproductattention": "multi_head_attention(heads) is that layer",
    "add": "residual(layer) adds its input, and fork(2) makes two branches",
    "concat": "concatenate joins the arrays of a tuple",
    "stopgradient": "jax.lax.stop_gradient inside function(f) is that",
    "crossentropy": "softmax_cross_entropy() takes logits with labels",
    "crossentropyloss": "softmax_cross_entropy() takes logits with labels",
    "nllloss": "softmax_cross_entropy() takes logits with labels",
    "binarycrossentropy": "sigmoid_cross_entropy takes logits with targets from 0 to 1",
    "bcewithlogitsloss": "sigmoid_cross_entropy takes logits with targets from 0 to 1",
    "mse": "mean_squared_error is that loss",
    "mseloss": "mean_squared_error is that loss",
    "l1loss": "mean_absolute_error is that loss",
    "mae": "mean_absolute_error is that loss",
    "huberloss": "huber() is that loss",
    "kldivloss": "kl_divergence is that loss",
    "module": "a Layer is three functions, init, forward and backward",
    "grad": "value_and_backprop(model, loss) gives the gradient by hand",
    "valueandgrad": "value_and_backprop(model, loss) gives the gradient by hand",
    "train": "fit(rule, optimizer, params, data) trains",
    "adam": "optimizers are those of optax, as optax.adam(1e-3)",
    "sgd": "optimizers are those of optax, as optax.sgd(0.1)",
}


def missing(name: str, known: list[str]) -> str:
    """What is said of a name that this package has not.

    >>> from funcprop.core.elsewhere import missing
    >>> missing("Linear", [])
    "module 'funcprop' has no attribute 'Linear'; dense(features) is the affine layer"
    >>> missing("Softmax", ["softmax"])
    "module 'funcprop' has no attribute 'Softmax'; it is called softmax"
    """
    plain = name.replace("_", "").lower()
    same = [other for other in known if other.replace("_", "").lower() == plain]
    advice = f"it is called {same[0]}" if same else NAMES.get(plain, "")
    return f"module 'funcprop' has no attribute {name!r}" + (f"; {advice}" if advice else "")
