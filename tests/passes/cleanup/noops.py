"""What the tests of no-ops share."""

import numpy as np

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

SIGNED = np.float32([[0.0, -0.0, 1.5], [-2.0, np.inf, np.nan]])


def check(pass_name: str, nodes, inputs, initializers=None, *, gone: bool, feeds=None, effect_exact=True, reason=None, **kwargs):
    """Put the nodes between a Neg and a Neg, run the pass, compare; `gone`: only these two are left."""
    name = next(iter(inputs))
    last = nodes[-1].output[0]
    whole = [node("Neg", [name], ["first"]), *nodes, node("Neg", [last], ["y"])]
    before = model(whole, inputs, ["y"], initializers, **kwargs)
    after, log = run_pass(before, pass_name)
    assert (ops(after) == {"Neg": 2}) == gone, ops(after)
    if reason is not None:
        assert any(reason in r for r in reasons(log)), reasons(log)
    if not gone and reason is None:
        assert not reasons(log)
    if feeds is None:
        feeds = {n: array(*[d if isinstance(d, int) else 4 for d in s]) for n, s in inputs.items()}
    assert_same(before, after, feeds, exact=effect_exact)
    return after
