"""Decode the PTX of one Triton kernel for the engine: text in, a table of instructions out.

Registers, literals and special registers become slots of 32 lanes: one slot for predicates and up
to 32 bits, two for 64. An instruction that is not listed here stops with its name; to add one, name
it in `TYPED` or `OTHERS`, and what it does in `OPS` of ptx_engine.cpp.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FIELDS = "op u4, at u4, n u4, written u4, guard i4, p u4, q u4, x i8"  # as the engine's `Ins`
INSTRUCTION = np.dtype([tuple(field.split()) for field in FIELDS.split(", ")], align=True)
SPECIAL = ["%tid.x", *(f"%{of}ctaid.{axis}" for of in ("", "n") for axis in "xyz"), "_"]
FIRST_FREE = 10  # "_", a result nobody reads, may be wide

# Operands of instructions that end in a type, the result first: t is as wide as the type says, n of
# 32 bits or less (predicates too), w of 64.
TYPED = {
    name: operands
    for operands, names in (
        ("tt", "mov not neg abs sqrt ex2.approx.ftz"),
        ("ttt", "add sub mul mul.lo mul.hi div min min.relu max and or xor"),
        ("ntt", "setp.eq setp.ne setp.lt setp.le setp.gt setp.ge setp.num setp.leu"),
        *(("tttt", "mad.lo fma"), ("wnn", "mul.wide"), ("wnnw", "mad.wide"), ("ttn", "shl shr")),
        *(("tttn", "selp"), ("nn", "popc"), ("nnnn", "bfe prmt shf.l.wrap")),
    )
    for name in names.split()
}
# 16 bits lie in the lower half of a slot, with 0 above: these may take them for 32.
SAME_IN_32_BITS = {"mov", "and", "or", "xor", "selp", "setp.eq", "setp.ne", "setp.gt", "shr"}
# Name here and operands of those whose type says less. m: a mask that has to name all lanes.
OTHERS = {
    "cvt.f32.bf16": ("", "nn"), "cvt.f32.f16": ("", "nn"), "cvt.rn.bf16.f32": ("", "nn"),
    "cvt.rn.f16.f32": ("", "nn"), "cvt.rn.bf16x2.f32": ("", "nnn"), "cvt.rn.f16x2.f32": ("", "nnn"),
    "cvt.rn.f32.f64": ("", "nw"), "cvt.rn.f32.s32": ("", "nn"), "cvt.rna.tf32.f32": ("", "nn"),
    "cvt.u64.u32": ("", "wn"), "cvt.u64.u16": ("cvt.u64.u32", "wn"),
    "cvt.s64.s32": ("", "wn"), "cvt.u32.u64": ("", "nw"), "cvt.u16.u32": ("", "nn"),
    "cvt.s16.s8": ("", "nn"), "cvt.u32.u16": ("mov.32", "nn"), "mul.wide.u16": ("mul.lo.32", "nnn"),
    "shfl.sync.up.b32": ("", "nnnnm"), "shfl.sync.bfly.b32": ("", "nnnnm"),
    "shfl.sync.idx.b32": ("", "nnnnm"), "redux.sync.add.s32": ("", "nnm"),
    "redux.sync.min.s32": ("", "nnm"), "redux.sync.max.s32": ("", "nnm"),
    "bar.warp.sync": ("", "m"), "cp.async.commit_group": ("", ""), "ret": ("", ""),
    "wgmma.commit_group.sync.aligned": ("", ""), "wgmma.fence.sync.aligned": ("", ""),
    "fence.proxy.async.shared::cta": ("", ""),
}  # fmt: skip
MEMORY = re.compile(r"(ld|st)\.(global|shared)(?:\.v[24])?\.([bu]|s(?=32))(8|16|32|64)")
MATRICES = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(?:16\.row\.col\.f32\.(b?f16)\.\1|8\.row\.col\.f32\.(tf32)\.tf32)\.f32"
)
WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(?:8|16)\.f32\.(b?f16|tf32)\.\2")
KINDS = {"bf16": 0, "f16": 1, "tf32": 2}


class UnknownInstruction(NotImplementedError):
    """PTX that this executor does not know."""


class Decoded(NamedTuple):
    """One instruction: its name here, operands with the results first, and what else it needs."""

    name: str
    operands: Sequence[int] = ()
    written: int = 0
    p: int = 0
    q: int = 0
    x: int = 0


class Program:
    """A kernel as the engine takes it.

    Attributes:
        ptx, name: of the kernel. warps: of a program. params: type and place of each parameter.
        statements, places: text and source line of each instruction, for messages.
        code, operands: arrays of `INSTRUCTION` and uint32. slots: how many.
        constants: uint64 [literals, 3], slot, whether it is wide, value.
        tracked: whether there are wgmma, whose registers are watched.
    """

    def __init__(self, ptx: str, ops: dict[str, int]) -> None:
        head, body = re.search(r"\.visible \.entry (.*?)\n\{(.*?)\n\}", ptx, re.S).groups()
        self.ptx, self.name = ptx, head.partition("(")[0]
        self.warps = int(re.search(r"\.reqntid (\d+)", head).group(1)) // 32
        self._params: dict[str, tuple[str, int]] = {}
        self.params_size = 0
        for kind, name in re.findall(r"\.param \.(\w+)[^,\n]*?(\w+_param_\d+)", head):
            size = int(kind[1:]) // 8
            at = -(-self.params_size // size) * size
            self._params[name], self.params_size = (kind, at), at + size
        self.params = list(self._params.values())
        self._registers: dict[str, tuple[int, bool]] = {}
        self._literals: dict[tuple[int, bool], int] = {}
        self.slots = FIRST_FREE
        self.statements: list[str] = []
        self.places: list[str] = []
        labels = self._read(body)
        code, operands = [], []
        for text, place in zip(self.statements, self.places, strict=True):
            try:
                guard, one = self._decode(text, labels, ops)
                numbers = ops[one.name], len(operands), len(one.operands), one.written
            except (AttributeError, IndexError, KeyError, ValueError):
                why = f"{self.name}, {place}: not known here (ptx_program.py): {text}"
                raise UnknownInstruction(why) from None
            code.append((*numbers, guard, one.p, one.q & 0xFFFFFFFF, one.x))
            operands += [*one.operands, 0, 0, 0, 0]  # the engine loads four before it looks
        self.code = np.array(code, INSTRUCTION)
        self.operands = np.array(operands, np.uint32)
        constants = [(slot, wide, value) for (value, wide), slot in self._literals.items()]
        self.constants = np.array(constants, np.uint64)
        self.tracked = any("wgmma" in text for text in self.statements)

    def _read(self, body: str) -> dict[str, int]:
        """Collect registers and statements; returns the instruction that each label stands for."""
        labels, place = {}, ""
        for line in body.splitlines():
            code, _, comment = line.partition("//")
            code = code.strip()
            if code.startswith(".loc"):
                place = comment.strip() or code
            elif match := re.fullmatch(r"\.reg \.(\w+)\s+(.*);", code):
                wide = match.group(1).endswith("64")
                for name in match.group(2).split(","):
                    stem, _, count = name.strip().rstrip(">").partition("<")
                    for number in range(int(count)) if count else [""]:
                        self._registers[f"{stem}{number}"] = self.slots, wide
                        self.slots += 1 + wide
            elif not code.startswith("."):
                while match := re.match(r"(\$[\w$]+):\s*", code):
                    labels[match.group(1)] = len(self.statements)
                    code = code[match.end() :]
                for statement in filter(None, map(str.strip, code.split(";"))):
                    self.statements.append(" ".join(statement.split()))
                    self.places.append(place)
        return labels

    def _slot(self, text: str, wide: bool = False, bits: int = 32) -> int:
        """The slot of a register or a literal; KeyError where a register is of another width."""
        if text in SPECIAL:
            return 1 + SPECIAL.index(text)
        if text in self._registers:
            slot, is_wide = self._registers[text]
            if is_wide != wide:
                raise KeyError(text)
            return slot
        value = 0 if text == "global_smem" else int(text.replace("0f", "0x", 1).rstrip("U"), 0)
        key = value & (2 ** (64 if wide else bits) - 1), wide
        if key not in self._literals:
            self._literals[key] = self.slots
            self.slots += 1 + wide
        return self._literals[key]

    def _is_wide(self, text: str) -> bool:
        return self._registers.get(text, (0, False))[1]

    def _address(self, text: str, wide: bool) -> tuple[int, int]:
        base, offset = re.fullmatch(r"\[ ?([%\w.]+)(?: ?\+ ?(-?\d+))? ?\]", text).groups()
        return self._slot(base, wide), int(offset or 0)

    def _decode(
        self, text: str, labels: dict[str, int], ops: dict[str, int]
    ) -> tuple[int, Decoded]:
        guard = 0
        if text.startswith("@"):
            predicate, text = text[1:].split(" ", 1)
            slot = self._slot(predicate.lstrip("!"))
            guard = ~slot if predicate.startswith("!") else slot
        opcode, _, rest = text.partition(" ")
        arguments = [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+", rest)]
        if opcode in ("bra", "bra.uni"):
            return guard, Decoded("bra", x=labels[arguments[0]])
        if opcode == "bar.sync" and arguments == ["0"] and not guard:
            return guard, Decoded("bar.sync")
        if opcode in ("cp.async.wait_group", "wgmma.wait_group.sync.aligned"):
            return guard, Decoded(opcode, p=int(arguments[0]))
        names = [[name.strip() for name in part.strip("{} ").split(",")] for part in arguments]
        one = self._memory(opcode, arguments, names) or self._matrices(opcode, arguments, names)
        return guard, one or self._plain(opcode, names, ops)

    def _plain(self, opcode: str, names: list[list[str]], ops: dict[str, int]) -> Decoded:
        """An instruction on registers and literals alone."""
        stem, _, kind = re.sub(r"\.(?:rn|full)(?=\.f32$)", "", opcode).rpartition(".")
        bits = 32 if kind == "pred" else int("0" + re.sub(r"\D", "", kind))
        if opcode in ("mov.b32", "mov.b64") and max(map(len, names)) == 2:
            pairs = [(n, bits == 64 and len(part) == 1) for part in names for n in part]
            slots = [self._slot(*pair, bits // 2) for pair in pairs]
            how = "unpack" if len(names[0]) == 2 else "pack"
            return Decoded(f"{how}.{bits}", slots, len(names[0]))
        arguments = [name for (name,) in names]
        if opcode in OTHERS:
            name, operands = OTHERS[opcode]
            if opcode == "cvt.s64.s32" and self._is_wide(arguments[1]):
                name, operands = "cvt.s64.low", "ww"  # of a wide register its lower half
        else:
            operands, signed = TYPED[stem].replace("t", "w" if bits == 64 else "n"), kind[0] == "s"
            found = [f"{stem}.{kind}", f"{stem}.{'s' if signed else 'u'}{bits}", f"{stem}.{bits}"]
            if "f" in kind and stem not in ("mov", "selp"):
                del found[1:]  # numbers are no integers
            elif bits == 16 and not signed and stem in SAME_IN_32_BITS:
                found += [f"{stem}.u32", f"{stem}.32"]
            name = next((name for name in found if name in ops), opcode)
        if len(operands) != len(arguments) or (kind == "pred" and "1" in arguments):
            raise ValueError(opcode)
        width = 16 if opcode.endswith("16") else 32  # of literals
        slots = [self._slot(t, k == "w", width) for t, k in zip(arguments, operands, strict=True)]
        return Decoded(name or opcode, slots, int(operands[:1] not in ("", "m")))

    def _memory(self, opcode: str, arguments: list[str], names: list[list[str]]) -> Decoded | None:
        if opcode.startswith("ld.param."):
            kind, at = self._params[arguments[1].strip("[]")]
            size, wide = int(kind[1:]) // 8, self._is_wide(arguments[0])
            flags = opcode[9].startswith("s") + 2 * wide
            return Decoded("ld.param", [self._slot(arguments[0], wide)], 1, size, flags, at)
        if match := MEMORY.fullmatch(opcode):
            how, space, sign, bits = match.groups()
            data, address = names[how == "st"], arguments[how == "ld"]
            wide = bits == "64" or self._is_wide(data[0])
            base, offset = self._address(address, space == "global")
            slots = [*(self._slot(name, wide) for name in data), base]
            written, flags = len(data) * (how == "ld"), (sign == "s") + 2 * wide
            return Decoded(f"{how}.{space}", slots, written, int(bits) // 8, flags, offset)
        if opcode in ("atom.global.gpu.relaxed.min.s32", "atom.global.gpu.relaxed.add.u64"):
            base, offset = self._address(arguments[1], True)
            wide = opcode.endswith("64")
            slots = [self._slot(arguments[0], wide), base, self._slot(arguments[2], wide)]
            return Decoded(opcode, slots, 1, x=offset)
        if re.fullmatch(r"cp\.async\.c[ag]\.shared\.global", opcode):
            to, at = self._address(arguments[0], False)
            source, offset = self._address(arguments[1], True)
            slots = [to, source, self._slot(arguments[-1])]  # without a fourth: all of it
            return Decoded("cp.async", slots, 0, int(arguments[2], 0), at, offset)
        return None

    def _matrices(
        self, opcode: str, arguments: list[str], names: list[list[str]]
    ) -> Decoded | None:
        if match := MATRICES.fullmatch(opcode):
            how, count, transposed = match.groups()
            base, offset = self._address(arguments[how == "ld"], False)
            slots = [*map(self._slot, names[how == "st"]), base]
            written = int(count) * (how == "ld")
            return Decoded(f"{how}matrix", slots, written, int(count), bool(transposed), offset)
        if match := MMA.fullmatch(opcode):
            slots = [self._slot(name) for part in names for name in part]
            return Decoded("mma", slots, 4, KINDS[match.group(1) or match.group(2)])
        if not (match := WGMMA.fullmatch(opcode)):
            return None
        columns, kind = int(match.group(1)), KINDS[match.group(2)]
        results, left, (right,), (add,), *flags = names
        if flags[:2] != [["1"], ["1"]] or len(results) != columns // 2:
            raise ValueError(flags)
        in_registers = len(left) == 4
        # A in registers is never transposed, and tf32 has no such flags.
        *_, a, b = 0, 0, *(int(flag) for (flag,) in flags[2:])
        slots = [*map(self._slot, results), *(self._slot(name, not in_registers) for name in left)]
        slots += [self._slot(right, True), self._slot(add)]
        return Decoded("wgmma", slots, columns // 2, columns, kind, in_registers + 2 * a + 4 * b)
