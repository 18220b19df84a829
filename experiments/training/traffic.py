"""Count a compiled program's memory traffic, kernels, cycles and collectives from its HLO text.

The instructions of the entry computation are counted: operands read once, results written once.
- Parameters, tuples, bitcasts and constants move nothing.
- On TPU an array with S(1) in its layout lives in VMEM and costs no traffic. `copy-start` moves
  whatever side of the copy is in HBM; its `copy-done` moves nothing.
- A fusion that only slices or gathers from an operand reads the slice, not the operand.
- Of a conditional only the branch taken is counted: for `jax.lax.cond` in these programs the first
  one. Collectives of the other branches are listed separately.
- Cycles are XLA's "estimated_cycles" for a TPU. Asynchronous copies overlap and have none.

Counts are the same for every compilation. Use them to rank designs; only a real machine decides.
"""

import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "sufc" for bits in (4, 8, 16, 32, 64, 128)
}
FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all",
    "copy-done", "all-reduce-done", "all-gather-done", "collective-permute-done",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")
SLICES = ("slice", "dynamic-slice", "gather")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line: `name = type opcode(operands), attributes`. A parameter's operand is its number."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str


class Traffic(NamedTuple):
    """Totals of one program. Collectives are pairs of opcode and bytes."""

    bytes: int
    kernels: int
    cycles: int
    collectives: list[tuple[str, int]]
    in_other_branches: list[tuple[str, int]]


def traffic(text: str, *, loops_once: bool = False) -> Traffic:
    """Count a compiled program, `jax.jit(f).lower(...).compile().as_text()`.

    Args:
      text: the program.
      loops_once: count the body of a loop once, an underestimate, instead of raising an error.

    Raises:
      ValueError: the program has a loop, whose number of iterations is not in the text.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from experiments.training.traffic import traffic
      >>> x = jax.ShapeDtypeStruct((1024,), jnp.float32)
      >>> traffic(jax.jit(lambda x: x + 1).lower(x).compile().as_text()).bytes
      8192
    """
    computations, entry = parse(text)
    return _count(computations, computations[entry], loops_once)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Split a program into its computations by name; return them and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        if line.endswith("{") and "->" in line and not line.startswith(" "):
            found = NAME.search(line)
            name = found[1] if found else line.split()[0]
            lines = computations.setdefault(name, [])
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None and " = " in line:
            lines.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    opcode = rest[: rest.index("(")]
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end]
    operands = [inside] if opcode == "parameter" else NAME.findall(inside)
    return Instruction(name.lstrip("%"), kind, opcode, operands, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"Expected a closing parenthesis, got {text[:80]!r}.")


def nbytes(kind: str, *, everywhere: bool = False) -> int:
    """Count the bytes of a type; arrays in VMEM count only if `everywhere`."""
    total = 0
    for dtype, sizes, layout in ARRAY.findall(kind):
        if dtype in BITS and (everywhere or "S(1)" not in layout):
            total += math.prod(int(size) for size in sizes.split(",") if size) * BITS[dtype] // 8
    return total


def _count(
    computations: dict[str, list[Instruction]], lines: list[Instruction], loops_once: bool
) -> Traffic:
    kinds = {line.name: line.type for line in lines}
    total = Traffic(0, 0, 0, [], [])
    for line in lines:
        if line.opcode == "while":
            total = _with_loop(total, computations, line, loops_once)
            continue
        if line.opcode == "conditional":
            total = _with_branches(total, computations, line, loops_once)
            continue
        if line.opcode in FREE:
            continue
        moved = nbytes(line.type)
        if line.opcode == "copy-start":  # Its type contains both sides.
            total = total._replace(bytes=total.bytes + moved)
            continue
        moved += sum(
            _read(computations, line, operand, kinds) for operand in dict.fromkeys(line.operands)
        )
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.attributes)
        name = line.opcode.removesuffix("-start")
        payload = sum(nbytes(kinds.get(operand, ""), everywhere=True) for operand in line.operands)
        total = Traffic(
            total.bytes + moved,
            total.kernels + 1,
            total.cycles + (int(cycles[1]) if cycles else 0),
            total.collectives + ([(name, payload)] if name in COLLECTIVES else []),
            total.in_other_branches,
        )
    return total


def _with_loop(
    total: Traffic,
    computations: dict[str, list[Instruction]],
    line: Instruction,
    loops_once: bool,
) -> Traffic:
    """Add the body of a loop, once."""
    if not loops_once:
        raise ValueError("Expected a program without loops, got a loop: count its body alone.")
    body = re.findall(r"body=%([\w.\-]+)", line.attributes)[0]
    return _sum(total, _count(computations, computations[body], loops_once))


def _with_branches(
    total: Traffic,
    computations: dict[str, list[Instruction]],
    line: Instruction,
    loops_once: bool,
) -> Traffic:
    """Add the branch taken, and the collectives of the other branches."""
    found = re.search(r"branch_computations=\{([^}]*)\}", line.attributes)
    if found:
        names = NAME.findall(found[1])
    else:
        names = [
            re.findall(rf"{which}_computation=%([\w.\-]+)", line.attributes)[0]
            for which in ("false", "true")
        ]
    taken, *others = (_count(computations, computations[name], loops_once) for name in names)
    apart = [c for other in others for c in other.collectives + other.in_other_branches]
    found = _sum(total, taken)
    return found._replace(in_other_branches=found.in_other_branches + apart)


def _sum(one: Traffic, other: Traffic) -> Traffic:
    """Add up two parts of a program."""
    return Traffic(
        one.bytes + other.bytes,
        one.kernels + other.kernels,
        one.cycles + other.cycles,
        one.collectives + other.collectives,
        one.in_other_branches + other.in_other_branches,
    )


def _read(
    computations: dict[str, list[Instruction]],
    line: Instruction,
    operand: str,
    kinds: dict[str, str],
) -> int:
    """Count the bytes that an instruction reads of an operand."""
    whole = nbytes(kinds.get(operand, ""))
    called = re.search(r"calls=%([\w.\-]+)", line.attributes)
    if line.opcode != "fusion" or not called:
        return whole
    inner = computations[called[1]]
    positions = [str(i) for i, each in enumerate(line.operands) if each == operand]
    names = [
        each.name for each in inner if each.opcode == "parameter" and each.operands[0] in positions
    ]
    for each in inner:  # In order of definition, so that a bitcast of a bitcast is found, too.
        if each.opcode == "bitcast" and each.operands[0] in names:
            names.append(each.name)
    uses = [each for each in inner if set(each.operands) & set(names) and each.name not in names]
    if not uses or any(u.opcode not in SLICES or u.operands[0] not in names for u in uses):
        return whole
    return min(whole, sum(nbytes(use.type) for use in uses))
