"""Feed broken files to the readers, guided by coverage, and let nothing but clean errors out.

    pip install atheris
    python benchmarks/fuzz.py -runs=20000                    # one of the golden checkpoints
    python benchmarks/fuzz.py --plain 5000                   # random changes, without atheris
    python benchmarks/fuzz.py --record -runs=20000           # either, with what came of it recorded

An input is a number of changes to a whole checkpoint: bytes of the header of its weights, of its
index, of config.json. Loading it must give a model or a `QuantDLLMError` of one line, in little
memory; anything else ends the run with a traceback.
"""

import json
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

MOST_BYTES = 6 << 30  # address space: what allocates by a number in a file hits it
RESULTS = Path(__file__).resolve().parent / "results" / "fuzz.jsonl"
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
TELL_EVERY = 500  # files
CHECKPOINTS = ("v1-binary", "v1-uniform", "v1-compact")
FILES = ("model.safetensors", "config.json", "model.safetensors.index.json")


class Target:
    """Loads a changed checkpoint and counts what came of it."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, Counter()
        self.whole = {}
        for name in CHECKPOINTS:
            shutil.copytree(GOLDEN / name, folder / name)
            index = json.dumps({"weight_map": {"x": "model.safetensors"}}).encode()
            files = {file: folder / name / file for file in FILES}
            self.whole[name] = {
                file: path.read_bytes() if path.is_file() else index for file, path in files.items()
            }

    def __call__(self, data: bytes) -> None:
        """Take the bytes as changes: which checkpoint, which file, where, what."""
        from quant_dllm.errors import QuantDLLMError
        from quant_dllm.models.load import load

        if len(data) < 4:
            return
        name, file = CHECKPOINTS[data[0] % len(CHECKPOINTS)], FILES[data[1] % len(FILES)]
        whole, path = self.whole[name][file], self.folder / name / file
        path.write_bytes(changed(whole, data[2:]))
        try:
            load(self.folder / name)
            self.found["loaded"] += 1
        except QuantDLLMError as error:
            if len(str(error).splitlines()) != 1:
                raise AssertionError(f"more than one line: {error}") from error
            self.found[type(error).__name__] += 1
        finally:
            if file == FILES[2]:
                path.unlink()
            else:
                path.write_bytes(whole)


def changed(whole: bytes, data: bytes) -> bytes:
    """Apply changes of four bytes: where (two), what (flip, cut, insert, a size), and a byte."""
    (size,) = struct.unpack("<Q", whole[:8]) if len(whole) > 8 else (0,)
    reach = min(len(whole), 8 + size if size < len(whole) else len(whole))
    spoilt = bytearray(whole)
    for i in range(0, len(data) - 3, 4):
        at, kind, byte = int.from_bytes(data[i : i + 2]) % reach, data[i + 2] % 4, data[i + 3]
        if kind == 0 and at < len(spoilt):
            spoilt[at] ^= byte
        elif kind == 1:
            del spoilt[at + byte :]
        elif kind == 2:
            spoilt[at:at] = bytes([byte])
        else:
            spoilt[:8] = struct.pack("<Q", (1 << (byte % 64)) - 1 + at)
    return bytes(spoilt)


def plain(target: Target, runs: int) -> None:
    """Draw changes at random."""
    dice = random.Random(0)
    for _ in range(runs):
        target(dice.randbytes(2 + 4 * dice.randint(1, 4)))


def guided(target: Target) -> None:
    """Let atheris draw the changes; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["quant_dllm"]):
        ready()
    began = time.monotonic()

    def told(data: bytes) -> None:
        target(data)
        if sum(target.found.values()) % TELL_EVERY == 0:
            report(target, began)

    atheris.Setup(sys.argv, told)
    atheris.Fuzz()


def ready() -> None:
    """Import what loading wants, before memory is limited."""
    import quant_dllm.models.load
    import quant_dllm.weights.binary
    import quant_dllm.weights.uniform  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def report(target: Target, began: float) -> None:
    """Say what came of the files."""
    told = {
        "files": sum(target.found.values()),
        "outcomes": dict(target.found),
        "seconds": round(time.monotonic() - began, 1),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(told), flush=True)


def record(words: list[str]) -> int:
    """Fuzz in a process of its own, and record what it said last."""
    import records

    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    branches = re.findall(r"cov: (\d+)", done.stderr)
    told = json.loads(done.stdout.strip().splitlines()[-1]) | {
        "what": "fuzz",
        "by": "random changes" if "--plain" in words else "atheris",
        "branches": int(branches[-1]) if branches else None,
        "clean": done.returncode == 0,
    }
    with RESULTS.open("a") as file:
        print(json.dumps(records.append(file, told | records.where()), indent=1))
    sys.stderr.write(done.stderr[-2000:] if done.returncode else "")
    return done.returncode


def main() -> int:
    """Fuzz."""
    if "--record" in sys.argv:
        return record([word for word in sys.argv[1:] if word != "--record"])
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        if "--plain" not in sys.argv:
            guided(target)
            return 0
        ready()
        began = time.monotonic()
        plain(target, int(sys.argv[sys.argv.index("--plain") + 1]))
        report(target, began)
        return 0


if __name__ == "__main__":
    sys.exit(main())
