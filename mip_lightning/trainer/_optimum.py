"""The best argument of a function that is costly to evaluate, within given ends."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

Point: TypeAlias = tuple[float, ...]

SEED = 0
"""Of the points from which a search in several dimensions starts."""

FLAT = 1e-3
"""A round of line searches that gains a smaller share of the value is the last."""


class Optimum(NamedTuple):
    """The best argument, and the value there."""

    argument: float
    value: float


class OptimalPoint(NamedTuple):
    """The best point, and the value there."""

    point: Point
    value: float


def best_of(
    function: Callable[[float], float],
    grid: Sequence[float],
    higher_is_better: bool,
    tolerance: float,
) -> Optimum:
    """The best argument between the ends of a grid.

    First the grid, then between the neighbors of its best point a golden-section search with
    parabolic steps (Brent's, of scipy). What it returns was evaluated, and is not worse than the
    grid's best; NaN is worse than any number, and where all are NaN the first is returned.

    Args:
        function: What is to be large, or small.
        grid: Values in ascending order.
        higher_is_better: Whether large is good.
        tolerance: How close to come, in the argument.
    """
    from scipy.optimize import minimize_scalar

    seen: dict[float, float] = {}

    def cost(gamma: float, of_nan: float = math.inf) -> float:
        gamma = float(gamma)  # scipy gives numbers of numpy
        if gamma not in seen:
            seen[gamma] = function(gamma)
        value = seen[gamma]
        if math.isnan(value):
            return of_nan
        return -value if higher_is_better else value

    costs = [cost(gamma) for gamma in grid]
    best = costs.index(min(costs))
    numbers = [value for value in costs if value < math.inf]
    if not numbers:
        return Optimum(grid[0], math.nan)
    # A parabola goes through no infinite value: worse than all that is known is enough.
    worse = 2 * max(numbers) - min(numbers) + 1
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    if high > low:
        minimize_scalar(
            lambda gamma: cost(gamma, worse),
            bounds=(low, high),
            method="bounded",
            options={"xatol": tolerance},
        )
    gamma = min(seen, key=cost)
    return Optimum(gamma, seen[gamma])


def starting_points(dimensions: int, number: int) -> list[Point]:
    """Points in the unit cube: its middle, others that cover it evenly, its corners if fewer.

    Args:
        dimensions: D.
        number: How many others.
    """
    from scipy.stats import qmc

    corners = itertools.product((0.0, 1.0), repeat=dimensions) if 2**dimensions <= number else ()
    inside = qmc.LatinHypercube(dimensions, seed=SEED).random(number).tolist()
    return [(0.5,) * dimensions, *corners, *map(tuple, inside)]


def best_point(
    function: Callable[[Point], float],
    starts: Sequence[Point],
    higher_is_better: bool,
    tolerance: float,
) -> OptimalPoint:
    """The best point of the unit cube.

    First the starting points, then from the best of them line searches along one dimension after
    another, and the directions that they lead to (Powell's, of scipy). What it returns was
    evaluated; NaN is worse than any number.

    Args:
        function: What is to be large, or small.
        starts: The points from which it starts.
        higher_is_better: Whether large is good.
        tolerance: How close to come, in each dimension.
    """
    from scipy.optimize import minimize

    seen: dict[Point, float] = {}

    def cost(values: Iterable[float]) -> float:
        point = tuple(float(value) for value in values)
        if point not in seen:
            seen[point] = function(point)
        value = seen[point]
        if math.isnan(value):
            return math.inf
        return -value if higher_is_better else value

    best = min(starts, key=cost)
    if math.isnan(seen[best]):
        return OptimalPoint(best, math.nan)
    numbers = [value for value in map(cost, starts) if value < math.inf]
    worse = 2 * max(numbers) - min(numbers) + 1  # a parabola goes through no infinite value
    minimize(
        lambda values: min(cost(values), worse),
        best,
        method="Powell",
        bounds=[(0.0, 1.0)] * len(best),
        options={"xtol": tolerance, "ftol": FLAT},
    )
    point = min(seen, key=cost)
    return OptimalPoint(point, seen[point])
