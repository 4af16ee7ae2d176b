"""Maps a relocatable ELF object into this process: no linker, no compiler and no temporary file on the user's machine.

The layout of one mapping, page by page::

    [ code and constants | stubs, GOT ]  read + execute     [ .data, .bss ]  read + write

Field and relocation numbers are those of the System V gABI and the x86-64 psABI (sections 4.3 and 4.4).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from effc.compiler.ir.errors import ArtifactError, LoweringError

_PAGE = mmap.PAGESIZE
_MAX_IMAGE = 1 << 30  # far above any kernel; a damaged size field must not reserve the machine's memory
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_UNWIND = 2, 4, 8, 0x70000001
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECUTED, _SHF_TLS = 1, 2, 4, 0x400
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_STB_WEAK, _STT_SECTION = 2, 3
_STUB = b"\xff\x25\x00\x00\x00\x00"  # jmp *0(%rip), followed by the 8-byte address
_STUB_BYTES = 16


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


class _Symbol(NamedTuple):
    name: str
    binding: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class LoadedObject:
    """Code in memory. ``symbols``: address of every defined global. Keep the object: its code is unmapped with it."""

    symbols: Mapping[str, int]
    _keep: tuple[object, ...] = field(repr=False)


def load(data: bytes, externals: Mapping[str, int] | None = None) -> LoadedObject:
    """Map ``data``, resolving undefined symbols in ``externals`` first, then in libm and libc.

    ArtifactError: not an x86-64 relocatable object, truncated, or damaged. LoweringError: a symbol that nothing defines.
    """
    try:
        return _Image(data, externals or {}).finish()
    except (struct.error, IndexError, UnicodeDecodeError, ValueError, OverflowError) as err:
        raise ArtifactError(
            f"the object file ({len(data)} bytes) is damaged: {err}; clear the cache and compile again"
        ) from err


def code_of(data: bytes) -> list[bytes]:
    """The sections of an object that hold instructions. ArtifactError: as `load`."""
    try:
        return [data[s.offset : s.offset + s.size] for s in _sections(data) if s.flags & _SHF_EXECUTED and s.size]
    except (struct.error, ValueError) as err:
        raise ArtifactError(f"the object file ({len(data)} bytes) is damaged: {err}") from err


class _Image:
    def __init__(self, data: bytes, externals: Mapping[str, int]) -> None:
        self.data, self.externals = data, externals
        self.sections = _sections(data)
        self.symbols = self._symbols()
        self.relocations = [
            (self.sections[s.info], struct.iter_unpack("<QIIq", self._bytes(s)), s.info)
            for s in self.sections
            if s.type == _SHT_RELA and s.info < len(self.sections) and _loaded(self.sections[s.info])
        ]
        self._allocate()

    # -- reading ----------------------------------------------------------------------------------------------------
    def _bytes(self, s: _Section) -> bytes:
        if s.offset + s.size > len(self.data):
            raise ValueError(f"a section ends at byte {s.offset + s.size}")
        return self.data[s.offset : s.offset + s.size]

    def _symbols(self) -> list[_Symbol]:
        table = next((s for s in self.sections if s.type == _SHT_SYMTAB), None)
        if table is None:
            return []
        names = self._bytes(self.sections[table.link])
        found = []
        for name, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", self._bytes(table)):
            text = names[name : names.index(b"\0", name)].decode()
            found.append(_Symbol(text, info >> 4 if info & 15 != _STT_SECTION else 0, section, value, size))
        return found

    # -- layout -----------------------------------------------------------------------------------------------------
    def _allocate(self) -> None:
        """Give every loaded section an offset, with room for a stub and a GOT entry for each symbol."""
        self.place: dict[int, int] = {}
        end = self._place_all(0, writable=False)
        self.stubs = -(-end // 16) * 16
        self.got = self.stubs + _STUB_BYTES * len(self.symbols)
        self.readonly_bytes = -(-(self.got + 8 * len(self.symbols)) // _PAGE) * _PAGE
        end = self._place_all(self.readonly_bytes, writable=True)
        self.common: dict[int, int] = {}
        for k, symbol in enumerate(self.symbols):
            if symbol.section == _SHN_COMMON:  # its value is the alignment
                end = -(-end // max(symbol.value, 1)) * max(symbol.value, 1)
                self.common[k] = end
                end += symbol.size
        total = max(-(-end // _PAGE) * _PAGE, _PAGE)
        if total > _MAX_IMAGE:
            raise ValueError(f"its sections claim {total} bytes")
        self.memory = mmap.mmap(-1, total, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = ctypes.c_char.from_buffer(self.memory)
        self.base = ctypes.addressof(self.view)

    def _place_all(self, start: int, *, writable: bool) -> int:
        end = start
        for i, s in enumerate(self.sections):
            if _loaded(s) and bool(s.flags & _SHF_WRITE) == writable:
                align = max(s.align, 1)
                if align & (align - 1) or align > _PAGE:
                    raise ValueError(f"a section asks for an alignment of {align}")
                self.place[i] = -(-end // align) * align
                end = self.place[i] + s.size
                if end > _MAX_IMAGE:
                    raise ValueError(f"its sections claim {end} bytes")
        return end

    # -- linking ----------------------------------------------------------------------------------------------------
    def _address(self, k: int) -> int:
        symbol = self.symbols[k]
        if symbol.section in self.place:
            return self.base + self.place[symbol.section] + symbol.value
        if symbol.section == _SHN_COMMON:
            return self.base + self.common[k]
        if symbol.section == _SHN_ABS:
            return symbol.value
        if symbol.section == _SHN_UNDEF:
            found = self.externals.get(symbol.name) or library_symbol(symbol.name)
            if found is None and symbol.binding != _STB_WEAK:
                raise LoweringError(
                    f"the compiled code calls '{symbol.name}', which neither effc, libm nor libc defines; "
                    f"run the region in eager (fallback='eager') and report the op that lowers to it"
                )
            return found or 0
        raise ValueError(f"symbol '{symbol.name}' lies in section {symbol.section}, which is not loaded")

    def _stub(self, k: int) -> int:
        """Address of a jump to symbol ``k`` that a 32-bit displacement reaches."""
        at = self.stubs + _STUB_BYTES * k
        self.memory[at : at + 14] = _STUB + struct.pack("<Q", self._address(k))
        return self.base + at

    def _got(self, k: int) -> int:
        """Address of a word that holds the address of symbol ``k``."""
        at = self.got + 8 * k
        struct.pack_into("<Q", self.memory, at, self._address(k))
        return self.base + at

    def finish(self) -> LoadedObject:
        for i, at in self.place.items():
            s = self.sections[i]
            if s.type != _SHT_NOBITS:
                self.memory[at : at + s.size] = self._bytes(s)
        for target, entries, index in self.relocations:
            start = self.place[index]
            for offset, kind, k, addend in entries:
                if kind:
                    self._relocate(start + offset, start + target.size, kind, k, addend)
        _protect(self.base, self.readonly_bytes)
        defined = {
            s.name: self._address(k) for k, s in enumerate(self.symbols) if s.binding and s.section in self.place
        }
        return LoadedObject(defined, (self.memory, self.view))

    def _relocate(self, at: int, end: int, kind: int, k: int, addend: int) -> None:
        if kind not in _RELOCATIONS:
            raise ValueError(f"relocation type {kind} against '{self.symbols[k].name}' is not known")
        form, value = _RELOCATIONS[kind]
        if at + struct.calcsize(form) > end:
            raise ValueError("a relocation lies outside of its section")
        result = value(self, k, addend, self.base + at)
        try:
            struct.pack_into(form, self.memory, at, result & 0xFFFFFFFFFFFFFFFF if form == "<Q" else result)
        except struct.error as err:
            raise LoweringError(
                f"{self.symbols[k].name or 'a constant'} is too far away for a 32-bit reference; compile with the large code model"
            ) from err


def _pc32_call(image: _Image, k: int, addend: int, place: int) -> int:
    """A call: through a stub where the symbol is outside of this object."""
    target = image._stub(k) if image.symbols[k].section == _SHN_UNDEF else image._address(k)
    return target + addend - place


def _got_base(image: _Image) -> int:
    return image.base + image.got


#: Number of the relocation: field format, value (S + A - P and its kin in the psABI's table 4.9).
_RELOCATIONS: Mapping[int, tuple[str, Callable[[_Image, int, int, int], int]]] = {
    1: ("<Q", lambda m, k, a, p: m._address(k) + a),  # 64
    2: ("<i", lambda m, k, a, p: m._address(k) + a - p),  # PC32
    4: ("<i", _pc32_call),  # PLT32
    9: ("<i", lambda m, k, a, p: m._got(k) + a - p),  # GOTPCREL
    10: ("<I", lambda m, k, a, p: m._address(k) + a),  # 32
    11: ("<i", lambda m, k, a, p: m._address(k) + a),  # 32S
    24: ("<q", lambda m, k, a, p: m._address(k) + a - p),  # PC64
    25: ("<q", lambda m, k, a, p: m._address(k) + a - _got_base(m)),  # GOTOFF64
    26: ("<i", lambda m, k, a, p: _got_base(m) + a - p),  # GOTPC32
    27: ("<q", lambda m, k, a, p: m._got(k) + a - _got_base(m)),  # GOT64
    28: ("<q", lambda m, k, a, p: m._got(k) + a - p),  # GOTPCREL64
    29: ("<q", lambda m, k, a, p: _got_base(m) + a - p),  # GOTPC64
    31: ("<q", lambda m, k, a, p: m._address(k) + a - _got_base(m)),  # PLTOFF64
    41: ("<i", lambda m, k, a, p: m._got(k) + a - p),  # GOTPCRELX
    42: ("<i", lambda m, k, a, p: m._got(k) + a - p),  # REX_GOTPCRELX
}


def _sections(data: bytes) -> list[_Section]:
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", data, 16) != (1, 62):
        raise ArtifactError("not a relocatable ELF object for x86-64; clear the cache and compile again")
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    if size != 64 or not count:
        raise ValueError("its section table is unreadable")
    return [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, offset + 64 * i)) for i in range(count)]


def _loaded(s: _Section) -> bool:
    """Unwind tables stay out: nothing throws through a kernel."""
    if s.flags & _SHF_TLS:
        raise ValueError("it uses thread-local storage")
    return bool(s.flags & _SHF_ALLOC) and s.type != _SHT_UNWIND


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ...]:
    return tuple(ctypes.CDLL(name) for name in ("libm.so.6", "libc.so.6"))


@lru_cache(maxsize=1024)
def library_symbol(name: str) -> int | None:
    """Address of a function of libm or libc, or None."""
    for library in _libraries():
        try:
            return ctypes.cast(library[name], ctypes.c_void_p).value
        except AttributeError:
            continue
    return None


def _protect(address: int, size: int) -> None:
    mprotect = _libraries()[1].mprotect
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise LoweringError(
            "this system does not let a process map code that it has written (mprotect was refused); "
            "run with backend 'eager', or allow executable anonymous memory for this process"
        )
