"""The study of speed, written by one command: the pass, the rotation, and other packages.

    python benchmarks/speed.py --write --peer ptyrad=ENV/bin/python ...
    python benchmarks/speed.py --only rotation

with environments as `benchmarks/peers.py` describes them. Takes some ten minutes on one thread.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pass_vs_fft
import peers
import rotation
import torch

sys.path.insert(0, str(Path(__file__).parent / "studies"))

from study import PAGES, write_block


def pass_table(rounds: int) -> str:
    """The pass at three sizes, in Markdown."""
    head = "| window | bare FFTs | petomo | plain torch | naive autograd |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for size, patterns in pass_vs_fft.CASES:
        per = pass_vs_fft.measure(size, patterns, rounds)
        floor = per.pop("bare FFTs")
        cells = " | ".join(f"{ms:.2f} ({ms / floor:.2f} x)" for ms in per.values())
        lines.append(f"| {size} x {size} | {floor:.2f} | {cells} |")
    return "\n".join(lines)


def peer_table(pythons: dict[str, str], rounds: int) -> str:
    """An iteration of every program that has an environment."""
    best = peers.compare(pythons, max(1, rounds // 3))
    absent = [name for name in peers.PROGRAMS if name not in best]
    missing = f"Not measured here: {', '.join(absent)}." if absent else "All four could be measured."
    return f"{peers.table(best)}\n\n{missing}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/studies/speed.md")
    parser.add_argument("--only", choices=("passes", "rotation", "peers", "errors"), help="one table")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pythons = peers.parse_peers(args.peer, parser)
    tables: dict[str, Callable[[], str]] = {
        "passes": lambda: pass_table(args.rounds),
        "rotation": lambda: rotation.table(args.rounds, paper=True),
        "peers": lambda: peer_table(pythons, args.rounds),
        "errors": lambda: peers.equal_error(pythons),
    }
    for name, make in tables.items():
        if args.only in (None, name):
            text = f"{pass_vs_fft.machine()}.\n\n{make()}"
            print(f"\n{text}", flush=True)
            if args.write:
                write_block(PAGES / "speed.md", name, text)


if __name__ == "__main__":
    main()
