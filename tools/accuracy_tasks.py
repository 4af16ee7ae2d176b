"""What `quantized_accuracy.py` measures on: a pretrained model, batches to calibrate with, and how good it is, case by case.

Language: SmolLM2-135M, its channels permuted by the seed; log-likelihood of text. Embeddings: MiniLM-L6 against human judgments of words.
Images: a residual network trained here on Fashion-MNIST, the seed deciding on weights and batches.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import fashion_mnist
import minilm
import smollm2
import torch
import word_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from effc.bench.models.vision import FashionResNet
from effc.calibrating.sensitivity import Probe


class Task(ABC):
    """``model``: in eval mode. ``calibration``: batches for it, of other data than is evaluated; ``held_out``: more of their source."""

    #: What a row's figure says.
    figure: str
    #: Elements of a group of a sum, where a format has groups.
    group = 64
    batches_held_out = 4
    #: What the model's output is.
    sensitivity: Probe = "logits"
    model: nn.Module
    calibration: list[Any]
    held_out: list[Any]

    @abstractmethod
    def __init__(self, seed: int) -> None: ...

    def weights(self) -> list[str]:
        """Names of the parameters to quantize: of all linears and convolutions."""
        return [f"{name}.weight" for name, m in self.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    @abstractmethod
    def cases(self) -> Tensor:
        """How good the model is now, by case: ``[cases]`` or ``[cases, values]``."""

    @staticmethod
    @abstractmethod
    def loss(exact: Tensor, found: Tensor) -> float:
        """The figure for these cases of the float model and of the quantized one."""


class Language(Task):
    """Windows of source text: those of the seed to evaluate, and 8 from the other half of the text to calibrate with."""

    figure = "rise of perplexity, %"
    context, windows = 256, 8

    def __init__(self, seed: int) -> None:
        model, tokenizer = smollm2.load()
        smollm2.permute(model, seed)
        tokens = tokenizer.encode(smollm2.standard_library()).ids
        first = seed * self.windows * self.context
        self.model: nn.Module = model
        self.texts = smollm2.windows(tokens[first:], self.context, self.windows)
        texts = smollm2.windows(
            tokens[len(tokens) // 2 + 2 * first :], 2 * self.context, self.windows + self.batches_held_out
        )
        batches = [{"input_ids": text, "use_cache": False} for text in texts]
        self.calibration, self.held_out = batches[: self.windows], batches[self.windows :]

    def weights(self) -> list[str]:
        """Without the head, as is the custom: it is the embedding too."""
        return [name for name in super().weights() if name != "lm_head.weight"]

    @torch.no_grad()
    def cases(self) -> Tensor:
        """Mean negative log-likelihood of a token, ``[windows]``."""
        found = []
        for text in self.texts:
            logits = self.model(input_ids=text, use_cache=False).logits[0, :-1]
            found.append(F.cross_entropy(logits, text[0, 1:]))
        return torch.stack(found).double()

    @staticmethod
    def loss(exact: Tensor, found: Tensor) -> float:
        return 100 * float((found - exact).mean().expm1())


class Embeddings(Task):
    """Pairs of words; calibrated with lines of text that the seed draws."""

    figure = "fall of Spearman's correlation"
    sensitivity: Probe = "values"

    def __init__(self, seed: int) -> None:
        self.model = minilm.Embedder().eval()
        first, second, self.judgments = word_similarity.load("wordsim353.tsv")
        self.words = minilm.tokenize([*first, *second])  # in one call: each shape is a model of its own to compile
        lines = [line.strip() for line in smollm2.standard_library().splitlines() if len(line.split()) > 8]
        order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))
        batches = [
            minilm.tokenize([lines[i] for i in order[32 * b : 32 * b + 32]]) for b in range(4 + self.batches_held_out)
        ]
        self.calibration, self.held_out = batches[:4], batches[4:]

    @torch.no_grad()
    def cases(self) -> Tensor:
        """Similarity by the model and by people, ``[pairs, 2]``."""
        first, second = self.model(*self.words).chunk(2)
        return torch.stack([(first * second).sum(1), self.judgments], 1).double()

    @staticmethod
    def loss(exact: Tensor, found: Tensor) -> float:
        return word_similarity.spearman(*exact.unbind(1)) - word_similarity.spearman(*found.unbind(1))


class Images(Task):
    """A fifth of the test set of Fashion-MNIST; calibrated with 256 images of the training set."""

    figure = "fall of accuracy, points"
    group = 24
    batches_held_out = 12  # of 128: a share of images that differ is known to a percent from some hundred on
    batch, epochs, tested = 128, 2, 2000

    def __init__(self, seed: int) -> None:
        images, labels = fashion_mnist.load("train")
        torch.manual_seed(seed)
        self.model = _trained(FashionResNet(), images, labels, self.batch, self.epochs)
        order = torch.randperm(len(images))
        self.calibration = list(images[order[:256]].split(32))
        self.held_out = list(images[order[256 : 256 + 128 * self.batches_held_out]].split(128))
        self.images, self.labels = (part[: self.tested] for part in fashion_mnist.load("t10k"))

    def weights(self) -> list[str]:
        """Without the stem, whose sums of 9 products have no groups."""
        return [name for name in super().weights() if not name.startswith("stem")]

    @torch.no_grad()
    def cases(self) -> Tensor:
        """1 where the class is right, ``[images]``."""
        found = torch.cat([self.model(part).argmax(1) for part in self.images.split(500)])
        return (found == self.labels).double()

    @staticmethod
    def loss(exact: Tensor, found: Tensor) -> float:
        return 100 * float((exact - found).mean())


def _trained(model: nn.Module, images: Tensor, labels: Tensor, batch: int, epochs: int) -> nn.Module:
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


TASKS: dict[str, type[Task]] = {"language": Language, "embeddings": Embeddings, "images": Images}
