"""Writes digits.npz beside this file from scikit-learn's copy of the data: run it as a script."""

from pathlib import Path

import numpy as np


def make(path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    np.savez_compressed(
        path, images=bunch.data.astype(np.uint8), labels=bunch.target.astype(np.uint8)
    )


if __name__ == "__main__":
    make(Path(__file__).with_name("digits.npz"))
