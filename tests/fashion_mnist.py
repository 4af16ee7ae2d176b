"""Fashion-MNIST: 60,000 labelled images of ten kinds of clothing (Xiao et al., 2017), from Debian's ``dataset-fashion-mnist``."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Where Debian's package puts the files.
FOLDER = Path("/usr/share/datasets/fashion-mnist")
_MEAN, _DEVIATION = 0.2860, 0.3530  # of the training pixels


def installed(folder: Path = FOLDER) -> bool:
    return (folder / "train-images-idx3-ubyte.gz").exists()


def load(part: str, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 28, 28]``, float32, normalised, and labels ``[N]``, int64; ``part``: ``train`` or ``t10k``."""
    pixels = _read(folder / f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _read(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    return (pixels.float() / 255 - _MEAN) / _DEVIATION, labels.long()


def _read(file: Path, header: int) -> Tensor:
    """The bytes of an IDX file after its header."""
    if not file.exists():
        raise FileNotFoundError(f"no {file}; install it with `apt-get install dataset-fashion-mnist`")
    with gzip.open(file) as stream:
        return torch.from_numpy(np.frombuffer(stream.read(), dtype=np.uint8, offset=header).copy())
