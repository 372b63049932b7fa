"""Builds the C library and puts it, its header and what finds it into the folders of a prefix.

``python csrc/library/build.py PREFIX`` needs Python, a C compiler and binutils, and nothing installed in Python.
setup.py calls `install` for the tree in the package, ``fastlstm/clib``, which has the same folders:

    include/                     fastlstm.h, fastlstm.hpp
    lib/libfastlstm.so.1         the library
    lib/libfastlstm.so           a text for the linker, which names it: a wheel holds no links
    lib/libfastlstm.a            the same as an archive
    lib/pkgconfig/fastlstm.pc
    lib/cmake/fastlstm/          for find_package(fastlstm)

Compilers: CC and CFLAGS of the environment, else the compiler that built Python, else cc.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parent  # csrc
ABI = 1  # FASTLSTM_ABI in fastlstm.h, and the number in the library's name
# Files of csrc that the library leaves out: training, measurement, and what only Python needs.
LEFT_OUT = ("embedding", "lock", "memory", "optimisers", "peak", "stream")


class BuildError(Exception):
    """The library cannot be built here; the message says why."""


def problem() -> str | None:
    """Why the library cannot be built on this system; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"it is built for Linux only so far, and this is {sys.platform}"
    missing = [tool for tool in ("ld", "objcopy", "ar") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} of binutils cannot be found" if missing else None


def version() -> str:
    """The package's version."""
    text = (SOURCES.parent / "fastlstm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found.group(1)


def flags() -> list[str]:
    """The extension's flags, but those of a library whose size counts: -O2 gives the same bits in less code."""
    given: list[str] = runpy.run_path(str(SOURCES / "flags.py"))["FLAGS"]
    own = ["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections", "-Wno-unused-function"]
    folders = [f"-I{SOURCES}", f"-I{HERE}"]
    names = ["-DFL_INFERENCE_ONLY=1", f'-DFL_VERSION="{version()}"']
    # No link-time optimisation: objcopy hides names in machine code, which object files do not hold with it.
    return [*given, *own, *folders, *names, *shlex.split(os.environ.get("CFLAGS", "")), "-fno-lto"]


def compiler() -> list[str]:
    """The command of the C compiler."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def sources() -> list[Path]:
    """The library's C files."""
    shared = [path for path in sorted(SOURCES.glob("*.c")) if path.stem not in LEFT_OUT]
    return shared + sorted(HERE.glob("*.c"))


def run(command: list[str]) -> None:
    """Run a command.

    Raises
    ------
    BuildError
        It cannot be run, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise BuildError(f"{shlex.join(command[:1])} failed: {said}")


def compile_all(work: Path) -> list[Path]:
    """The object files, made anew where a source, a header or the command has changed."""
    command = [*compiler(), *flags()]
    note = work / "command.txt"
    same = note.exists() and note.read_text() == shlex.join(command)
    newest = max(path.stat().st_mtime_ns for path in (*SOURCES.rglob("*.h"), SOURCES / "flags.py"))

    def one(source: Path) -> Path:
        made = work / f"{'library-' if source.parent == HERE else ''}{source.stem}.o"
        fresh = same and made.exists() and made.stat().st_mtime_ns > max(newest, source.stat().st_mtime_ns)
        if not fresh:
            new = made.with_suffix(".new.o")
            run([*command, "-c", str(source), "-o", str(new)])
            os.replace(new, made)  # a build that is broken off leaves no half of an object
        return made

    if not same:
        note.unlink(missing_ok=True)
    largest_first = sorted(sources(), key=lambda path: not path.stem.startswith("isa_"))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = list(pool.map(one, largest_first))
    note.write_text(shlex.join(command))
    return made


def link(objects: list[Path], work: Path, lib: Path) -> None:
    """The shared library and the archive. Only fastlstm_* is visible in either."""
    name = f"libfastlstm.so.{ABI}"
    paths = [str(path) for path in objects]
    wanted = [f"-Wl,-soname,{name}", "-Wl,--gc-sections", "-Wl,-z,defs,-z,relro,-z,now", "-Wl,--as-needed", "-Wl,-s"]
    run([*compiler(), "-shared", *wanted, "-o", str(work / name), *paths, "-lm", "-pthread"])
    whole = work / "fastlstm-whole.o"
    # The archive holds libgcc's function that detects the processor's features: not every program links libgcc.
    run([*compiler(), "-r", "-nostdlib", "-o", str(whole), *paths, "-lgcc"])
    run(["objcopy", "--localize-hidden", "--strip-unneeded", str(whole)])
    archive = work / "libfastlstm.a"
    archive.unlink(missing_ok=True)
    run(["ar", "rcs", str(archive), str(whole)])
    lib.mkdir(parents=True, exist_ok=True)
    replace(lib / name, (work / name).read_bytes(), 0o755)
    replace(lib / archive.name, archive.read_bytes())
    replace(lib / "libfastlstm.so", f"/* GNU ld script */\nINPUT(-l:{name})\n".encode())


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file in place of an older one, which programs that have it loaded keep."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(content)
    new.chmod(mode)
    os.replace(new, path)


def headers(include: Path) -> None:
    """The public headers."""
    include.mkdir(parents=True, exist_ok=True)
    for name in ("fastlstm.h", "fastlstm.hpp"):
        if (HERE / name).exists():
            replace(include / name, (HERE / name).read_bytes())


def finders(lib: Path) -> None:
    """The files of pkg-config and CMake, filled in. They find their folders from where they lie."""
    for template, folder in (
        ("fastlstm.pc", lib / "pkgconfig"),
        ("fastlstmConfig.cmake", lib / "cmake" / "fastlstm"),
        ("fastlstmConfigVersion.cmake", lib / "cmake" / "fastlstm"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        text = (HERE / "finders" / f"{template}.in").read_text(encoding="utf-8")
        replace(folder / template, text.replace("@VERSION@", version()).replace("@ABI@", str(ABI)).encode())


def install(prefix: Path, work: Path) -> None:
    """Build the library, with object files in `work`, and put everything below `prefix`.

    Raises
    ------
    BuildError
        It cannot be built; the headers are there nevertheless.
    """
    headers(prefix / "include")
    why = problem()
    if why is not None:
        raise BuildError(why)
    import fcntl  # not on Windows, where the library is not built

    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:  # builds for several environments share the objects
        fcntl.flock(lock, fcntl.LOCK_EX)
        link(compile_all(work), work, prefix / "lib")
    finders(prefix / "lib")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the prefix, such as /usr/local")
    try:
        install(Path(sys.argv[1]), Path("build") / "library")
    except (BuildError, OSError) as error:
        sys.exit(f"the C library could not be built: {error}")
    print(f"fastlstm's C library is in {sys.argv[1]}")
