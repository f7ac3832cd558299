"""Find the native library: in the package, in the user's cache, or made now by a C compiler.

Only the standard library is imported here: the build of a wheel runs this file by itself.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
PREBUILT = Path(__file__).parent / "lib" / "qdllm.so"
COMMON = ("-std=c11", "-O3", "-fPIC", "-fvisibility=default", "-fno-math-errno")
Units = dict[str, tuple[str, ...]]
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni", *AVX2,
    "-mprefer-vector-width=512",
)  # fmt: skip
FUSED = "-ffp-contract=fast"  # a product and a sum are one instruction
AMX = (*AVX512, "-mavx512fp16", "-mamx-tile", "-mamx-bf16")
UNITS: dict[str, Units] = {
    "x86_64": {
        "avx2": AVX2, "avx512": AVX512, "amx": AMX,
        "grouped_avx2": (*AVX2, FUSED), "grouped_avx512": (*AVX512, FUSED),
    },
    "aarch64": {"neon": ()},
}  # fmt: skip
"""Flags of each unit, by machine; ``lacks()`` of a unit asks the processor for every one."""
NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}
TIMEOUT = 600  # seconds a compiler may take: some on a machine at rest


class CompileError(Exception):
    """There is no library, for the reason that it tells."""


def machine() -> str:
    """Name the instruction set of this machine as compilers do."""
    return NAMES.get(platform.machine(), platform.machine())


def find() -> Path:
    """Return a library for this machine: the prebuilt one, or `made`.

    Raises:
        CompileError: No library, and no compiler that could make one.
    """
    return PREBUILT if PREBUILT.is_file() else made()


def made() -> Path:
    """Return the library of the user's cache; make it where there is none yet.

    Raises:
        CompileError: No compiler, or one that fails.
    """
    compiler = find_compiler()
    path = cache_folder() / f"qdllm-{key(compiler)}.so"
    if path.parent.is_dir():
        refuse_strangers(path.parent)
    if not _is_what_was_made(path):
        build(path, compiler)
        path.chmod(0o700)
        _note(path)
    for used in (path.parent, path):
        refuse_strangers(used)
    return path


def refuse_strangers(path: Path) -> None:
    """Refuse a file or folder that somebody else could have put there: it is about to be run.

    Raises:
        CompileError: It is not ours, or others may write to it, or it is a link.
    """
    if not hasattr(os, "getuid"):
        return
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        raise CompileError(f"{path} is a link. Remove it, or name a folder: QUANT_DLLM_CACHE")
    if facts.st_uid != os.getuid():
        raise CompileError(f"{path} is another user's. Name a folder: QUANT_DLLM_CACHE")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CompileError(f"{path} can be changed by others. Close it: chmod go-w {path}")


def _is_what_was_made(path: Path) -> bool:
    """Tell whether a library is there and has the checksum that was noted when it was made."""
    try:
        return _checksum_of(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False


def _note(path: Path) -> None:
    _checksum_of(path).write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def _checksum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def cache_folder() -> Path:
    """Return the folder of libraries that were made on this machine."""
    given = os.environ.get("QUANT_DLLM_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(home) / "quant-dllm"


def find_compiler() -> str:
    """Return the path of a C compiler.

    Raises:
        CompileError: There is none.
    """
    wanted = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise CompileError(f"no C compiler is installed ({', '.join(wanted)} not found)")


def key(compiler: str) -> str:
    """Hash what a library depends on: sources, compiler, flags and machine."""
    told = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT)
    digest = hashlib.sha256(told.stdout)
    digest.update(repr((COMMON, UNITS, machine(), sys.platform)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def build(path: Path, compiler: str, extra: Sequence[str] = (), units: Units | None = None) -> None:
    """Compile the library and give it its name when it is whole.

    Args:
        path: The library to make.
        compiler: A C compiler that takes GCC's arguments.
        extra: More flags for every step, such as sanitizers.
        units: Flags of each unit, if not those of this machine.

    Raises:
        CompileError: The compiler failed, or the folder cannot be written.
    """
    units = UNITS.get(machine(), {}) if units is None else units
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            *sparing, last = attempts(units, extra)
            for flags, some in sparing:
                try:
                    run(commands(made, compiler, flags, some))
                    break
                except CompileError:
                    continue
            else:
                run(commands(made, compiler, *last))
            made.replace(path)
    except OSError as error:
        raise CompileError(f"{path.parent} cannot be written: {error.strerror or error}") from None


def attempts(units: Units, extra: Sequence[str]) -> list[tuple[tuple[str, ...], Units]]:
    """List flags and units, the best first: old compilers lack AMX, some come without OpenMP."""
    less = {name: flags for name, flags in units.items() if name != "amx"}
    without = ("-DQD_NO_AMX", *extra)
    return [
        (("-fopenmp", *extra), units),
        (("-fopenmp", *without), less),
        (without, less),
    ]


def commands(path: Path, compiler: str, extra: Sequence[str], units: Units) -> list[list[str]]:
    """List the commands that compile the units beside ``path`` and link them."""
    flags = {"base": (), "layout": (), "generic": (), "grouped": (FUSED,), **units}
    objects = {unit: str(path.parent / f"{unit}.o") for unit in flags}
    compiling = [
        [compiler, *COMMON, *own, *extra, "-c", str(SOURCES / f"{unit}.c"), "-o", objects[unit]]
        for unit, own in flags.items()
    ]
    return [*compiling, [compiler, "-shared", *extra, *objects.values(), "-o", str(path), "-lm"]]


def run(commands: list[list[str]]) -> None:
    """Run compilers one after the other.

    Raises:
        CompileError: One failed, or took too long.
    """
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CompileError(f"{command[0]} took longer than {TIMEOUT} s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            first = next((line for line in said if "error" in line), said[0])
            raise CompileError(f"{command[0]} failed: {first}")
