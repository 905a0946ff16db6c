"""Run as a script: `python -SE die_with_parent.py PARENT_PID COMMAND…` becomes COMMAND, which the kernel kills when PARENT_PID dies.

Even if the parent is killed with -9, so that no part outlives its supervisor. A script that execs, and not `preexec_fn`: the
supervisor has threads, and Python code between fork and exec may then deadlock. Linux only; elsewhere it just execs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from linux/prctl.h

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606
