"""Texts of the statements, by family: ``{v}`` the operand, ``{w}`` another, ``{d}``/``{e}`` dimensions, ``{k}``
keepdim.

Arguments keep values tame where the function does not (``exp(-|v|)``, ``1 / (|v| + 0.5)``). ``gelu`` gets no infinity:
of a contiguous float32 tensor eager (oneDNN) makes NaN of it, of a strided one or a single element infinity.
``elu`` and ``hardswish`` get no NaN: the gradient there is NaN in eager's vector loop and the incoming one in the remainder.
"""

from __future__ import annotations


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


UNARY = _lines(
    """
    torch.exp(-{v}.abs())
    torch.expm1({v} * 0.5)
    torch.log({v}.abs() + 0.5)
    torch.log1p({v}.abs())
    {v}.abs().sqrt()
    torch.rsqrt({v}.abs() + 0.1)
    torch.reciprocal({v}.abs() + 0.5)
    torch.sin({v})
    torch.cos({v})
    torch.atan({v})
    torch.tanh({v})
    torch.sigmoid({v})
    torch.erf({v})
    torch.square({v})
    {v} ** 2
    {v} ** 3
    F.gelu({v}.clamp(-99, 99))
    F.gelu({v}.clamp(-99, 99), approximate='tanh')
    F.silu({v})
    F.softplus({v})
    F.elu({v}.nan_to_num())
    F.leaky_relu({v}, 0.1)
    F.hardswish({v}.nan_to_num())
    F.mish({v})
    F.logsigmoid({v})
    """
)
EXACT_UNARY = _lines(
    """
    -{v}
    {v}.abs()
    torch.relu({v})
    {v}.clamp(-1, 1)
    {v}.clone()
    """
)
JUMP = _lines(
    """
    torch.floor({v})
    torch.ceil({v})
    torch.round({v})
    torch.trunc({v})
    torch.sign({v})
    {v} > 0.5
    {v} == 0
    torch.isnan({v})
    {v}.to(torch.bool)
    """
)
BINARY = _lines(
    """
    {v} + {w}
    {v} - {w}
    {v} * {w}
    {v} / ({w}.abs() + 0.5)
    {v} + 1.5
    2 - {v}
    {v} * 0.3
    torch.add({v}, {w}, alpha=2)
    torch.hypot({v} + 0.0, {w} + 0.0)
    torch.atan2({v} + 0.0, {w} + 3.0)
    torch.lerp({v}, {w}, 0.3)
    torch.addcmul({v}, {v}, {w})
    """
)
EXACT_BINARY = _lines(
    """
    torch.maximum({v}, {w})
    torch.minimum({v}, {w})
    """
)
COMPARISON = _lines(
    """
    {v} < {w}
    {v} <= {w}
    {v} > {w}
    {v} >= {w}
    {v} == {w}
    {v} != {w}
    """
)
INTEGER = _lines(
    """
    {v} & {w}
    {v} | {w}
    {v} ^ {w}
    {v} + {w}
    {v} * {w}
    {v} // 3
    {v} % 3
    {v} % -4
    torch.div({v}, 2, rounding_mode='trunc')
    ~{v}
    {v} << 1
    {v} >> 1
    """
)
REDUCTION = _lines(
    """
    {v}.sum({d}, keepdim={k})
    {v}.mean({d}, keepdim={k})
    {v}.sum()
    {v}.mean()
    {v}.var({d}, keepdim={k}, correction=0)
    {v}.std({d}, correction=0) + 0.1
    {v}.norm(dim={d}, keepdim={k})
    torch.logsumexp({v}, {d}, keepdim={k})
    ({v} * 0.5).prod({d}, keepdim={k})
    {v}.cumsum({d})
    ({v} * 0.5).cumprod({d})
    """
)
EXACT_REDUCTION = _lines(
    """
    {v}.amax({d}, keepdim={k})
    {v}.amin({d}, keepdim={k})
    {v}.argmax({d}, keepdim={k})
    {v}.argmin({d}, keepdim={k})
    {v}.max({d}).values
    ({v} > 0).any({d})
    ({v} > 0).all({d})
    ({v} > 0).sum({d})
    {v}.sort({d}).values
    torch.topk({v}, 1, dim={d}).values
    """
)
NORMALIZATION = _lines(
    """
    torch.softmax({v}, {d})
    torch.log_softmax({v}, {d})
    F.layer_norm({v}, {v}.shape[-1:])
    F.layer_norm({v}, {v}.shape[-1:], eps=1e-3) * 0.5 + 0.1
    F.normalize({v}, dim={d})
    {v} * torch.rsqrt({v}.pow(2).mean(-1, keepdim=True) + 1e-5)
    {v} - {v}.amax({d}, keepdim=True)
    """
)
MATMUL = _lines(
    """
    {v} @ {w}
    {v} @ {w}.transpose(-1, -2)
    F.linear({v}, {w})
    torch.einsum('...ij,...kj->...ik', {v}, {w})
    {v}.transpose(-1, -2) @ {v}
    {v} @ {v}.transpose(-1, -2)
    torch.baddbmm({v} @ {v}.mT, {v}, {v}.mT)
    """
)
#: ``{r}``: spatial rank. The input is its own weight and is pooled.
OWN_WINDOWS = _lines(
    """
    F.conv{r}d({v}, {v}[:2], padding=1)
    F.conv{r}d({v}, {v}[:3, :, :3])
    F.conv{r}d({v}, {v}[:2, :, :2], stride=2, padding=1)
    F.conv_transpose{r}d({v}, {v}.transpose(0, 1)[:, :3, :2])
    F.conv{r}d({v}, {v}[:1, :1].repeat({v}.shape[1], 1, *[1] * {r})[..., :3], padding=1, groups={v}.shape[1])
    F.avg_pool{r}d({v}, 2)
    F.max_pool{r}d({v}, 3, 1, 1)
    F.adaptive_avg_pool{r}d({v}, 1)
    F.interpolate({v}, scale_factor=2, mode='nearest')
    """
)
VIEW = _lines(
    """
    {v}.transpose({d}, {e})
    {v}.movedim({d}, {e})
    {v}.unsqueeze({d})
    {v}.squeeze({d})
    {v}.flip({d})
    {v}.roll(1, {d})
    {v}.flatten()
    {v}.flatten(0, 1)
    {v}.reshape(-1)
    {v}.narrow({d}, 0, 1)
    {v}.select({d}, 0)
    {v}.unfold({d}, 2, 1)
    {v}[..., 1:]
    {v}[..., ::2]
    {v}[1:]
    {v}[:-1]
    {v}[None]
    {v}.unsqueeze(-1).expand(*{v}.shape, 3)
    {v}.repeat_interleave(2, {d})
    {v}.diagonal(0, {d}, {e})
    {v}.tril()
    {v}.detach()
    {v}.contiguous()
    {v}.clone(memory_format=torch.preserve_format)
    {v}.contiguous(memory_format=torch.channels_last)
    {v}[..., :0]
    {v}.flatten()[0]
    {v}.mT
    """
)
#: Only where sizes are fixed.
STATIC_VIEW = _lines(
    """
    {v}.select({d}, -1)
    {v}.chunk(2, {d})[-1]
    {v}.split(2, {d})[0]
    {v}.unflatten({d}, (2, -1))
    {v}.unflatten({d}, (-1, 3))
    """
)
JOINED = _lines(
    """
    torch.cat([{v}, {w}], {d})
    torch.cat([{v}, {v}], {d})
    torch.stack([{v}, {w}], {d})
    F.pad({v}, (1, 2))
    F.pad({v}, (0, 1), value=0.5)
    F.pad({v}, (-1, 1))
    """
)
#: ``{w}`` holds int64.
INDEXED = _lines(
    """
    {v}[{w} % {v}.shape[0]]
    {v}.index_select({d}, {w}.flatten() % {v}.shape[{d}])
    F.embedding({w} % {v}.shape[0], {v})
    {v}.gather(0, ({w} % {v}.shape[0]).expand_as({v}))
    torch.take_along_dim({v}, {w}.reshape(-1, *[1] * ({v}.ndim - 1)) % {v}.shape[0], 0)
    {v}.index_fill({d}, {w}.flatten() % {v}.shape[{d}], 1)
    {v}.index_put(({w} % {v}.shape[0],), torch.zeros((), dtype={v}.dtype))
    {v}.scatter(0, ({w}.flatten()[:1] % {v}.shape[0]).reshape([1] * {v}.ndim), 0)
    {v}.take({w} % {v}.numel())
    {v}.gather({d}, (torch.arange({v}.numel()).reshape({v}.shape) * 7 + 3) % {v}.shape[{d}])
    """
)
#: Adds into places that may repeat: rounding depends on the order.
ACCUMULATED = _lines(
    """
    torch.zeros_like({v}).index_add({d}, torch.arange({v}.shape[{d}]) // 2, {v})
    torch.zeros_like({v}).scatter_add({d}, (torch.arange({v}.numel()).reshape({v}.shape) * 7) % {v}.shape[{d}], {v})
    """
)
CREATED = _lines(
    """
    torch.arange({v}.shape[{d}])
    torch.arange({v}.shape[{d}], dtype=torch.float32) * 0.25
    torch.ones_like({v})
    torch.full_like({v}, 2)
    {v}.new_zeros({v}.shape)
    torch.eye({v}.shape[{d}])
    torch.ones({v}.shape[{d}], {v}.shape[{d}]).tril() > 0
    """
)
EXACT_UPDATE = _lines(
    """
    {v}.copy_({w})
    {v}.zero_()
    {v}.fill_(0.25)
    {v}.clamp_(-1, 1)
    {v}[0] = 1
    {v}[..., :1].copy_({v}[..., -1:])
    {v}.unsqueeze(0).zero_()
    {v}[..., ::2].fill_(0.5)
    {v}.flatten()[:1].fill_(1)
    {v}.diagonal(0, 0, -1).zero_()
    {v}.mT[1:].copy_({v}.mT[:-1].clone())
    """
)
UPDATE = _lines(
    """
    {v}.add_({w})
    {v}.sub_({w}, alpha=2)
    {v}.mul_(0.5)
    {v}[..., 0].add_(1)
    {v}[1:].mul_(2)
    {v}.view(-1)[::3].add_(1)
    {v}.select(-1, 0).mul_(0.5).add_(0.25)
    {v}.mT.sub_({v}.mT * 0.5)
    {v}.transpose(0, -1).add_({w}.transpose(0, -1))
    """
)
