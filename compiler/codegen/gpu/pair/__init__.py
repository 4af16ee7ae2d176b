"""Two products, one behind the other, as one kernel: low-rank factors, and a transformer's MLP of few columns."""
