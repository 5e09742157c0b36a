"""Evolution in place of gradients: a CMA-ES for each row of the parameters, one row a step, as BBTv2 trains its layers.

BBTv2: Towards a Gradient-Free Future with Large Language Models (Sun et al.), https://arxiv.org/abs/2205.11200, over
CMA-ES (Hansen and Ostermeier, https://doi.org/10.1162/106365601750190398) of the package ``cmaes``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmprefix.errors import InputError, require_one_of
from mmprefix.training.optimization.gradient_free import loss_of
from mmprefix.training.optimization.plain_values import array_value, plain_value


class _Row(NamedTuple):
    """Numbers (d,) of a parameter that one CMA-ES moves, and the step size that it begins with."""

    numbers: Tensor
    sigma: float


class RowEvolution(torch.optim.Optimizer):
    """Step: a generation of one row's CMA-ES, ``population`` losses of the batch; the rows take turns.

    Covariances are squares of a row: it is for few numbers, such as those of ``ProjectedPrefix``. Needs the package
    ``cmaes``.

    Args:
        params: parameters, or groups of them; the rows of the first dimension are searched apart.
        lr: step size of a row's search at its beginning (sigma). The search sets its own then, and no schedule has an
            effect. Published: 0.2.
        population: candidates of a generation. Published: 20.
        keep: a row is left at its "best" candidate of all generations, as published where every step sees the same few
            rows of data, or at the "mean" of its search, for batches whose losses cannot be compared.
        seed: of the candidates, with the number of the step.
    """

    reads_loss = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.2,
        *,
        population: int = 20,
        keep: Literal["best", "mean"] = "best",
        seed: int = 0,
    ) -> None:
        if not 0 < lr < float("inf"):
            raise InputError(f"RowEvolution.lr {lr}: give a number above 0")
        if population < 2:
            raise InputError(f"RowEvolution.population {population}: give a number from 2 on")
        require_one_of("RowEvolution.keep", keep, ("best", "mean"))
        super().__init__(params, {"lr": lr, "sigma": lr, "seed": seed, "steps": 0})
        self.population, self.keep = population, keep
        self.searches: dict[int, Any] = {}  # CMA-ES by row
        self.best: dict[int, tuple[float, Any]] = {}  # loss and numbers by row

    def _rows(self) -> list[_Row]:
        rows: list[_Row] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                table = parameter.detach().view(1, -1) if parameter.ndim < 2 else parameter.detach().flatten(1)
                rows += [_Row(row, group["sigma"]) for row in table.unbind()]
        return rows

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Try a generation of candidates of the next row, and leave the row as ``keep`` says → the lowest loss."""
        first, rows = self.param_groups[0], self._rows()
        number = int(first["steps"]) % len(rows)
        numbers = rows[number].numbers
        search = self._search(number, rows[number])
        search.reseed_rng((first["seed"] * 1_000_003 + first["steps"]) % 2**32)
        tried = list[tuple[Any, float]]()
        for _ in range(self.population):
            candidate = search.ask()
            numbers.copy_(torch.as_tensor(candidate))
            tried.append((candidate, loss_of(closure, "RowEvolution")))
        search.tell(tried)  # sorts them
        lowest = tried[0][1]
        if number not in self.best or lowest < self.best[number][0]:
            self.best[number] = lowest, tried[0][0]
        numbers.copy_(torch.as_tensor(search.mean if self.keep == "mean" else self.best[number][1]))
        for group in self.param_groups:
            group["steps"] += 1
        return lowest

    def _search(self, number: int, row: _Row) -> Any:
        """CMA-ES of a row, which begins at its numbers."""
        if number not in self.searches:
            try:
                cma = importlib.import_module("cmaes").CMA
            except ImportError as error:
                raise InputError("RowEvolution: needs the package cmaes; pip install cmaes") from error
            mean = row.numbers.double().cpu().numpy()
            self.searches[number] = cma(mean, row.sigma, population_size=self.population)
        return self.searches[number]

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers and tensors: no code is run to read it."""
        searches = {n: {k: plain_value(v) for k, v in one.__getstate__().items()} for n, one in self.searches.items()}
        best = {number: (loss, plain_value(numbers)) for number, (loss, numbers) in self.best.items()}
        return {**super().state_dict(), "searches": searches, "best": best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        rows = self._rows()
        self.searches = {}
        for number, saved in state_dict["searches"].items():
            values = {name: array_value(value) for name, value in saved.items()}
            self._search(number, rows[int(number)]).__setstate__(values)
        self.best = {number: (loss, array_value(numbers)) for number, (loss, numbers) in state_dict["best"].items()}
