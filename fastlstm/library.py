"""Where the C library lies, for programs in C, C++, Rust, Go and others: header, library, and what compilers want."""

from __future__ import annotations

from pathlib import Path

PREFIX = Path(__file__).parent / "clib"
NAME = "libfastlstm.so.1"


def get_include() -> str:
    """The folder of ``fastlstm.h`` and ``fastlstm.hpp``, for a compiler's option -I.

    Raises
    ------
    FileNotFoundError
        It is not in this installation; the message says why, and the cure.
    """
    return str(_there(PREFIX / "include" / "fastlstm.h").parent)


def get_library() -> str:
    """The C library's file, for a linker, `ctypes.CDLL` or dlopen; ``libfastlstm.a`` lies beside it.

    Raises
    ------
    FileNotFoundError
        It is not in this installation; the message says why, and the cure.
    """
    return str(_there(PREFIX / "lib" / NAME))


def cflags() -> str:
    """The options of a compiler: ``cc $(fastlstm info --cflags) -c program.c``."""
    return f"-I{_quoted(get_include())}"


def libs() -> str:
    """The options of a linker; the program finds the library where it lies now."""
    folder = _quoted(str(Path(get_library()).parent))
    return f"-L{folder} -Wl,-rpath,{folder} -lfastlstm"


def cmake_dir() -> str:
    """The folder of CMake's files: ``cmake -Dfastlstm_DIR=$(fastlstm info --cmake-dir)``."""
    return str(_there(PREFIX / "lib" / "cmake" / "fastlstm" / "fastlstmConfig.cmake").parent)


def _there(path: Path) -> Path:
    """The path, where there is a file; an error with the reason where there is none."""
    if path.is_file():
        return path
    note = PREFIX / "not_built.txt"
    why = note.read_text(encoding="utf-8").strip() if note.exists() else f"there is no {path}"
    raise FileNotFoundError(
        f"the C library is not in this installation of fastlstm ({why}). To get it: install a C compiler and binutils, "
        "then pip install --force-reinstall fastlstm"
    )


def _quoted(path: str) -> str:
    """A path as a shell and pkg-config take it."""
    return "".join(f"\\{c}" if c in " \t\\'\"$&();<>|`*?[]#~" else c for c in path)
