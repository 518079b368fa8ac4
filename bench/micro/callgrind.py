"""Lets a process under callgrind say itself what is counted: start-up and warm-up are not.

Valgrind is asked by a sequence of instructions that does nothing elsewhere (valgrind.h and callgrind.h,
"client requests"). There is no library for that in Python, so the sequence lies in a page of its own and is
called by ctypes. Outside of valgrind every request is answered by 0.
"""

import ctypes
import mmap
import platform
import re
from pathlib import Path

# rdi: the address of six words, request and arguments. rol by 128 bits, xchg rbx, rbx; rdx: the answer.
_CODE = bytes.fromhex("48 89 f8 31 d2 48 c1 c7 03 48 c1 c7 0d 48 c1 c7 3d 48 c1 c7 33 48 87 db 48 89 d0 c3")
_RUNNING_ON_VALGRIND = 0x1001
_BASE = ord("C") << 24 | ord("T") << 16
_DUMP, _ZERO, _START, _STOP = _BASE, _BASE + 1, _BASE + 4, _BASE + 5
_TOTALS = re.compile(r"^totals: ([0-9]+)$", re.MULTILINE)
MACHINE = "x86_64"


class CallgrindError(Exception):
    """Nothing can be counted here, and why."""


class Callgrind:
    """Counts instructions between `start` and `stop`; `out` is what --callgrind-out-file says."""

    def __init__(self, out: Path) -> None:
        if platform.machine() != MACHINE:
            raise CallgrindError(f"instructions are counted on {MACHINE} alone, this is {platform.machine()}")
        self._out = out
        self._dumps = 0
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._ask = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        if not self._request(_RUNNING_ON_VALGRIND):
            raise CallgrindError("this process does not run under valgrind")

    def start(self) -> None:
        """Count from here on."""
        self._request(_START)
        self._request(_ZERO)

    def stop(self) -> int:
        """Count no more; the instructions since `start`."""
        self._request(_DUMP)
        self._request(_STOP)
        self._dumps += 1
        text = self._out.with_name(f"{self._out.name}.{self._dumps}").read_text()
        found = _TOTALS.search(text)
        if found is None:
            raise CallgrindError(f"callgrind wrote no totals: {text[-200:]!r}")
        return int(found[1])

    def _request(self, number: int) -> int:
        words = (ctypes.c_uint64 * 6)(number)
        answer: int = self._ask(ctypes.addressof(words))
        return answer
