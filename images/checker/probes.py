"""What the kernel of a checked PC is to note: writing calls that are refused, with the path they were for.

Kprobe events (Documentation/trace/kprobetrace.rst of the kernel). An entry and a return are paired by their process, so a
call is noted when it begins, and its return only if it is refused. Wherever the kernel has a function that takes the path it
copied already, that one is taken: a path that still lies in a page of the program not yet read could not be fetched. Those
functions serve 32-bit programs as well.
"""

from collections.abc import Iterator

_WRITING = 0x243  # O_WRONLY | O_RDWR | O_CREAT | O_TRUNC
_REFUSED = "ret == -30 || ret == -13"  # EROFS, EACCES
_FIELDS = "who=$comm"

_COPIED = {  # name: function, where its directory's descriptor and its struct filename are (x86-64: di, si, dx, cx, r8)
    "mkdir": ("do_mkdirat", "%di", "%si"),
    "rmdir": ("do_rmdir", "%di", "%si"),
    "unlink": ("do_unlinkat", "%di", "%si"),
    "rename": ("do_renameat2", "%dx", "%cx"),
    "symlink": ("do_symlinkat", "%si", "%dx"),
    "link": ("do_linkat", "%dx", "%cx"),
}
# Offsets of struct pt_regs, which system calls get in di.
_DI, _SI, _DX = "+112(%di)", "+104(%di)", "+96(%di)"
_CALLS = {  # system call: descriptor or "", path
    "chmod": ("", _DI),
    "fchmodat": (_DI, _SI),
    "chown": ("", _DI),
    "lchown": ("", _DI),
    "fchownat": (_DI, _SI),
    "utimensat": (_DI, _SI),
    "truncate": ("", _DI),
    "mknod": ("", _DI),
    "mknodat": (_DI, _SI),
}


def probes() -> str:
    """Lines for guest/trace: an event's definition, a tab, its filter.

    Events are called c_NAME when a call begins, r_NAME when it was refused; o_open is an open for reading, which must not
    pass for a writing one when it is refused.
    """
    return "".join(f"{definition}\t{wanted}\n" for definition, wanted in _events())


def _events() -> Iterator[tuple[str, str]]:
    opened = "do_filp_open fd=%di:s32 path=+0(+0(%si)):string flags=+0(%dx):x32"
    yield f"p:c_open {opened} {_FIELDS}", f"flags & {_WRITING:#x}"
    yield "p:o_open do_filp_open flags=+0(%dx):x32", f"!(flags & {_WRITING:#x})"
    yield _returns("open", "do_filp_open", 64)  # a pointer, or what stands for an error
    for name, (function, descriptor, path) in _COPIED.items():
        yield f"p:c_{name} {function} fd={descriptor}:s32 path=+0(+0({path})):string {_FIELDS}", ""
        yield _returns(name, function, 32)
    for name, (descriptor, path) in _CALLS.items():
        at = f"fd={descriptor}:s32 " if descriptor else ""
        yield f"p:c_{name} __x64_sys_{name} {at}path=+0({path}):ustring {_FIELDS}", ""
        yield _returns(name, f"__x64_sys_{name}", 64)
    yield f"p:chdir __x64_sys_chdir path=+0({_DI}):ustring", ""
    yield "p:fchdir __x64_sys_fchdir", ""


def _returns(name: str, function: str, bits: int) -> tuple[str, str]:
    """Up to 64 calls at once, more than the kernel's own guess: each may wait for a disk that is a network.

    ``bits``: how wide the function's result is; the rest of the register is not part of it.
    """
    return f"r64:r_{name} {function} ret=$retval:s{bits}", _REFUSED
