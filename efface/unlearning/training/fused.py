"""Norm, sum and AdamW step of masked gradients, each in one pass that reads the mask's bits.

``torch.compile`` makes them, in C++ for a processor and in Triton for a GPU. What it makes takes tensors of
any size, a few at a time because every call costs, and is made once per process, on tensors of no meaning.
Weights stand in rows of 32, so that a row's mask is one number of 32 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROW = 32
"""Weights to a number of the mask. A tensor whose size is no multiple of it cannot be worked on here."""

TOGETHER = 16
"""Tensors worked on in one call: a call costs as much as a hundred thousand weights, and compiling for more
tensors takes longer."""

_MANY = 4096
"""Rows from which what is compiled shares the work among threads."""

_Compiled = Callable[..., list[Tensor]]


def fits(tensor: Tensor) -> bool:
    """Whether a parameter can be worked on: on a processor or CUDA, float32, in one piece, of whole rows."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type in ("cpu", "cuda")
    single = plain and tensor.dtype == torch.float32 and tensor.is_contiguous()
    return single and tensor.numel() > 0 and tensor.numel() % ROW == 0


def words(bits: Tensor) -> Tensor:
    """Packed bits as one number per row, int32; see ``efface.masks.pack``."""
    return (bits if bits.data_ptr() % 4 == 0 and bits.storage_offset() % 4 == 0 else bits.clone()).view(
        torch.int32
    )


class Masked:
    """What is done to gradients of tensors that ``fits`` accepts.

    Args:
        device: where they are.
        hold: whether a step leaves the weights outside the mask as they are. Otherwise momentum and decay
            move them.

    Raises:
        RuntimeError: if nothing can be compiled here, for lack of a compiler for instance; also ``OSError``.
    """

    def __init__(self, device: torch.device, *, hold: bool):
        self._device, self._step = device, _held_steps if hold else _steps
        self._rows: dict[int, tuple[tuple[int, ...] | None, tuple[Tensor, ...]]] = {}
        # What is sure to be needed where steps hold weights, and where they do not is likely to be.
        if hold:
            _compiled(self._step, device, 4, numbers=True)
        else:
            _compiled(_sums, device, 2)

    @torch.no_grad()
    def norm(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Norm of masked gradients together."""
        run = _compiled(_squares, self._device, 1)
        squares = [
            square
            for group in _groups([[_rows(g) for g in gradients], masks], self._device)
            for square in run(*group)
        ]
        return torch.stack([s.sum() for s in squares[: len(gradients)]]).sum().sqrt()

    @torch.no_grad()
    def add(
        self, gradients: Mapping[str, Tensor], others: dict[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        """Masked gradients plus others of the same names, in the place of the first; the others are let go
        of as they are added."""
        run = _compiled(_sums, self._device, 2)
        names = list(others)
        for start in range(0, len(names), TOGETHER):
            part = names[start : start + TOGETHER]
            columns = [
                [_rows(gradients[n]) for n in part],
                [_rows(others.pop(n)) for n in part],
                [masks[n] for n in part],
            ]
            for group in _groups(columns, self._device):
                run(*group)

    @torch.no_grad()
    def step(
        self,
        parameters: Sequence[nn.Parameter],
        states: Sequence[Mapping[str, Tensor]],
        masks: Sequence[Tensor],
        numbers: Tensor,
    ) -> None:
        """AdamW steps of parameters, with the gradients they hold.

        Args:
            parameters: moved.
            states: their moments ``exp_avg`` and ``exp_avg_sq``, moved too.
            masks: their masks.
            numbers: for every parameter what ``numbers_of`` gives.
        """
        gradients = [_rows(p.grad) for p in parameters if p.grad is not None]
        stay = [self._same(p, state) for p, state in zip(parameters, states, strict=True)]
        weights, means, squares = zip(*stay, strict=True)
        columns = [weights, gradients, means, squares, masks]
        run = _compiled(self._step, self._device, 4, numbers=True)
        numbers = nn.functional.pad(numbers, (0, 0, 0, -len(numbers) % TOGETHER), value=1.0)
        for group, each in zip(_groups(columns, self._device), numbers.split(TOGETHER), strict=True):
            run(*group, each.data)

    def _same(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The rows of what stays from step to step: for a small tensor they take as long as the work."""
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        there = (parameter.data_ptr(), mean.data_ptr(), square.data_ptr())
        known, rows = self._rows.get(id(parameter), (None, ()))
        if known != there:
            rows = (_rows(parameter), _rows(mean), _rows(square))
            self._rows[id(parameter)] = there, rows
        return rows


def numbers_of(steps: Tensor, *, rate: float, betas: tuple[float, float], eps: float, decay: float) -> Tensor:
    """What an AdamW step multiplies with, a row for each of the step counts; worked out in float64."""
    one, two = (1 - beta ** steps.double() for beta in betas)
    every = torch.ones_like(one)
    return torch.stack(
        [
            every * (1 - rate * decay),
            rate / one,
            every * (1 - betas[0]),
            every * betas[1],
            every * (1 - betas[1]),
            two.rsqrt(),
            every * eps,
        ],
        dim=1,
    ).float()


_NUMBERS = 7


class MaskedAdamW(torch.optim.AdamW):
    """AdamW whose state is AdamW's own, and which masks gradients as it reads them.

    Args:
        parameters: what it moves.
        masked: does the work.
        due: masks of the gradients that are not masked yet, by the ``id`` of the parameter; looked at in
            every step. Tensors as keys would take longer than a small one's step.
        options: AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        masked: Masked,
        due: Mapping[int, Tensor],
        **options: Any,
    ):
        super().__init__(parameters, fused=True, **options)
        self._masked, self._due = masked, due

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step; gradients that were masked here stay as they came."""
        aside: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            here = [p for p in group["params"] if id(p) in self._due and p.grad is not None]
            if here:
                self._step(here, group)
            aside += [(p, p.grad) for p in here]
        for parameter, _ in aside:
            parameter.grad = None
        super().step(closure)
        for parameter, gradient in aside:
            parameter.grad = gradient

    @torch.no_grad()
    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        torch._foreach_add_([state["step"] for state in states], 1)
        numbers = numbers_of(
            torch.stack([state["step"] for state in states]),
            rate=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            decay=group["weight_decay"],
        )
        self._masked.step(parameters, states, [self._due[id(p)] for p in parameters], numbers)


def _rows(tensor: Tensor) -> Tensor:
    # Of a view the compiler would look at the whole as well, and compile anew for every shape it has.
    return tensor.view(-1, ROW).data


def _groups(columns: Sequence[Sequence[Tensor]], device: torch.device) -> Iterator[list[list[Tensor]]]:
    """Tensors, a few at a time; the last ones are filled up."""
    for start in range(0, len(columns[0]), TOGETHER):
        part = [list(column[start : start + TOGETHER]) for column in columns]
        missing = TOGETHER - len(part[0])
        if missing:
            filling = _made_up(device, len(columns) - 1, 2)
            part = [[*some, *more[:missing]] for some, more in zip(part, filling, strict=True)]
        yield part


@functools.cache
def _compiled(
    function: Callable[..., list[Tensor]], device: torch.device, tensors: int, *, numbers: bool = False
) -> _Compiled:
    """A function compiled for tensors of all sizes. All differ here: sizes that agree would have to agree
    ever after."""
    run = torch.compile(function, dynamic=True, fullgraph=True, options={"size_asserts": False})
    extra = [torch.ones(TOGETHER, _NUMBERS, device=device)] if numbers else []
    with torch.no_grad():
        run(*_made_up(device, tensors, _MANY), *extra)
    return run


def _made_up(device: torch.device, tensors: int, rows: int) -> list[list[Tensor]]:
    counts = range(rows, rows + TOGETHER)
    columns = [[torch.zeros(n, ROW, device=device) for n in counts] for _ in range(tensors)]
    return [*columns, [torch.zeros(n, dtype=torch.int32, device=device) for n in counts]]


def _mask(bits: Tensor) -> Tensor:
    places = torch.arange(ROW, dtype=torch.int32, device=bits.device)
    return (bits[:, None] >> places) & 1


def _squares(gradients: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    return [(g * _mask(w)).square().sum(dim=1) for g, w in zip(gradients, masks, strict=True)]


def _sums(gradients: list[Tensor], others: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    for gradient, other, bits in zip(gradients, others, masks, strict=True):
        gradient.copy_(gradient * _mask(bits) + other)
    return []


def _steps(*columns: Any) -> list[Tensor]:
    return _adamw(*columns, hold=False)


def _held_steps(*columns: Any) -> list[Tensor]:
    return _adamw(*columns, hold=True)


def _adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masks: list[Tensor],
    numbers: Tensor,
    *,
    hold: bool,
) -> list[Tensor]:
    columns = zip(parameters, gradients, means, squares, masks, numbers.unbind(), strict=True)
    for parameter, gradient, mean, square, bits, each in columns:
        shrunk, size, one, two, rest, root, eps = each.unbind()
        kept = _mask(bits)
        gradient = gradient * kept
        mean.copy_(mean + one * (gradient - mean))
        square.copy_(two * square + rest * gradient * gradient)
        moved = shrunk * parameter - size * mean / (square.sqrt() * root + eps)
        parameter.copy_(torch.where(kept != 0, moved, parameter) if hold else moved)
    return []
