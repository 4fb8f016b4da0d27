"""Bilinear sampling of an image at normalised points, border padding, align_corners=False.

img (H, W, C), grid (P, 2) holding (x, y) in [-1, 1]; returns (P, C).
"""

import jax
import jax.numpy as jnp


def unnormalise(grid, H, W):
    x = ((grid[:, 0] + 1.0) * W - 1.0) / 2.0
    y = ((grid[:, 1] + 1.0) * H - 1.0) / 2.0
    return x, y


def locate(x, y, H, W):
    x, y = jnp.clip(x, 0.0, W - 1.0), jnp.clip(y, 0.0, H - 1.0)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    return x0.astype(jnp.int32), y0.astype(jnp.int32), fx, fy


def corners(img, x0, y0, mode):
    def at(j, i):
        return img.at[j, i].get(mode=mode, fill_value=0)

    return at(y0, x0), at(y0, x0 + 1), at(y0 + 1, x0), at(y0 + 1, x0 + 1)


@jax.custom_vjp
def grid_sample(img, grid):
    H, W, _ = img.shape
    x0, y0, fx, fy = locate(*unnormalise(grid, H, W), H, W)
    nw, ne, sw, se = corners(img, x0, y0, "clip")
    return (1 - fy) * ((1 - fx) * nw + fx * ne) + fy * ((1 - fx) * sw + fx * se)


def grid_sample_fwd(img, grid):
    return grid_sample(img, grid), (img, grid)


def grid_sample_bwd(res, ct):
    img, grid = res
    H, W, _ = img.shape
    x, y = unnormalise(grid, H, W)
    x0, y0, fx, fy = locate(x, y, H, W)

    d_img = jnp.zeros_like(img)
    d_img = d_img.at[y0, x0].add((1 - fy) * (1 - fx) * ct, mode="drop")
    d_img = d_img.at[y0, x0 + 1].add((1 - fy) * fx * ct, mode="drop")
    d_img = d_img.at[y0 + 1, x0].add(fy * (1 - fx) * ct, mode="drop")
    d_img = d_img.at[y0 + 1, x0 + 1].add(fy * fx * ct, mode="drop")

    free_x, free_y = (x > 0.0) & (x < W - 1.0), (y > 0.0) & (y < H - 1.0)
    nw, ne, sw, se = corners(img, x0, y0, "clip")
    gx = jnp.sum(ct * ((1 - fy) * (ne - nw) + fy * (se - sw)), axis=-1)
    gy = jnp.sum(ct * ((1 - fx) * (sw - nw) + fx * (se - ne)), axis=-1)
    per_x, per_y = W / 2.0, H / 2.0
    d_grid = jnp.stack([gx * free_x * per_x, gy * free_y * per_y], axis=-1)
    return d_img, d_grid


grid_sample.defvjp(grid_sample_fwd, grid_sample_bwd)


def f(img, grid, weight):
    return jnp.vdot(weight, grid_sample(img, grid))


def g(img, grid, weight):
    return jax.grad(f, argnums=(0, 1))(img, grid, weight)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1)


def draw(rng, h=5, w=8, c=2, p=7, level=0.0, reach=0.8):
    """The right edge is a copy of its neighbour, so that a point on it has a slope."""
    img = rng.normal(size=(h, w, c)) + level
    img[:, -1] = img[:, max(w - 2, 0)]
    grid = rng.uniform(-reach, reach, size=(p, 2))
    grid[0, 0] = (2 * w - 1) / w - 1  # on the right edge
    grid[1] = -1.3, 0.37  # beyond the left edge
    return img, grid, rng.normal(size=(p, c))


def flat(rng):
    img, grid, weight = draw(rng)
    return np.full_like(img, 0.5), grid, weight


FAULTS = (
    Fault(
        "a point on the edge is differentiated as if zeros came after the edge",
        "(x > 0.0) & (x < W - 1.0), (y > 0.0) & (y < H - 1.0)\n"
        '    nw, ne, sw, se = corners(img, x0, y0, "clip")',
        "(x >= 0.0) & (x <= W - 1.0), (y >= 0.0) & (y <= H - 1.0)\n"
        '    nw, ne, sw, se = corners(img, x0, y0, "fill")',
        "off by one|mask ignored",
        "1",
        'nw, ne, sw, se = corners(img, x0, y0, "clip")\n    return',
        "pytorch/pytorch#23925",
    ),
    Fault(
        "the clamp at the border is not differentiated",
        "gx * free_x * per_x",
        "gx * per_x",
        "mask ignored",
        "1",
        "x, y = jnp.clip(",
    ),
    Fault(
        "the slope of the other convention for the corners",
        "per_x, per_y = W / 2.0, H / 2.0",
        "per_x, per_y = (W - 1) / 2.0, (H - 1) / 2.0",
        "factor",
        "1",
        "x = ((grid[:, 0] + 1.0) * W",
        "ooples/AiDotNet.Tensors#582",
    ),
    Fault(
        "the slopes come back as (row, column)",
        "[gx * free_x * per_x, gy * free_y * per_y]",
        "[gy * free_y * per_y, gx * free_x * per_x]",
        "transpose",
        "1",
        "x = ((grid[:, 0] + 1.0) * W",
    ),
    Fault(
        "the slope along the columns is never written",
        "per_x, gy * free_y * per_y]",
        "per_x, jnp.zeros_like(gy)]",
        "stopped",
        "1",
        "y = ((grid[:, 1] + 1.0) * H",
    ),
)
HARD = (
    Hard("an image of one value", "ties", flat),
    Hard("an image of one pixel", "sizes", lambda rng: draw(rng, h=1, w=1, c=1)),
    Hard("points far outside", "extreme", lambda rng: draw(rng, reach=1e6)),
    Hard("a bright image with little in it", "cancellation", lambda rng: draw(rng, level=3e3)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
