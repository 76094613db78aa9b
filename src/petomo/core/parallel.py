"""Several processes of one run: what each takes, and how they put together what they found.

`torchrun` (or any launcher that sets ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``) starts
the processes, `assembled` makes them a team. Every method of a `Team` but the first three properties has to
be called by all its processes in the same order. A team of one does nothing of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from petomo.core.errors import UserError

#: One process may work alone for as long as this while the others wait.
PATIENCE = timedelta(days=30)

_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Team:
    """One process among those of a run.

    Parameters
    ----------
    rank : int
        Which one this is; 0 writes the files.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """Part of ``count`` things in a row for this process; none is empty if there are enough."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def turns(self, count: int) -> range:
        """Which of ``count`` things this process takes where they are dealt out one by one."""
        return range(self.rank, count, self.size)

    def portions(self, counts: Sequence[int]) -> Iterator[tuple[int, range]]:
        """Which of ``counts[i]`` things of every kind ``i`` this process takes.

        All of most kinds, so that what is to be done for a kind is done once, and its share of the last ones,
        so that all processes have equally much to do.
        """
        whole = len(counts) // self.size * self.size
        for kind in self.turns(whole):
            yield kind, range(counts[kind])
        for kind in range(whole, len(counts)):
            if part := range(counts[kind])[self.share(counts[kind])]:
                yield kind, part

    def each(self, count: int, work: Callable[[int], Any]) -> list:
        """``[work(i) for i in range(count)]``, each done by one process."""
        out: list[Any] = [None] * count
        for rank, part in enumerate(self.gather([work(i) for i in self.turns(count)])):
            out[rank :: self.size] = part
        return out

    def sum_(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over the team, in place and in one message."""
        if self.size == 1 or not tensors:
            return
        parts = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
        widest = torch.promote_types(torch.float32, max((p.dtype for p in parts), key=lambda d: d.itemsize))
        message = torch.cat([part.reshape(-1).to(widest) for part in parts])
        with _others_there():
            dist.all_reduce(message)
        for part, total in zip(parts, message.split([p.numel() for p in parts]), strict=True):
            part.copy_(total.view(part.shape))

    def level_(self, *tensors: Tensor) -> None:
        """Replace tensors by those of the first process, in place."""
        for tensor in tensors if self.size > 1 else ():
            with _others_there():
                dist.broadcast(torch.view_as_real(tensor) if tensor.is_complex() else tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is up in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        self.sum_(flags)
        return bool(flags)

    def from_main(self, value: Any = None) -> Any:
        """What the first process says; the others wait for it."""
        if self.size == 1:
            return value
        said = [value]
        with _others_there():
            dist.broadcast_object_list(said, 0)
        return said[0]

    def wait_for_main(self) -> None:
        """Go on once the first process has come here too."""
        self.from_main()

    def gather(self, value: Any) -> list:
        """What every process says, in order, tensors on the processor."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        with _others_there():
            dist.all_gather_object(said, _on_cpu(value))
        return said

    def slab(self, whole: Tensor, dim: int) -> Tensor:
        """View of this process' part along ``dim``; the gradient of the rest is zero."""
        if self.size == 1:
            return whole
        part = self.share(whole.shape[dim])
        return _Slab.apply(whole, dim, part.start, part.stop - part.start)  # pyright: ignore

    def complete_(self, whole: Tensor, dim: int) -> None:
        """Replace the parts along ``dim`` that other processes keep by theirs, in place."""
        if self.size > 1:
            whole.copy_(_concatenate(self, self.slab(whole, dim), whole.shape[dim], dim))

    def exchange(self, slab: Tensor, count: int, have: int, want: int) -> Tensor:
        """From parts along ``have`` (of ``count`` in all) to parts along ``want``; the gradient goes back."""
        return slab if self.size == 1 else _Exchange.apply(slab, self, count, have, want)  # pyright: ignore

    def join(self, slab: Tensor, count: int, dim: int) -> Tensor:
        """The whole, ``count`` long along ``dim``, from all parts; its gradients are summed over the team."""
        return slab if self.size == 1 else _Join.apply(slab, self, count, dim)  # pyright: ignore


ALONE = Team()


class _Slab(torch.autograd.Function):
    """What `Tensor.narrow` does, with a gradient that lies in memory as the whole does."""

    @staticmethod
    def forward(ctx, whole, dim, start, length):
        ctx.args = (whole, dim, start, length)
        return whole.narrow(dim, start, length)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        whole, *part = ctx.args
        out = torch.zeros_like(whole)
        out.narrow(*part).copy_(gradient)
        return out, None, None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slab, team, count, have, want):
        ctx.args = (team, slab.shape[want], want, have)
        return _transpose(team, slab, count, have, want)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        team, count, have, want = ctx.args
        return _transpose(team, gradient, count, have, want), None, None, None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slab, team, count, dim):
        ctx.team, ctx.dim = team, dim
        return _concatenate(team, slab, count, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        # everybody's gradient of this process' part, each after the other
        pieces = _transpose(ctx.team, gradient.unsqueeze(0), ctx.team.size, 0, ctx.dim + 1)
        return pieces.sum(0), None, None, None


def _lengths(team: Team, count: int) -> list[int]:
    return [part.stop - part.start for part in (team.share(count, rank) for rank in range(team.size))]


def _concatenate(team: Team, slab: Tensor, count: int, dim: int) -> Tensor:
    """All slabs in a row along ``dim``."""
    # parts along the first axis are contiguous, and need no copies of their own
    whole = slab.new_empty([count, *(n for d, n in enumerate(slab.shape) if d != dim)])
    parts = whole.split(_lengths(team, count))
    parts[team.rank].copy_(slab.movedim(dim, 0))
    for rank, part in enumerate(parts):
        with _others_there():
            dist.broadcast(part, rank)
    return whole.movedim(0, dim)


def _transpose(team: Team, slab: Tensor, count: int, have: int, want: int) -> Tensor:
    """From slabs along ``have``, ``count`` long in all, to slabs along ``want``."""
    pieces = slab.split(_lengths(team, slab.shape[want]), want)
    shape = list(pieces[team.rank].shape)
    shape[have] = count
    out = slab.new_empty(shape)
    blocks = out.split(_lengths(team, count), have)
    sent, received = slab.new_empty(slab.numel()), slab.new_empty(out.numel())
    sent_sizes, sizes = ([part.numel() for part in parts] for parts in (pieces, blocks))
    for buffer, piece in zip(sent.split(sent_sizes), pieces, strict=True):
        buffer.view(piece.shape).copy_(piece)
    with _others_there():
        dist.all_to_all_single(received, sent, sizes, sent_sizes)
    for block, buffer in zip(blocks, received.split(sizes), strict=True):
        block.copy_(buffer.view(block.shape))
    return out


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:150]
        raise UserError(
            f"another process of this run is gone ({reason}); look for its own message, or for one that "
            "was killed for want of memory"
        ) from error


def _on_cpu(value: Any) -> Any:
    """A nested state with its tensors on the processor: devices have other names in other processes."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return type(value)(map(_on_cpu, value))  # pyright: ignore[reportCallIssue]
    return value


@contextmanager
def assembled() -> Iterator[Team]:
    """All processes that the launcher started, as a team; `ALONE` without a launcher.

    An exception ends every process of the team, and only the first one to raise lets it through: the others
    exit in silence with its code (2 for a user's error, 130 for an interruption, 1 otherwise).
    """
    if not all(os.environ.get(name) for name in _LAUNCHER) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(local % torch.cuda.device_count())
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=10))))
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        team = Team(rank, size)
        team.wait_for_main()  # nobody leaves while others are still making connections
        yield team
    except BaseException as error:
        told = _tell(store, rank, error)
        if told is not None:
            # taking the library down beside broken connections may abort the process, with a code of its own
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(told)
        if backend == "gloo" and dist.is_initialized():
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _tell(store: dist.Store, rank: int, error: BaseException) -> int | None:
    """Code of the process that ended first, or None if it was this one."""
    kinds = {UserError: 2, OSError: 2, KeyboardInterrupt: 130}
    code = next((code for kind, code in kinds.items() if isinstance(error, kind)), 1)
    code = getattr(error, "exit_code", code)
    mine = f"{rank} {code}"
    try:
        if code == 130 and rank > 0:  # all stop together, so let the first process say it
            store.wait(["petomo_ended"], timedelta(seconds=10))
        first = store.compare_set("petomo_ended", "", mine).decode()
    except RuntimeError:  # whoever kept the store has ended before
        return code
    return None if first == mine else int(first.split()[1])
