"""Which global names a function reads, from its bytecode."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator

_BETWEEN = ("EXTENDED_ARG", "PUSH_NULL", "CACHE", "NOP")


@functools.lru_cache(maxsize=4096)
def globals_read(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """Names that code looks up in its module, each with the attributes that it takes of it: ("F", "relu")."""
    return tuple(dict.fromkeys(_chains(code)))


def _chains(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain.append(str(instruction.argval))
        elif instruction.opname not in _BETWEEN:
            if chain:
                yield tuple(chain)
            chain = [str(instruction.argval)] if instruction.opname == "LOAD_GLOBAL" else []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _chains(constant)
