"""Integer expressions: simplification never changes a value, and addresses through reshapes become linear again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.compiler.ir.expr import (
    Expr,
    as_expr,
    const,
    floordiv,
    maximum,
    minimum,
    mod,
    nonnegative,
    parse,
    recombine,
    var,
)

VALUES = {"d0": 3, "d1": 5, "s0": 7}
RANGES = {"d0": const(4), "d1": const(6)}


def _exprs() -> st.SearchStrategy[Expr]:
    leaves = st.one_of(st.integers(-6, 12).map(const), st.sampled_from(sorted(VALUES)).map(var))

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        positive = st.integers(1, 9).map(const)
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
            st.tuples(inner, positive).map(lambda p: p[0] // p[1]),
            st.tuples(inner, positive).map(lambda p: p[0] % p[1]),
            st.tuples(inner, inner).map(lambda p: maximum(*p)),
            st.tuples(inner, inner).map(lambda p: minimum(*p)),
        )

    return st.recursive(leaves, grow, max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(_exprs(), st.fixed_dictionaries({"d0": st.integers(0, 3), "d1": st.integers(0, 5), "s0": st.integers(1, 9)}))
def test_text_substitution_and_recombination_keep_the_value(e: Expr, values: dict[str, int]) -> None:
    expected = e.evaluate(values)
    assert parse(str(e)) == e
    assert recombine(e).evaluate(values) == expected
    assert e.substitute(values).constant == expected
    assert e.substitute({"d0": var("d0")}, RANGES).evaluate(values) == expected


def test_polynomials_are_canonical() -> None:
    assert parse("s0*d0 + 2*d0*s0 - d1 + 3") == parse("3 - d1 + 3*s0*d0")
    assert parse("(d0 + 1)*(d0 - 1)") == parse("d0*d0 - 1")
    assert hash(parse("d0 + d1")) == hash(parse("d1 + d0"))


def test_division_uses_what_is_known_of_the_loop() -> None:
    inside = {"d0": const(12), "d1": const(64)}
    assert floordiv(parse("64*d0 + d1"), const(64), inside) == var("d0")
    assert mod(parse("64*d0 + d1"), const(64), inside) == var("d1")
    symbolic = {"d0": parse("s1"), "d1": parse("s0")}
    assert floordiv(parse("s0*d0 + d1"), parse("s0"), symbolic) == var("d0")
    # one past the range may carry over: nothing may be assumed
    assert floordiv(parse("64*d0 + d1"), const(64), {"d0": const(12), "d1": const(65)}) != var("d0")
    nested = {"d0": const(12), "d1": const(64)}
    assert floordiv(parse("2*d0 + d1 // 32"), const(2), nested) == var("d0")
    assert mod(parse("2*d0 + d1 // 32"), const(2), nested) == parse("d1 // 32")
    assert floordiv(parse("2*d0 + d1 // 32"), const(2), {"d0": const(12), "d1": const(65)}) != var("d0")
    assert mod(parse("5*d0 + d1 % 5"), const(5), nested) == parse("d1 % 5")


def test_a_split_index_comes_together_again() -> None:
    row = parse("d0")
    address = floordiv(row, const(7)) * 35 + mod(row, const(7)) * 5 + var("d1")
    assert recombine(address) == parse("5*d0 + d1")
    three = floordiv(row, const(12)) * 24 + mod(floordiv(row, const(4)), const(3)) * 8 + mod(row, const(4)) * 2
    assert recombine(three) == parse("2*d0")


def test_coefficient_is_the_stride_or_none() -> None:
    e = parse("s0*4*d0 + d1 + 9")
    assert e.coefficient("d0") == parse("4*s0")
    assert e.coefficient("d2") == const(0)
    assert parse("d0*d0").coefficient("d0") is None
    assert parse("d0 // 3").coefficient("d0") is None


def test_nonnegative_is_only_said_when_plain() -> None:
    assert nonnegative(parse("4*s0 - 1"))
    assert nonnegative(parse("s0*s1 - s0"))
    assert not nonnegative(parse("s0 - s1"))
    assert not nonnegative(parse("s0 - 2"))


@pytest.mark.parametrize("text", ["", "d0 +", "foo(d0)", "1.5", "d0 ** d1", "[1]"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an integer expression"):
        as_expr(text)
