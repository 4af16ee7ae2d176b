"""Which ATen ops do no arithmetic."""

#: ATen ops that move, create or index data, by base name.
COPIES: frozenset[str] = frozenset((
    "_conj", "_local_scalar_dense", "_neg_view", "_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_index",
    "_unsafe_view", "alias", "arange", "as_strided", "as_strided_copy", "as_strided_scatter", "broadcast_to", "cat",
    "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy", "copy_", "detach", "diag_embed",
    "diagonal", "diagonal_copy", "diagonal_scatter", "empty", "empty_like", "empty_permuted", "empty_strided",
    "expand", "expand_as", "expand_copy", "eye", "fill", "fill_", "flip", "full", "full_like", "gather", "index",
    "index_copy", "index_copy_", "index_fill", "index_fill_", "index_put", "index_put_", "index_select", "item",
    "lift_fresh", "linspace", "local_scalar_dense", "masked_fill", "masked_fill_", "masked_scatter",
    "masked_scatter_", "masked_select", "meshgrid", "movedim", "narrow", "narrow_copy", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero", "ones", "ones_like", "pad", "permute",
    "permute_copy", "pixel_shuffle", "pixel_unshuffle", "put", "put_", "ravel", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "repeat", "repeat_interleave", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "reshape", "resize", "resize_", "resolve_conj", "resolve_neg", "roll", "rot90",
    "scalar_tensor", "scatter", "scatter_", "select", "select_copy", "select_scatter", "set_", "slice",
    "slice_copy", "slice_scatter", "split", "split_copy", "split_with_sizes", "split_with_sizes_copy", "squeeze",
    "squeeze_copy", "stack", "t", "t_copy", "take", "take_along_dim", "tile", "transpose", "transpose_copy", "tril",
    "tril_indices", "triu", "triu_indices", "unbind", "unbind_copy", "unfold", "unfold_copy", "unsafe_chunk",
    "unsafe_split", "unsafe_split_with_sizes", "unsqueeze", "unsqueeze_copy", "view", "view_as", "view_as_complex",
    "view_as_real", "view_copy", "where", "zero", "zero_", "zeros", "zeros_like",
))  # fmt: skip
