"""The system calls that a sandbox refuses, as a filter for `bwrap --seccomp`.

No program under test has a use for them. They make namespaces and mounts, which would undo the sandbox's file system;
hold memory that no limit of a process counts; look into other processes; or open parts of the kernel in which faults
are often found. What is refused fails with EPERM.
"""

from __future__ import annotations

import errno
import platform
import struct

from sdft.errors import BenchmarkError

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine → the kernel's number of its calling convention (AUDIT_ARCH_*), and the column of CALLS."""
CALLS = {
    # Namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # Memory outside the address space
    "shmget": (29, 194), "shmctl": (31, 195), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # Other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    # Parts of the kernel that nothing here needs
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
}  # fmt: skip
"""Name → its number on x86-64 and on 64-bit ARM."""
CLONE, CLONE3 = (56, 220), (435, 435)
NAMESPACES = 0x7E020000
"""The flags of `clone` that ask for a namespace (CLONE_NEW*), such as 0x10000000 for one of users."""
X32 = 0x40000000
"""Calls from here on are of x86-64's other calling convention, which reaches the same ones by other numbers."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Where `struct seccomp_data` has them; of the argument, its lower half."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def seccomp_filter(machine: str = "") -> bytes:
    """The filter, in the kernel's classic BPF. `machine`: default this one. Raises BenchmarkError for an unknown one.

    `clone3` hides its flags behind a pointer, so it is said not to be there, and libc asks for `clone`.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise BenchmarkError(
            f"the system calls of {machine or 'this machine'} are not known: programs are confined on "
            f"{' and '.join(ARCHITECTURES)} alone"
        )
    architecture, column = ARCHITECTURES[machine]
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [  # (what, steps to skip where it holds, steps to skip where not, with what)
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        refuse,
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        refuse,
    ]
    for numbers in CALLS.values():
        steps += [(EQUAL, 0, 1, numbers[column]), refuse]
    steps += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    steps += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 0, 1, NAMESPACES), refuse]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
