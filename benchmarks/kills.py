"""Kill a quantization at every kind of moment, go on with it, and compare the bytes.

    python benchmarks/kills.py --record            # in every phase, at 24 random times, all broken
    python benchmarks/kills.py --only phases --phase "final save"
    python benchmarks/kills.py --write             # the tables, of what is recorded

After every kill nothing may lie under the output's name but the whole checkpoint; a second run then
goes on, and the weights and config.json must be those of a run that was never stopped, byte for
byte. Random times are uniform over a run's duration; a run that had ended by then does not count.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import records
from broken import hostile
from moments import PHASES, count, kill_after, kill_in
from runs import DONE, digests, forked, go_on, make_model, remove, run, wait, warm_up

RESULTS, LONG = records.RESULTS / "kills.jsonl", records.RESULTS / "kills.md"
PAGE = records.ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- kills: made by benchmarks/kills.py --write -->", "<!-- end of kills -->"
CLOCK, HOSTILE = "a random time", "hostile"
AGAIN = 4  # kills after which a whole run is timed again: on a busy machine no two take the same
Record = dict[str, Any]


def in_phases(model: Path, folder: Path, args: argparse.Namespace) -> Iterator[Record]:
    """Kill runs at the first, the last and random calls of every phase."""
    counts, dice = count(model, folder / "counted"), random.Random(args.seed)
    wanted, out = digests(folder / "unbroken"), folder / "out"
    for phase in args.phase or PHASES:
        calls = counts[phase]
        chosen = {calls - 1, 0} if args.per_phase > 1 else {calls - 1}
        rest = [n for n in range(calls) if n not in chosen]
        chosen |= set(dice.sample(rest, min(len(rest), max(0, args.per_phase - len(chosen)))))
        for number in sorted(chosen):
            assert kill_in(phase, number, model, out) == -signal.SIGKILL
            moment = f"{phase}, call {number + 1} of {calls}"
            yield {"phase": phase, "moment": moment} | go_on(model, out, wanted)
            remove(out)


def by_clock(model: Path, folder: Path, args: argparse.Namespace) -> Iterator[Record]:
    """Kill runs at random times, whatever they are at."""
    dice, wanted, out, hits = (
        random.Random(args.seed),
        digests(folder / "unbroken"),
        folder / "out",
        0,
    )
    took = 0.0
    while hits < args.clock:
        if hits % AGAIN == 0:
            took = duration(model, out)
        after = dice.uniform(0, took)
        if kill_after(after, model, out) != DONE:
            hits += 1
            moment = f"after {after:.2f} s of {took:.2f}"
            yield {"phase": CLOCK, "moment": moment} | go_on(model, out, wanted)
        remove(out)


def broken(model: Path, folder: Path, args: argparse.Namespace) -> Iterator[Record]:
    """Break all that can be broken."""
    return ({"phase": HOSTILE} | record for record in hostile(model, folder))


KINDS = {"phases": in_phases, "clock": by_clock, "hostile": broken}


def duration(model: Path, out: Path) -> float:
    """Time a run that nobody kills."""
    began = time.monotonic()
    assert wait(forked(lambda: run(model, out))) == DONE
    remove(out)
    return time.monotonic() - began


def short(found: list[Record]) -> str:
    """Format records as Markdown, the kills of one phase in one row."""
    phases: dict[str, list[Record]] = {}
    for r in found:
        phases.setdefault(r["phase"], []).append(r)
    others = phases.pop(HOSTILE, [])
    rows = ["| killed at | kills | found | resumed | bytes equal |", "|---|--:|---|---|---|"]
    for phase, some in phases.items():
        resumed = ", ".join(dict.fromkeys(r["resumed"] for r in some))
        equal = sum(r["equal"] for r in some)
        told = "yes" if equal == len(some) else f"**{equal} of {len(some)}**"
        rows.append(f"| {phase} | {len(some)} | {reach(some)} | {resumed} | {told} |")
    rows += [
        "",
        "| broken | found | the run says, or how it went on | right |",
        "|---|---|---|---|",
    ]
    for r in others:
        said = r.get("refused") or r["resumed"]
        then = f"; then {r['resumed']}" if "refused" in r else ""
        rows.append(f"| {r['moment']} | {r['found']} | {sentence(said)}{then} | {verdict(r)} |")
    return "\n".join(rows)


def reach(found: list[Record]) -> str:
    """Say what the kills of one phase left: the least and the most."""
    left = sorted({r["found"] for r in found}, key=progress)
    return left[0] if len(left) == 1 else f"{left[0]} … {left[-1]}"


def progress(found: str) -> tuple[int, str]:
    """Order what a kill left by how far the run had come."""
    return (["nothing", *"0123456789", "the checkpoint"].index(found.split(" blocks")[0]), found)


def sentence(said: str) -> str:
    """Cut a reason at its first sentence."""
    return said.partition(". ")[0]


def verdict(record: Record) -> str:
    return {True: "yes", False: "**no**", None: "-"}[record["equal"]]


def long(found: list[Record]) -> str:
    """Format records as Markdown, one row each."""
    rows = ["| moment | found | resumed | bytes equal |", "|---|---|---|---|"]
    for r in found:
        said = "; then ".join(filter(None, (r.get("refused"), r["resumed"])))
        rows.append(f"| {r['moment']} | {r['found']} | {said} | {verdict(r)} |")
    return "\n".join(rows) + "\n"


def write() -> None:
    """Write both tables of what is recorded."""
    found = records.read(RESULTS)
    first, failed = found[0], sum(r["equal"] is False for r in found)
    about = (
        f"{len(found)} moments, {failed} failed (commit {first['commit']}, {first['date']}, torch "
        f"{first['torch']}); all of them: `benchmarks/results/{LONG.name}`."
    )
    LONG.write_text(f"Made by `python benchmarks/kills.py --write`.\n\n{long(found)}")
    records.write_between(PAGE, BEGIN, END, f"{short(found)}\n\n{about}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and resume.")
    parser.add_argument("--per-phase", type=int, default=2, help="kills in each phase")
    parser.add_argument("--phase", action="append", choices=PHASES, help="only these")
    parser.add_argument("--clock", type=int, default=24, help="kills at random times")
    parser.add_argument("--only", choices=KINDS, help="one kind of moments; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of moments")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if not given")
    parser.add_argument(
        "--record", action="store_true", help=f"into {RESULTS.name}, over older ones"
    )
    parser.add_argument("--write", action="store_true", help="write the tables, run nothing")
    args = parser.parse_args()
    if args.write:
        write()
        return 0
    torch.set_num_threads(1)
    os.environ.setdefault("QUANT_DLLM_KERNEL", "reference")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork keeps no threads
    found = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = make_model(folder / "model")
        warm_up(model)
        run(model, folder / "unbroken")
        kinds = [KINDS[args.only]] if args.only else KINDS.values()
        work = chain.from_iterable(kind(model, folder, args) for kind in kinds)
        for record in work:
            found.append({"what": "kill"} | record | records.where())
            print(json.dumps(record), file=sys.stderr, flush=True)
    if args.record:
        made = {r["phase"] for r in found}
        kept = [r for r in records.read(RESULTS) if r["phase"] not in made]
        all_of_them = sorted(
            kept + found, key=lambda r: [*PHASES, CLOCK, HOSTILE].index(r["phase"])
        )
        RESULTS.write_text("".join(json.dumps(record) + "\n" for record in all_of_them))
    print(short(found))
    failed = sum(record["equal"] is False for record in found)
    print(f"\n{len(found)} moments, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
