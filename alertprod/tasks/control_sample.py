"""Stars that are kept out of the kernel's fit, to judge by them how good the subtraction is."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, IntArray
from alertprod.measurement.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSample:
    """Two tables without a common row.

    Parameters
    ----------
    kernel_sources
        To fit the kernel on.
    control_sources
        To judge it by.
    kernel_rows, control_rows
        Their rows in the table that was split, ascending.
    n_dcr, n_variable
        How many of the control sources were added for their colour, and how many because they vary.
    """

    kernel_sources: Catalog
    control_sources: Catalog
    kernel_rows: IntArray
    control_rows: IntArray
    n_dcr: int
    n_variable: int


def split_control_sample(
    sources: Catalog,
    *,
    selected: BoolArray,
    step_size: int = 5,
    seed: int = 10,
    usable: BoolArray | None = None,
    color_range: tuple[float, float] | None = None,
    variables: bool = False,
) -> ControlSample:
    """Split selected sources into those to fit on and those to judge by.

    Parameters
    ----------
    sources
        `SOURCE_COLUMNS`; not changed.
    selected
        The rows to split, shape ``(n,)``.
    step_size
        In random order every one of this number goes to the control sample, the first one first; 2 or more.
    seed
        Of the random order.
    usable
        Rows that can be added to the control sample; all by default.
    color_range
        Where given, usable sources with g-r outside are added to the control sample: differential refraction shows
        on them.
    variables
        Add usable sources that are known to vary.

    Notes
    -----
    A source that is added is not fitted on, even if it was selected.
    """
    if step_size < 2:
        msg = f"step_size is {step_size}; 2 or more is needed, or no star is left to fit on"
        raise ValueError(msg)
    usable = np.ones(sources.n_rows, dtype=np.bool_) if usable is None else usable
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(selected))
    control = np.zeros(sources.n_rows, dtype=np.bool_)
    control[shuffled[::step_size]] = True
    extreme, varying = np.zeros_like(control), np.zeros_like(control)
    if color_range is not None:
        color = sources["g_minus_r"]
        extreme = usable & ((color < color_range[0]) | (color > color_range[1])) & ~control
    if variables:
        varying = usable & sources["is_variable"] & ~control
    control |= extreme | varying
    kernel_rows, control_rows = np.flatnonzero(selected & ~control), np.flatnonzero(control)
    return ControlSample(
        kernel_sources=sources.select(kernel_rows),
        control_sources=sources.select(control_rows),
        kernel_rows=kernel_rows,
        control_rows=control_rows,
        n_dcr=int(extreme.sum()),
        n_variable=int(varying.sum()),
    )
