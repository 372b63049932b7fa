"""The instruction sets in the built extension, by a disassembler, and the chosen one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest

from fastlstm._backends import module

c = module("c")
ISAS = c.isas()

# A fused multiply-add on whole registers of each instruction set; scalar ones have none.
FUSED = {
    "avx512": re.compile(r"vfn?madd\d*ps .*%zmm"),
    "avx2": re.compile(r"vfn?madd\d*ps .*%ymm"),
    "neon": re.compile(r"fmla\s+v\d+\.4s"),
}


def disassembler(*arguments: str) -> list[str]:
    command = ["objdump", *arguments, sys.modules["fastlstm._fastlstm_c"].__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def code() -> dict[str, list[str]]:
    """The instructions of each isa_<name>.c, by name.

    Functions have the same names in all of them, since all include kernels.h. The symbol table lists a file's symbols
    after the file's name, so it has the addresses of each file's functions.
    """
    if not ISAS:
        pytest.skip(f"backend c: {c.unusable()}")
    if not shutil.which("objdump"):
        pytest.skip("there is no objdump here (Debian package binutils)")
    file, owner = "", {}
    for line in disassembler("--syms"):
        if found := re.search(r" df \*ABS\*\s+0+\s*(\S*)", line):
            file = found[1]
        elif found := re.match(r"([0-9a-f]+) l +F \.text", line):
            owner[int(found[1], 16)] = file
    if "isa.c" not in owner.values():
        pytest.skip("the extension was stripped of its symbols")
    result, file = defaultdict(list), ""
    for line in disassembler("--disassemble", "--no-show-raw-insn"):
        if found := re.match(r"([0-9a-f]+) <.*>:$", line):
            file = owner.get(int(found[1], 16), "")
        elif found := re.match(r"isa_(\w+)\.c", file):
            result[found[1]].append(line)
    return result


@pytest.mark.parametrize("isa", FUSED)
def test_fused_multiply_adds_on_whole_registers(isa: str, code: dict[str, list[str]]) -> None:
    """Each instruction set's functions have many of them: every tile is a loop of multiply-adds."""
    if isa not in ISAS:
        pytest.skip(f"{isa} is not compiled in on this kind of processor")
    assert sum(bool(FUSED[isa].search(line)) for line in code[isa]) > 300


def innermost_loops(lines: list[str]) -> Iterator[list[str]]:
    """Stretches from the target of a jump back to that jump, without a jump or call between."""
    at = {found[1]: i for i, line in enumerate(lines) if (found := re.match(r"\s*([0-9a-f]+):", line))}
    leaves = [i for i, line in enumerate(lines) if re.search(r"\t(j\w+|call\w*|ret\w*)\b", line)]
    for before, i in zip([-1, *leaves], leaves, strict=False):
        target = at.get(found[1], -1) if (found := re.search(r"\tj\w+\s+([0-9a-f]+) ", lines[i])) else -1
        if before < target < i:
            yield lines[target : i + 1]


def product_loops(isa: str, code: dict[str, list[str]]) -> list[list[str]]:
    """The loops of an instruction set with several fused multiply-adds."""
    return [loop for loop in innermost_loops(code[isa]) if sum(bool(FUSED[isa].search(line)) for line in loop) >= 3]


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_sums_stay_in_registers(isa: str, code: dict[str, list[str]]) -> None:
    """No loop of multiply-adds keeps a sum on the stack, where each addition would wait for a store and a load.

    GCC did so for a sum that outlived a call in an epilogue: a GRU of 64 units took 55 us instead of 29.
    """
    if isa not in ISAS:
        pytest.skip(f"{isa} is not compiled in on this kind of processor")
    if not c.ffi.string(c.lib.fl_compiler()).startswith(b"GCC"):
        pytest.skip("other compilers give out registers in their own way")
    products = product_loops(isa, code)
    assert len(products) > 50
    kept = re.compile(r"vmov\w+\s+%[zy]mm\d+,-?(0x[0-9a-f]+)?\(%r[bs]p\)")
    assert not ["\n".join(loop) for loop in products if any(kept.search(line) for line in loop)]


def test_no_file_uses_a_larger_instruction_set_than_its_own(code: dict[str, list[str]]) -> None:
    """A processor with the smaller instruction set only would stop at an unknown instruction."""
    for isa, forbidden in {"avx2": "%zmm|%k[1-7]", "scalar": "%zmm|%ymm|vf[n]?m"}.items():
        assert not [line for line in code[isa] if re.search(forbidden, line)]


def test_avx2_has_dot_products_in_the_encoding_of_avx_vnni(code: dict[str, list[str]]) -> None:
    """The other encoding is AVX-512's, which a processor with AVX-VNNI need not have."""
    if "avx2" not in ISAS:
        pytest.skip("avx2 is not compiled in on this kind of processor")
    found = [line for line in code["avx2"] if re.search(r"\bvpdp(busd|wssd)\b", line)]
    assert found and all("{vex}" in line for line in found)


def test_the_best_usable_one_is_chosen() -> None:
    """In a process of its own without FASTLSTM_ISA."""
    if not ISAS:
        pytest.skip(f"backend c: {c.unusable()}")
    assert [*ISAS] == [name for name in ("avx512", "avx2", "neon", "scalar") if name in ISAS]
    done = subprocess.run(
        [sys.executable, "-c", "from fastlstm._backends import module; print(module('c').active_isa())"],
        env={name: value for name, value in os.environ.items() if name != "FASTLSTM_ISA"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == next(name for name, why in ISAS.items() if why is None)


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_a_weight_is_loaded_once_for_all_rows(isa: str, code: dict[str, list[str]]) -> None:
    """No loop of multiply-adds reads the same vector from memory twice, as GCC 12 does for tiles of 2 and 3 rows.

    Zen 4 loads one register of AVX-512 a cycle, as many as it multiplies: a step of 3 rows at H=256 took 38 us, not 32.
    """
    if isa not in ISAS:
        pytest.skip(f"{isa} is not compiled in on this kind of processor")
    twice = []
    for loop in product_loops(isa, code):
        read = [found[1] for line in loop if (found := re.search(r"vfn?madd\d*ps\s+(\S*\(%\w+\)),", line))]
        if len(read) > len(set(read)):
            twice.append("\n".join(loop))
    assert not twice
