"""One relocatable ELF object in, a shared object out: a linker for what LLVM makes of kernels.

Users of a compiler in a wheel often have no linker, and a kernel library is simple: code, constants
and a few data symbols, no exceptions, no thread-local storage, at most memcpy and its like
imported. x86-64 only; another relocation or section than those below is an error, never a guess.

The file has three segments, each from a page on: read-only (headers, dynamic tables, constants),
code (text and one stub an imported function) and writable (dynamic section, GOT, data, bss).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE = 4096
_EM_X86_64 = 62
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_GROUP = 2, 4, 8, 17
_WRITE, _ALLOC, _EXEC, _TLS = 1, 2, 4, 0x400
_SHN_UNDEF, _SHN_RESERVED = 0, 0xFF00
_STB_LOCAL, _STB_GLOBAL = 0, 1
_STT_OBJECT = 1
_R_64, _R_PC32, _R_GLOB_DAT, _R_RELATIVE = 1, 2, 6, 8
_R_PLT32, _R_PC64 = 4, 24
_R_GOT = (9, 41, 42)  # GOTPCREL, GOTPCRELX, REX_GOTPCRELX
_SKIPPED = (".eh_frame",)  # nothing unwinds through a kernel
_READ, _CODE, _DATA = range(3)
_PROTECTION = {_READ: 4, _CODE: 5, _DATA: 6}
_SEGMENTS = 5  # the three, the dynamic section and the stack's protection
_DYNAMIC_BYTES = 16 * 11
_STUB = b"\xff\x25"  # jmp *disp32(%rip)
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_SECTION = struct.Struct("<IIQQQQIIQQ")


class LinkError(ValueError):
    """The object holds something that kernel code does not have; the message says what."""


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    data: bytes
    size: int
    align: int
    info: int

    @property
    def loaded(self) -> bool:
        return bool(self.flags & _ALLOC) and self.name not in _SKIPPED and self.size > 0

    @property
    def segment(self) -> int:
        return _DATA if self.flags & _WRITE else _CODE if self.flags & _EXEC else _READ


@dataclass(frozen=True)
class _Symbol:
    name: str
    binding: int
    kind: int
    section: int
    value: int
    size: int

    @property
    def imported(self) -> bool:
        return self.section == _SHN_UNDEF and self.binding != _STB_LOCAL

    @property
    def exported(self) -> bool:
        """Weak functions are LLVM's own helpers; the weak object is the launch slot."""
        strong = self.binding == _STB_GLOBAL
        weak_object = self.binding > _STB_GLOBAL and self.kind == _STT_OBJECT
        return self.section != _SHN_UNDEF and (strong or weak_object)


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


def _parse(image: bytes) -> tuple[list[_Section], list[_Symbol]]:
    if image[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", image, 16) != (1, _EM_X86_64):
        raise LinkError("not a relocatable x86-64 ELF object")
    (table,) = struct.unpack_from("<Q", image, 40)
    count, names = struct.unpack_from("<HH", image, 60)
    rows = [_SECTION.unpack_from(image, table + 64 * i) for i in range(count)]

    def body(row: tuple[int, ...]) -> bytes:
        return b"" if row[1] == _SHT_NOBITS else image[row[4] : row[4] + row[5]]

    labels = body(rows[names])
    sections = [
        _Section(_text(labels, r[0]), r[1], r[2], body(r), r[5], max(r[8], 1), r[7]) for r in rows
    ]
    symbols: list[_Symbol] = []
    for row in rows:
        if row[1] == _SHT_SYMTAB:
            strings = body(rows[row[6]])
            for name, info, _, where, value, size in _SYMBOL.iter_unpack(body(row)):
                symbols.append(
                    _Symbol(_text(strings, name), info >> 4, info & 15, where, value, size)
                )
    for s in sections:
        if s.flags & _TLS or s.kind == _SHT_GROUP:
            raise LinkError(f"section {s.name} is thread-local or a group")
    return sections, symbols


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


class _Image:
    """The file being laid out: sections get addresses, which are file offsets too."""

    def __init__(self, sections: list[_Section], symbols: list[_Symbol]) -> None:
        self.sections, self.symbols = sections, symbols
        self.relocations = [
            (section.info, offset, info >> 32, info & 0xFFFFFFFF, addend)
            for section in sections
            if section.kind == _SHT_RELA and sections[section.info].loaded
            for offset, info, addend in _RELA.iter_unpack(section.data)
        ]
        used = {at for _, _, at, _, _ in self.relocations}
        self.imports = [i for i, s in enumerate(symbols) if s.imported and i in used]
        self.exports = [i for i, s in enumerate(symbols) if s.exported]
        through = [at for _, _, at, kind, _ in self.relocations if kind in _R_GOT]
        self.slots = {at: n for n, at in enumerate(dict.fromkeys([*through, *self.imports]))}
        self._lay_out()

    def _lay_out(self) -> None:
        dynamic = [self.symbols[i] for i in (*self.imports, *self.exports)]
        self.strings = b"\0" + b"".join(s.name.encode() + b"\0" for s in dynamic)
        absolute = sum(kind == _R_64 for *_, kind, _ in self.relocations)
        sizes = (
            ("dynsym", _SYMBOL.size * (1 + len(dynamic))), ("dynstr", len(self.strings)),
            ("hash", 4 * (3 + 1 + len(dynamic))),
            ("rela", _RELA.size * (len(self.slots) + absolute)),
        )  # fmt: skip
        self.at: dict[str, int] = {}
        self.address: dict[int, int] = {}
        # Of each segment: where it starts, where its part of the file ends and where its memory.
        self.bounds: list[tuple[int, int, int]] = []
        here = 64 + 56 * _SEGMENTS
        for name, size in sizes:
            self.at[name] = here = _up(here, 8)
            here += size
        start = 0
        for segment in (_READ, _CODE, _DATA):
            if segment == _DATA:
                self.at["dynamic"], self.at["got"] = here, here + _DYNAMIC_BYTES
                here += _DYNAMIC_BYTES + 8 * len(self.slots)
            here = self._place(segment, here, zeros=False)
            if segment == _CODE:
                self.at["stubs"] = here = _up(here, 16)
                here += 8 * len(self.imports)
            end = here
            here = self._place(segment, here, zeros=True)
            self.bounds.append((start, end, here))
            start = here = _up(here, PAGE)

    def _place(self, segment: int, here: int, zeros: bool) -> int:
        for index, section in enumerate(self.sections):
            empty = section.kind == _SHT_NOBITS
            if section.loaded and section.segment == segment and empty == zeros:
                here = _up(here, section.align)
                self.address[index] = here
                here += section.size
        return here

    def _value(self, index: int) -> int:
        symbol = self.symbols[index]
        if index in self.imports:
            return self.at["stubs"] + 8 * self.imports.index(index)
        if symbol.section >= _SHN_RESERVED or symbol.section not in self.address:
            raise LinkError(f"symbol {symbol.name!r} is in no loaded section")
        return self.address[symbol.section] + symbol.value

    def _slot(self, index: int) -> int:
        return self.at["got"] + 8 * self.slots[index]

    def write(self) -> bytes:
        out = bytearray(self.bounds[_DATA][1])
        for index, address in self.address.items():
            data = self.sections[index].data
            out[address : address + len(data)] = data
        dynamic = self._relocate(out)
        for n, index in enumerate(self.imports):
            stub = self.at["stubs"] + 8 * n
            struct.pack_into("<2si", out, stub, _STUB, self._slot(index) - (stub + 6))
        for (name, table) in (("rela", dynamic), ("dynsym", self._symbol_table()),
                              ("dynstr", self.strings), ("hash", self._hash_table())):  # fmt: skip
            out[self.at[name] : self.at[name] + len(table)] = table
        self._headers(out, len(dynamic))
        return bytes(out)

    def _relocate(self, out: bytearray) -> bytes:
        """Applies what is fixed; returns what the loader has to do."""
        late = []
        for index in self.slots:
            if index in self.imports:
                number = 1 + self.imports.index(index)
                late.append(_RELA.pack(self._slot(index), number << 32 | _R_GLOB_DAT, 0))
            else:
                late.append(_RELA.pack(self._slot(index), _R_RELATIVE, self._value(index)))
        for section, offset, index, kind, addend in self.relocations:
            place = self.address[section] + offset
            if kind in _R_GOT:
                struct.pack_into("<i", out, place, self._slot(index) + addend - place)
            elif kind in (_R_PC32, _R_PLT32):
                struct.pack_into("<i", out, place, self._value(index) + addend - place)
            elif kind == _R_PC64:
                struct.pack_into("<q", out, place, self._value(index) + addend - place)
            elif kind == _R_64 and self.sections[section].segment == _DATA:
                late.append(_RELA.pack(place, _R_RELATIVE, self._value(index) + addend))
            else:
                name = self.sections[section].name
                raise LinkError(f"relocation of type {kind} in section {name}")
        return b"".join(late)

    def _symbol_table(self) -> bytes:
        rows, at = [_SYMBOL.pack(0, 0, 0, 0, 0, 0)], 1
        for index in (*self.imports, *self.exports):
            symbol = self.symbols[index]
            here = 0 if symbol.imported else 1  # any defined section
            value = 0 if symbol.imported else self._value(index)
            info = _STB_GLOBAL << 4 | symbol.kind
            rows.append(_SYMBOL.pack(at, info, 0, here, value, symbol.size))
            at += len(symbol.name.encode()) + 1
        return b"".join(rows)

    def _hash_table(self) -> bytes:
        """One bucket that chains all symbols."""
        count = 1 + len(self.imports) + len(self.exports)
        chain = [0, *range(2, count), 0] if count > 1 else [0]
        return struct.pack(f"<3I{count}I", 1, count, 1 if count > 1 else 0, *chain)

    def _headers(self, out: bytearray, rela_bytes: int) -> None:
        entries = (
            (4, self.at["hash"]), (5, self.at["dynstr"]), (6, self.at["dynsym"]),
            (10, len(self.strings)), (11, _SYMBOL.size), (7, self.at["rela"]), (8, rela_bytes),
            (9, _RELA.size), (24, 0), (0, 0), (0, 0),
        )  # fmt: skip
        for n, (tag, value) in enumerate(entries):
            struct.pack_into("<QQ", out, self.at["dynamic"] + 16 * n, tag, value)
        low = self.at["dynamic"]
        rows: list[tuple[int, int, int, int, int, int]] = [
            (1, _PROTECTION[s], start, end, memory, PAGE)
            for s, (start, end, memory) in enumerate(self.bounds)
        ]
        rows.append((2, 6, low, low + _DYNAMIC_BYTES, low + _DYNAMIC_BYTES, 8))
        rows.append((0x6474E551, 6, 0, 0, 0, 16))  # no executable stack
        for n, (kind, flags, start, end, memory, align) in enumerate(rows):
            struct.pack_into("<IIQQQQQQ", out, 64 + 56 * n, kind, flags, start, start, start,
                             end - start, memory - start, align)  # fmt: skip
        table = self._section_table(out)
        struct.pack_into("<16sHHIQQQIHHHHHH", out, 0, b"\x7fELF\x02\x01\x01" + bytes(9), 3,
                         _EM_X86_64, 1, 0, 64, table, 0, 64, 56, _SEGMENTS, 64, 5, 4)  # fmt: skip

    def _section_table(self, out: bytearray) -> int:
        """Appends section headers, which loading does not need and disassemblers do."""
        names = b"\0.text\0.dynsym\0.dynstr\0.shstrtab\0"
        start, end, _ = self.bounds[_CODE]
        symbols, strings, label = self.at["dynsym"], self.at["dynstr"], len(out)
        out += names + bytes(-(len(out) + len(names)) % 8)
        table = len(out)
        rows = (
            (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
            (1, 1, _ALLOC | _EXEC, start, start, end - start, 0, 0, 16, 0),
            (7, 11, _ALLOC, symbols, symbols, strings - symbols, 3, 1, 8, _SYMBOL.size),
            (15, 3, _ALLOC, strings, strings, len(self.strings), 0, 0, 1, 0),
            (23, 3, 0, 0, label, len(names), 0, 0, 1, 0),
        )
        out += b"".join(_SECTION.pack(*row) for row in rows)
        return table


def link(image: bytes) -> bytes:
    """A shared object with the strong symbols of a relocatable object."""
    return _Image(*_parse(image)).write()
