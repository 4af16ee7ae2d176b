"""Products with a constant matrix of which only some blocks are stored: kernels that go through lists of them."""
