"""The compiler flags of all C here: of the extension (build.py) and of the C library (library/build.py)."""

# No contraction: a fused multiply-add stands where the source says so and nowhere else, or bits would depend on the
# compiler. Functions begin with a cache line, or a change elsewhere moves their loops: 4 % of a call was seen.
# -fno-math-errno lets sqrt and the like be single instructions. No debug information, which Python's own flags ask
# for: it would be two fifths of the wheel.
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-falign-functions=64",
    "-g0",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
]
