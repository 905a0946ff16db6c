"""Whether the ports that the parts want are free, and who holds those that are not."""

import errno
import os
import socket
from collections.abc import Iterable

import psutil

from liveshelf.errors import ConflictError
from liveshelf.local.parts import Part
from liveshelf.settings import PREFIX


def port_problem(host: str, port: int) -> str:
    """Why `port` cannot be listened on; empty when it can."""
    with socket.socket() as probe:
        # As servers do: connections of the last run that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
    return ""


def holder(port: int) -> str:
    """`NAME (pid N)` of the process that listens on `port`; empty when it cannot be known (another user's)."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""


def require_free(parts: Iterable[Part], host: str) -> None:
    """Raises ConflictError naming part, port, the setting that changes it and, if known, the process that holds it."""
    wanted: dict[int, str] = {}
    for part in parts:
        for setting, port in part.ports.items():
            variable = PREFIX + setting.upper()
            if port in wanted:
                raise ConflictError(f"{variable} and {wanted[port]} both say {port}. Give {part.name} a port of its own.")
            wanted[port] = variable
            if problem := port_problem(host, port):
                by = f" by {name}" if (name := holder(port)) else ""
                raise ConflictError(f"port {port} of {part.name} is {problem}{by}. Stop that, or set {variable} to a free port.")
