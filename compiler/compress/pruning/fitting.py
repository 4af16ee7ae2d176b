"""Which weights can be pruned as options say."""

from __future__ import annotations

from effc.compiler.compress.sites import WeightSite, left_out
from effc.passes.sparsity import Sparsify


def kept_whole(options: Sparsify, site: WeightSite) -> str:
    """Why no zeros of the site's weight are made use of, or ``""``."""
    if "embedding" in site.kinds:
        return "an embedding looks its rows up, which takes no time that zeros would save"
    return left_out(site, options)


def unpruned(options: Sparsify, site: WeightSite) -> str:
    """Why the site's weight is not pruned, or ``""``."""
    reason = kept_whole(options, site)
    if reason or options.method == "magnitude":
        return reason
    if site.in_groups:
        return "of a convolution in groups, calibration does not tell which channels meet which weights"
    return "" if options.statistics(site.name) is not None else "the calibration has not seen it"
