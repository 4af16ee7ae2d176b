"""PyTorch's OpInfo database through a ``torch.compile`` backend, each sample against eager and float64."""
