"""What the machine code of a kernel shows: instructions, spills of vector registers, use of vectors, size. By capstone, from the object
file.

A spill is a move of a whole vector register to a place on the stack at a fixed distance from its top, from which a vector is read
again, by a move or as an operand. A small array that a kernel keeps on the stack and whose places are known numbers looks the same, and
counts too.

Capstone 5 does not know the products of bf16 (``vdpbf16ps``) and would stop there: of an instruction that it does not know, the length is
read from its prefix, and it counts as one of vectors.
"""

from __future__ import annotations

import re
from typing import Any

from effc.compiler.ir.errors import OptionError
from effc.costmodel.traces import Code
from effc.runtime.elf import code_of

_PLACE = r"[xyz]mmword ptr \[rsp(?P<at>(?: [+-] \w+)?)\]"
_STORED = re.compile(_PLACE + r", [xyz]mm\d+$")
_READ = re.compile(r"[xyz]mm\d+.*, " + _PLACE)
_VECTOR = re.compile(r"\b[xyz]mm\d+|\btmm\d")
#: What instructions that capstone does not know are called; first bytes of prefixes of vector instructions, and their lengths.
_UNKNOWN, _PREFIXES = "unknown", {0x62: 4, 0xC4: 3, 0xC5: 2}


def facts(code: bytes) -> Code:
    """Of an object file. ArtifactError: it is none. OptionError: capstone is not installed."""
    lines = [line for section in code_of(code) for line in disassembler().disasm_lite(section, 0)]
    texts = [(mnemonic, operands) for _, _, mnemonic, operands in lines]
    stores = [m["at"] for name, ops in texts if name.startswith("vmov") and (m := _STORED.match(ops))]
    loads = [m["at"] for _, ops in texts if (m := _READ.search(ops))]
    spills = sum(at in loads for at in stores)
    return Code(
        instructions=len(texts),
        code_bytes=sum(size for _, size, _, _ in lines),
        spills=spills,
        reloads=sum(at in stores for at in loads),
        vector_share=sum(name == _UNKNOWN or bool(_VECTOR.search(ops)) for name, ops in texts) / max(len(texts), 1),
    )


def disassembler() -> Any:
    """Capstone's, for x86-64; OptionError where it is not installed."""
    try:
        import capstone
    except ImportError:
        raise OptionError("the facts of machine code need capstone: pip install 'effc[costmodel]'") from None
    found = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found.skipdata_setup = (_UNKNOWN, lambda code, size, at, data: length(bytes(code[at : min(at + 16, size)])), None)
    found.skipdata = True
    return found


def length(code: bytes) -> int:
    """Bytes of the vector instruction that ``code`` begins with: prefix, opcode, operands, and no constant; 1 where it is another one."""
    prefix = _PREFIXES.get(code[0])
    if prefix is None or len(code) < prefix + 2:
        return 1
    operands = code[prefix + 1]
    mode, register = operands >> 6, operands & 7
    end = prefix + 2
    base = register
    if mode != 3 and register == 4:  # a byte that names base and index
        base = code[end] & 7 if len(code) > end else 0
        end += 1
    if mode == 1:
        return end + 1
    return end + 4 if mode == 2 or (mode == 0 and base == 5) else end
