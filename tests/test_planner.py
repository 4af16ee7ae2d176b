"""The planner, on candidates of its own making: what it chooses, within which budgets, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import effc
from effc.compiler.ir import plan as ir
from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.candidate import Candidate, Latency, dense
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.site import Site
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule
from effc.costmodel.hardware import Hardware, Speed
from effc.costmodel.neighbours import Link
from effc.costmodel.planner import Goal, Planner, Verified

#: Sites, and the candidates of each.
Offered = tuple[list[Site], dict[str, list[Candidate]]]
SECONDS = {"slow": 1.2, "less": 0.45, "broken": 0.1, "half": 0.5, "tiny": 0.1, "unsure": 0.95, "whole": 1.0}


def fake_site(name: str) -> Site:
    copy = (Instr("load", (), "f32", (("address", var("d0")), ("operand", 0))),
            Instr("store", (0,), "", (("address", var("d0")), ("operand", 1))))  # fmt: skip
    operands = (Operand("f32", "read", const(8)), Operand("f32", "write", const(8)))
    return Site(name, "copy", "", (), KernelSpec("loops", (Dim(const(8)),), operands, copy), (), 0, 64)


def candidate(site: Site, name: str, error: float, saved: int = 0) -> Candidate:
    spec = replace(site.spec, attributes=(("name", name),))
    return Candidate(name, ((spec,),), (site.symbols,), error=error, saved=saved)


def price(spec: Any, symbols: Any) -> Latency:
    return Latency(SECONDS[spec.get("name", "whole")], 0.1)


def goal(
    budget: float | None = None,
    errors: Callable[[ir.Plan], float] | None = None,
    *,
    latency: float | None = None,
    size: int | None = None,
    slower: float = 1.0,
) -> Goal:
    """Of a model that weighs 100 bytes and takes a second beside its sites; really ``slower`` times what is predicted of these."""

    def verify(plan: ir.Plan) -> Verified:
        return Verified((errors or total_error)(plan), 1.0 + slower * plan.latency.seconds)

    return Goal("m", "c", "h", "relative_l2", Budgets(budget, latency, size), verify, seconds=3.0, size=100)


def total_error(plan: ir.Plan) -> float:
    return float(sum(d.error**2 for d in plan.decisions) ** 0.5)


def choices(plan: ir.Plan) -> list[str]:
    return [d.pass_name for d in plan.decisions]


@pytest.fixture(scope="module")
def two_sites() -> Offered:
    found = [fake_site("a"), fake_site("b")]
    offered = {s.name: [dense(s), candidate(s, "half", 0.01), candidate(s, "tiny", 0.05)] for s in found}
    return found, offered


def test_the_budget_is_spent_where_it_saves_most(two_sites: Offered) -> None:
    planner = Planner(price)
    assert choices(planner.plan(*two_sites, goal(0.0, total_error))) == ["dense", "dense"]
    assert choices(planner.plan(*two_sites, goal(0.015, total_error))) == ["half", "half"]
    assert sorted(choices(planner.plan(*two_sites, goal(0.012, total_error)))) == ["dense", "half"]
    assert sorted(choices(planner.plan(*two_sites, goal(0.055, total_error)))) == ["half", "tiny"]
    assert choices(planner.plan(*two_sites, goal(0.1, total_error))) == ["tiny", "tiny"]


def test_the_whole_model_decides(two_sites: Offered) -> None:
    plan = Planner(price).plan(*two_sites, goal(0.1, lambda p: 5 * total_error(p)))
    assert plan.measured is not None
    assert plan.measured <= 0.1
    assert choices(plan) == ["half", "half"]
    assert plan.notes[0].startswith("tightened")
    for never in (float("nan"), float("inf"), 1.0):
        kept = Planner(price).plan(*two_sites, goal(0.1, lambda p, e=never: 0.0 if p.exact else e))  # type: ignore[misc]
        assert choices(kept) == ["dense", "dense"]


def test_a_margin_counts_against_the_budget(two_sites: Offered) -> None:
    """Both sites at half the time keep the budget, but not surely: one of them does."""

    def verify(plan: ir.Plan) -> Verified:
        return Verified(total_error(plan), margin=0.004)

    plan = Planner(price).plan(*two_sites, replace(goal(0.015), verify=verify))
    assert sorted(choices(plan)) == ["dense", "half"]
    assert plan.measured == pytest.approx(0.01)
    assert plan.margin == 0.004
    nan = replace(goal(0.015), verify=lambda p: Verified(total_error(p), margin=0.0 if p.exact else float("nan")))
    assert choices(Planner(price).plan(*two_sites, nan)) == ["dense", "dense"]
    with pytest.raises(effc.BudgetError, match=r"its relative_l2 with the margin is 0\.07\d+ \(0\.0707 ± 0\.004\)"):
        Planner(price).plan(
            *two_sites, replace(goal(0.074, latency=1.2), verify=lambda p: replace(verify(p), seconds=1.0))
        )


def test_what_is_not_surely_faster_is_not_taken() -> None:
    site = fake_site("a")
    offered = {"a": [dense(site), candidate(site, "unsure", 0.0)]}
    plan = Planner(price).plan([site], offered, goal(1.0, total_error))
    assert choices(plan) == ["dense"]
    assert plan.decisions[0].reason == "none of 1 other candidates is surely faster"


def proposed(site: Site, name: str, seconds: float, error: float) -> Candidate:
    return replace(candidate(site, name, error), latency=Latency(seconds, 0.3), proposed=True)


def test_what_is_proposed_is_taken_for_what_it_was_measured_to_take() -> None:
    """One pass is slower than predicted, everywhere: the plan that took it shows that, and the next one takes the other."""
    sites = [fake_site(name) for name in "abcd"]
    offered = {s.name: [dense(s), proposed(s, "half", 0.4, 0.01), proposed(s, "tiny", 0.2, 0.01)] for s in sites}
    really = {"half": 0.5, "tiny": 0.7}
    verified = []

    def verify(plan: ir.Plan) -> Verified:
        verified.append(choices(plan))
        times = {n: Latency(really[d.pass_name]) for n, d in enumerate(plan.decisions) if d.pass_name in really}
        return Verified(total_error(plan), sites=times)

    plan = Planner(price).plan(sites, offered, replace(goal(0.1), verify=verify))
    assert verified == [["tiny"] * 4, ["half"] * 4]
    assert choices(plan) == ["half"] * 4
    assert [d.latency.seconds for d in plan.decisions] == [0.5] * 4
    assert all(c.measured for c in plan.decisions[0].considered if c.pass_name != "dense")


def test_a_prediction_that_is_off_says_nothing_of_kernels_of_another_kind() -> None:
    """Of one pass: codes take thrice what is predicted, which holds for the other site's codes, and not for its floats."""
    sites = [fake_site("a"), fake_site("b")]
    offered = {}
    for s, chosen in zip(sites, (("codes",), ("codes", "floats")), strict=True):
        found = [dense(s)]
        for kind in chosen:
            dtype = "i8" if kind == "codes" else "f32"
            spec = replace(s.spec, operands=(Operand(dtype, "read", const(8)), s.spec.operands[1]))
            seconds = 0.3 if kind == "codes" else 0.4
            options = (("kind", kind),)
            found.append(Candidate("both", ((spec,),), ((),), options, 0.01, Latency(seconds), proposed=True))
        offered[s.name] = found

    def verify(plan: ir.Plan) -> Verified:
        really = {"codes": 0.9, "floats": 0.4}
        taken = {n: d.options[0][1] for n, d in enumerate(plan.decisions) if d.options}
        return Verified(total_error(plan), sites={n: Latency(really[kind]) for n, kind in taken.items()})

    plan = Planner(price).plan(sites, offered, replace(goal(0.1), verify=verify))
    assert [dict(d.options)["kind"] for d in plan.decisions] == ["codes", "floats"]


def test_what_turns_out_slower_than_dense_is_not_taken() -> None:
    site = fake_site("a")
    offered = {"a": [dense(site), proposed(site, "half", 0.5, 0.01)]}

    def verify(plan: ir.Plan) -> Verified:
        return Verified(total_error(plan), sites={} if plan.exact else {0: Latency(1.5)})

    plan = Planner(price).plan([site], offered, replace(goal(0.1), verify=verify))
    assert choices(plan) == ["dense"]
    assert plan.decisions[0].considered[1].verdict == "not faster than dense"


def test_what_turns_out_slower_is_not_taken_for_being_exact() -> None:
    """Zeros that a weight has anyway cost no error: each form that leaves them out is tried, and each is slower."""
    site = fake_site("a")
    offered = {"a": [dense(site), *(proposed(site, name, 0.5, 0.0) for name in ("half", "tiny"))]}

    def verify(plan: ir.Plan) -> Verified:
        slow = {n: Latency(1.5) for n, d in enumerate(plan.decisions) if d.pass_name != "dense"}
        return Verified(0.0, sites=slow)

    plan = Planner(price).plan([site], offered, replace(goal(0.1), verify=verify))
    assert choices(plan) == ["dense"]


def test_what_one_site_loses_is_not_kept_for_what_another_gains() -> None:
    """The plans that are tried by what was measured meanwhile end; the last one may hold what has turned out slower."""
    sites = [fake_site(name) for name in "ab"]
    offered = {"a": [dense(sites[0]), proposed(sites[0], "half", 0.5, 0.01)],
               "b": [dense(sites[1]), *(proposed(sites[1], name, 0.9, 0.01) for name in "klmnopqrstuv")]}  # fmt: skip

    def verify(plan: ir.Plan) -> Verified:
        times = {n: Latency(0.4 if n == 0 else 2.0) for n, d in enumerate(plan.decisions) if d.pass_name != "dense"}
        return Verified(total_error(plan), sites=times)

    plan = Planner(price).plan(sites, offered, replace(goal(0.1), verify=verify))
    assert choices(plan) == ["half", "dense"]


def test_a_coarse_estimate_finds_the_budget_from_below_and_from_above() -> None:
    """Of twelve sites as many as the budget allows, whatever the metric is in units of the estimates."""
    sites = [fake_site(f"s{i}") for i in range(12)]
    offered = {s.name: [dense(s), candidate(s, "half", 0.01)] for s in sites}
    for unit in (0.2, 1.0, 30.0):
        budget = 0.02 * unit  # of four sites
        plan = Planner(price).plan(sites, offered, goal(budget * 1.01, lambda p, u=unit: u * total_error(p)))  # type: ignore[misc]
        assert choices(plan).count("half") in (3, 4), unit


def test_a_budget_that_held_by_times_that_were_wrong_is_sought_from_below_again() -> None:
    """At first ``half`` looks faster, and keeps the budget; measured, ``tiny`` is, whose errors are twice what is estimated: of it, less
    than was allowed before keeps the budget.
    """
    sites = [fake_site(f"s{i}") for i in range(12)]
    offered = {s.name: [dense(s), proposed(s, "half", 0.4, 0.01), proposed(s, "tiny", 0.5, 0.01)] for s in sites}
    really, off = {"half": 0.95, "tiny": 0.5}, {"half": 0.8, "tiny": 2.0}

    def verify(plan: ir.Plan) -> Verified:
        error = sum((off.get(d.pass_name, 0.0) * d.error) ** 2 for d in plan.decisions) ** 0.5
        taken = {n: Latency(really[d.pass_name]) for n, d in enumerate(plan.decisions) if d.pass_name in really}
        return Verified(error, sites=taken)

    plan = Planner(price).plan(sites, offered, replace(goal(0.03), verify=verify))
    assert choices(plan).count("tiny") == 2
    assert plan.measured is not None
    assert plan.measured <= 0.03


def test_the_best_of_a_candidates_schedules_is_chosen() -> None:
    site = fake_site("a")
    slow, fast = (replace(site.spec, schedule=Schedule((("mr", i),))) for i in (1, 2))

    def by_schedule(spec: Any, symbols: Any) -> Latency:
        return Latency(1.0 / spec.schedule["mr"])

    plan = Planner(by_schedule).plan(
        [site], {"a": [Candidate("dense", ((slow, fast),), ((),))]}, goal(0.0, total_error)
    )
    (decision,) = plan.decisions
    assert decision.kernels == (fast,)
    assert decision.changed
    assert plan.schedules() == {fast.key(): fast.schedule}


# -- budgets ----------------------------------------------------------------------------------------------------------
def test_the_choice_is_the_best_where_taking_the_best_step_first_is_not() -> None:
    """``half`` saves more for its error, but leaves no room for ``less``, which saves more."""
    found = [fake_site("a"), fake_site("b")]
    offered = {
        site.name: [dense(site), candidate(site, name, error)]
        for site, name, error in zip(found, ("half", "less"), (0.01, 0.012), strict=True)
    }
    assert choices(Planner(price).plan(found, offered, goal(0.013))) == ["dense", "less"]


def test_the_least_error_within_a_latency(two_sites: Offered) -> None:
    """As it is, a call takes 3 seconds: one beside the sites, and one at each."""
    planner = Planner(price)
    for latency, expected in (
        (3.0, ["dense", "dense"]),
        (2.5, ["dense", "half"]),
        (2.0, ["half", "half"]),
        (1.2, ["tiny", "tiny"]),
    ):
        plan = planner.plan(*two_sites, goal(latency=latency))
        assert sorted(choices(plan)) == expected
        assert plan.budgets.describe("kl") == f"least kl, latency <= {1e3 * latency:g} ms"


def test_a_latency_is_measured_and_less_is_allowed_until_it_holds(two_sites: Offered) -> None:
    """Every site takes 1.3 times as long as predicted, so the first plan is too slow."""
    plan = Planner(price).plan(*two_sites, goal(latency=2.0, slower=1.3))
    assert sorted(choices(plan)) == ["half", "tiny"]
    assert plan.notes[0].startswith("tightened")


def test_a_latency_out_of_reach_says_what_is_reached(two_sites: Offered) -> None:
    with pytest.raises(
        effc.BudgetError, match=r"latency <= 1100 ms: of the nearest that was found, its call takes 1200 ms"
    ):
        Planner(price).plan(*two_sites, goal(latency=1.1))


def test_a_latency_and_an_error_that_exclude_each_other(two_sites: Offered) -> None:
    assert choices(Planner(price).plan(*two_sites, goal(0.08, latency=1.2))) == ["tiny", "tiny"]
    with pytest.raises(
        effc.BudgetError, match=r"relative_l2 <= 0\.06, latency <= 1200 ms: .* its relative_l2 is 0\.0708"
    ):
        Planner(price).plan(*two_sites, goal(0.06, latency=1.2))


@pytest.fixture
def sizes() -> Offered:
    """``slow`` takes longer than dense and saves most."""
    found = [fake_site("a"), fake_site("b")]
    offered = {
        s.name: [
            dense(s),
            candidate(s, "half", 0.02, 20),
            candidate(s, "tiny", 0.05, 10),
            candidate(s, "slow", 0.01, 30),
        ]
        for s in found
    }
    return found, offered


def test_the_least_error_within_a_size(sizes: Offered) -> None:
    planner = Planner(price)
    for size, expected in ((100, ["dense", "dense"]), (75, ["dense", "slow"]), (45, ["slow", "slow"])):
        plan = planner.plan(*sizes, goal(size=size))
        assert sorted(choices(plan)) == expected
        assert plan.size is not None
        assert plan.size <= size


def test_the_least_latency_within_a_size_and_an_error(sizes: Offered) -> None:
    planner = Planner(price)
    assert sorted(choices(planner.plan(*sizes, goal(0.1, size=70)))) == ["half", "tiny"]
    assert sorted(choices(planner.plan(*sizes, goal(0.03, size=60)))) == ["half", "half"]
    assert sorted(choices(planner.plan(*sizes, goal(0.03, size=50)))) == ["half", "slow"]


def test_a_size_out_of_reach_says_the_smallest(sizes: Offered) -> None:
    with pytest.raises(effc.BudgetError, match=r"0\.0001 MB, and 4e-05 MB with every weight in the smallest form"):
        Planner(price).plan(*sizes, goal(size=39))
    with pytest.raises(
        effc.BudgetError, match=r"relative_l2 <= 0\.01, size <= 4e-05 MB: .* its relative_l2 is 0\.0142"
    ):
        Planner(price).plan(*sizes, goal(0.01, size=40))


def test_an_error_that_is_named_can_be_asked_for(sizes: Offered) -> None:
    """With its margin, and rounded up."""

    def verified(plan: ir.Plan) -> Verified:
        return Verified(total_error(plan), margin=0.00123)

    with pytest.raises(effc.BudgetError, match=r"its relative_l2 with the margin is 0\.0154 \(0\.0141 ± 0\.001\)"):
        Planner(price).plan(*sizes, replace(goal(0.01, size=40), verify=verified))
    Planner(price).plan(*sizes, replace(goal(0.0154, size=40), verify=verified))


def test_outputs_that_are_not_finite_are_no_plan(sizes: Offered) -> None:
    with pytest.raises(effc.BudgetError, match="its relative_l2 is nan"):
        Planner(price).plan(*sizes, goal(None, lambda p: float("nan"), size=50))


# -- neighbours -------------------------------------------------------------------------------------------------------
SLOW = Hardware("h", "cpu", (), 64, 1, 0, 0, 0, Speed(1.0, 10.0), Speed(1.0, 10.0), (1.0, 1.0, 1.0), True)


def test_a_result_that_is_held_narrower_than_its_reader_takes_it_costs_time() -> None:
    """``codes`` saves 0.9 s at the writer, but a reader of floats makes it write 24 bytes more, at 10 a second."""
    writer, reader = fake_site("a"), fake_site("b")
    spec = replace(writer.spec, operands=(writer.spec.operands[0], Operand("i8", "write", const(8))))
    codes = Candidate("codes", ((spec,),), ((),), error=0.001, latency=Latency(0.1))
    offered = {"a": [replace(dense(writer), latency=Latency(1.0)), codes], "b": [dense(reader)]}
    alone = Planner(price).plan([writer, reader], offered, goal(0.1), [Link(0, 1, 8)])
    assert choices(alone) == ["codes", "dense"]
    together = Planner(price, SLOW).plan([writer, reader], offered, goal(0.1), [Link(0, 1, 8)])
    assert choices(together) == ["dense", "dense"]
    assert choices(Planner(price, SLOW).plan([writer, reader], offered, goal(0.1), [Link(1, 0, 8)])) == [
        "codes",
        "dense",
    ]


# -- why --------------------------------------------------------------------------------------------------------------
def test_every_candidate_has_a_verdict(sizes: Offered) -> None:
    found, offered = sizes
    offered["a"].append(candidate(found[0], "broken", float("inf")))
    plan = Planner(price).plan(found, offered, goal(0.04))
    (decision,) = [d for d in plan.decisions if d.site == "a"]
    verdicts = {c.pass_name: c.verdict for c in decision.considered}
    assert verdicts == {
        "dense": "slower than the chosen one",
        "half": "chosen",
        "tiny": "its error is better spent elsewhere, or over the budget",
        "slow": "not faster than dense",
        "broken": "its outputs are not finite",
    }
    assert not any(c.measured for c in decision.considered)
    assert ir.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("exact", "predicted"), [(2.0, 1.5), (1.2, 0.7), (0.9, 0.5)])
def test_a_call_is_predicted_to_take_no_less_than_its_kernels(exact: float, predicted: float) -> None:
    """Where kernels were timed in a slower minute than calls, they seem to save more than there is."""
    site = fake_site("a")
    decision = ir.Decision("a", "half", (), (site.spec,), True, Latency(0.5), Latency(1.0), 0.1, "")
    made = ir.Plan("m", "c", "h", "relative_l2", Budgets(0.2), 0.1, (decision,), seconds=(0.6, exact))
    assert made.expected == pytest.approx(predicted)
