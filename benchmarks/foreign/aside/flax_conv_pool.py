"""Conv 3x3 -> relu -> overlapping max pool 3x3/2 -> mean -> linear, in NHWC.

The loops in the gradient run over the nine taps of the window and not over pixels.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class Stem(nn.Module):
    channels: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.channels, (3, 3), padding="SAME", name="conv")(x)
        x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        return nn.Dense(1, name="head")(jnp.mean(x, axis=(1, 2)))[:, 0]


def f(params, image, target):
    return 0.5 * jnp.sum((Stem().apply({"params": params}, image) - target) ** 2)


def _pool_pads(size):
    out = -(-size // 2)
    total = max(2 * (out - 1) + 3 - size, 0)
    return out, total // 2


def _conv_back(x, kernel, d):
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [[None] * 3 for _ in range(3)]
    for i in range(3):
        for j in range(3):
            window = padded[:, i : i + height, j : j + width]
            taps[i][j] = jnp.einsum("nhwc,nhwd->cd", window, d)
    dk = jnp.stack([jnp.stack(row) for row in taps])
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    dims = ("NHWC", "HWIO", "NHWC")
    dx = lax.conv_general_dilated(d, flipped, (1, 1), "SAME", dimension_numbers=dims)
    return dx, dk


def _pool_back(a, d):
    _, height, width, _ = a.shape
    (rows, top), (cols, left) = _pool_pads(height), _pool_pads(width)
    padded = jnp.pad(a, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-jnp.inf)
    seen = []
    for i in range(3):
        for j in range(3):
            y0, x0 = 2 + i - top, 2 + j - left
            seen.append(padded[:, y0 : y0 + 2 * rows - 1 : 2, x0 : x0 + 2 * cols - 1 : 2])
    winner = jnp.argmax(jnp.stack(seen), axis=0)
    b, r, s, k = jnp.meshgrid(*(jnp.arange(m) for m in d.shape), indexing="ij")
    where = (b, 2 * r + winner // 3 - top, 2 * s + winner % 3 - left, k)
    return jnp.zeros_like(a).at[where].add(d)


def g(params, image, target):
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    dims = ("NHWC", "HWIO", "NHWC")
    z = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=dims) + bias
    a = jnp.maximum(z, 0)
    pooled = nn.max_pool(a, (3, 3), strides=(2, 2), padding="SAME")
    feature = jnp.mean(pooled, axis=(1, 2))
    dout = (feature @ params["head"]["kernel"] + params["head"]["bias"])[:, 0] - target
    dfeature = dout[:, None] * params["head"]["kernel"][:, 0]
    area = pooled.shape[1] * pooled.shape[2]
    dpooled = jnp.broadcast_to(dfeature[:, None, None, :] / area, pooled.shape)
    dz = jnp.where(z > 0, _pool_back(a, dpooled), 0)
    dimage, dkernel = _conv_back(image, kernel, dz)
    dbias = jnp.sum(dz, axis=(0, 1, 2))
    head = {"kernel": feature.T @ dout[:, None], "bias": jnp.sum(dout)[None]}
    return {"conv": {"kernel": dkernel, "bias": dbias}, "head": head}, dimage


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0, 1)


def draw(rng, n=2, height=6, width=5, scale=1.0):
    params = {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 3)) * 0.4, "bias": rng.normal(size=3) * 0.3},
        "head": {"kernel": rng.normal(size=(3, 1)), "bias": rng.normal(size=1)},
    }
    return params, rng.normal(size=(n, height, width, 2)) * scale, rng.normal(size=n)


def flat(rng):
    params, image, target = draw(rng)
    image[:] = 0.5
    return params, image, target


FAULTS = (
    Fault(
        "a pixel that wins two windows keeps the gradient of one",
        "zeros_like(a).at[where].add(d)",
        "zeros_like(a).at[where].set(d)",
        "missing term",
        "0.conv.bias 0.conv.kernel 1",
        "x = nn.max_pool(x,",
        "FluxML/NNlib.jl#205",
    ),
    Fault(
        "the pool's padding left out of the columns' coordinates",
        "2 * s + winner % 3 - left, k)",
        "2 * s + winner % 3, k)",
        "off by one",
        "0.conv.bias 0.conv.kernel 1",
        "x = nn.max_pool(x,",
        "pytorch/pytorch#188344",
    ),
    Fault(
        "the kernel's gradient averaged over batch and pixels",
        'jnp.einsum("nhwc,nhwd->cd", window, d)',
        'jnp.einsum("nhwc,nhwd->cd", window, d) / (d.size // d.shape[-1])',
        "factor",
        "0.conv.kernel",
        "x = nn.Conv(",
        "sebgao/cTensor#3",
    ),
    Fault(
        "the kernel is not turned round for the image's gradient",
        "kernel[::-1, ::-1], 2, 3",
        "kernel, 2, 3",
        "transpose",
        "1",
        "x = nn.Conv(",
    ),
    Fault(
        "the bias's gradient keeps the batch",
        "dbias = jnp.sum(dz, axis=(0, 1, 2))",
        "dbias = jnp.sum(dz, axis=(1, 2))",
        "structure",
        "0.conv.bias",
        "x = nn.Conv(",
        "mlpack/mlpack#3679",
    ),
)
HARD = (
    Hard("a constant image", "ties", flat),
    Hard("one small image", "sizes", lambda rng: draw(rng, n=1, height=1, width=1), "float64"),
    Hard("an image of sixty by fifty", "large", lambda rng: draw(rng, height=60, width=50)),
    Hard("a dark image", "tiny", lambda rng: draw(rng, scale=1e-6)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=3), "bfloat16"),
)
