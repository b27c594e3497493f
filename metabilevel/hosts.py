"""Many hosts: processes that run one program, each with the devices of its host, and that end together.

Process 0 leads: the others find it at the address of the group, say who they are and what they were asked to compute,
and are told where jax's own service is. They keep that connection for as long as they work. One that closes without a
goodbye is a loss: process 0 tells the others, and all end, whatever their compiled code waits for.

jax's client would abort its process as soon as process 0 is gone. It is therefore led to the service through a relay in
its own process, which keeps silent about such an end while the group tells of it in words.
"""

import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .errors import ComputationError, InputError

HELLO_SECONDS = 10.0  # how long one that has connected may take to say who it is
HELLO_BYTES = 2**20  # and how much it may say
WORD_SECONDS = 5.0  # how long an error of compiled code waits for word that another process is the reason
GRACE_SECONDS = 15.0  # how long process 0 may take to end by itself where another one has failed
RETRY_SECONDS = 0.2
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a host without power is gone after 20 s
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Process `number` of `processes`, of which process 0 listens at `host` and `port`; and the numbers of the local
    devices that it has, None for all."""

    host: str
    port: int
    processes: int
    number: int
    local_devices: list[int] | None = None


class Connection:
    """Messages over a socket, each a line of JSON."""

    def __init__(self, link: socket.socket):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:  # not on every system
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        self.link = link
        self._lines = link.makefile("rb")

    def send(self, message: Mapping[str, Any]) -> None:
        self.link.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the other side is gone.

        **Raises:** `OSError`; `ValueError` for what is no message.
        """
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"{message!r} is no message.")
        return message

    def close(self) -> None:
        self._lines.close()
        self.link.close()


@dataclass
class Group:
    """The processes that this one is connected to: all others in process 0, and process 0 in the others."""

    place: Place
    end: Callable[[str], NoReturn]
    connections: dict[int, Connection] = field(default_factory=dict)
    hosts: dict[int, str] = field(default_factory=dict)
    verdict: str = ""
    judged: threading.Event = field(default_factory=threading.Event)
    parted: threading.Event = field(default_factory=threading.Event)

    def add(self, number: int, host: str, connection: Connection) -> None:
        connection.link.settimeout(None)
        self.connections[number], self.hosts[number] = connection, host

    def watch(self) -> None:
        """Has threads read what the others say until they are gone."""
        for number in self.connections:
            threading.Thread(target=self._listen, args=(number,), daemon=True).start()

    def part(self) -> None:
        """Comes back when all have come to their end in good order."""
        if self.place.number:
            self.tell({"kind": "bye"})
        if self.hosts:
            self.parted.wait()
        if not self.place.number:
            self.tell({"kind": "bye"})

    def close(self) -> None:
        """After which nothing is watched: for processes that have parted, or have not met."""
        for connection in self.connections.values():
            connection.close()

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process ends by `error`.

        **Raises:** `ComputationError` where `error` is but what another's end looks like from here.
        """
        from jax.errors import JaxRuntimeError

        of_compiled_code = isinstance(error, JaxRuntimeError | ValueError) and not isinstance(error, InputError)
        if of_compiled_code and self.judged.wait(WORD_SECONDS):
            raise ComputationError(self.verdict) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        self._judge(f"Process {self.place.number} on {platform.node()} ended: {reason}")
        if self.place.number:
            self.tell({"kind": "end", "message": self.verdict, "lost": False})

    def tell(self, message: Mapping[str, Any]) -> None:
        """To all that are connected; one that is gone is for the threads that watch."""
        for connection in self.connections.values():
            with suppress(OSError):
                connection.send(message)

    def _listen(self, number: int) -> None:
        with suppress(OSError, ValueError):
            while message := self.connections[number].receive():
                if message["kind"] == "bye":
                    del self.hosts[number]
                    if not self.hosts:
                        self.parted.set()
                    return
                self._judge(message["message"], lost=message["lost"])
                if not message["lost"]:  # that process has an error to tell, and so may this one, and a state to save
                    self.connections[number].receive()
                    time.sleep(WORD_SECONDS if self.place.number else GRACE_SECONDS)
                self.end(self.verdict)
        who = f"Process {number} on {self.hosts[number]}"
        self._judge(f"{who} is gone, and so the run ends: --resume goes on from its last checkpoint.", lost=True)
        self.end(self.verdict)

    def _judge(self, verdict: str, *, lost: bool = False) -> None:
        """Keeps the first reason to end, which process 0 passes on."""
        if not self.judged.is_set():
            self.verdict = verdict
            self.judged.set()
            if not self.place.number:
                self.tell({"kind": "end", "message": verdict, "lost": lost})


@contextmanager
def joined(place: Place, asked: Mapping[str, Any], *, timeout: int, end: Callable[[str], NoReturn]) -> Iterator[None]:
    """Within, jax knows the devices of all processes.

    **Arguments:** `asked` is what all must agree on, in the types of JSON; within `timeout` seconds all must be there.
    Where another process is lost, `end(message)` is called in a thread, and must end this one.

    **Raises:** `ComputationError` where not all come together, or where another failed; `InputError` where they were
    asked for different things.
    """
    import jax

    asked = json.loads(json.dumps(asked))
    group = Group(place, end)
    service = _relay(place.host, reach(group, asked, timeout)) if place.number else gather(group, asked, timeout)
    group.watch()
    try:
        os.environ.setdefault("no_grpc_proxy", LOOPBACK)
        jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM for itself
        jax.config.update("jax_check_proxy_envs", False)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"{LOOPBACK}:{service}",
            place.processes,
            place.number,
            place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            coordinator_bind_address=f"0.0.0.0:{service}",
        )
        yield
        group.part()
        jax.distributed.shutdown()
        group.close()
    except BaseException as error:
        group.fail(error)
        raise


def reach(group: Group, asked: Mapping[str, Any], timeout: int) -> int:
    """Connects to process 0, and gives the port of jax's service on its host."""
    place, until, reason = group.place, time.monotonic() + timeout, "nothing was heard"
    where = f"{place.host}:{place.port}"
    hello = {"number": place.number, "processes": place.processes, "host": platform.node(), "asked": asked}
    while (left := until - time.monotonic()) > 0:
        try:
            connection = Connection(socket.create_connection((place.host, place.port), timeout=left))
            connection.send(hello)
            if reply := connection.receive():
                break
            connection.close()
            reason = "the connection was closed"
        except socket.gaierror as error:
            raise InputError(f"There is no host {place.host!r} to be the coordinator: {error.strerror}.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        time.sleep(min(RETRY_SECONDS, max(0.0, left)))
    else:
        raise ComputationError(
            f"No coordinator could be reached at {where} within {timeout} s ({reason}). Process 0 must run there."
        )
    match reply:
        case {"host": str(host), "refused": str(refused), "wrong": bool(wrong)}:
            group.add(0, host, connection)
            raise (InputError if wrong else ComputationError)(refused)
        case {"host": str(host), "service": int(service)}:
            group.add(0, host, connection)
            return service
    connection.close()
    raise ComputationError(f"What answers at {where} is no process 0 of a run: is that the right --coordinator?")


def gather(group: Group, asked: Mapping[str, Any], timeout: int) -> int:
    """Waits for all others, and gives the port that jax's service is to have here."""
    place, until = group.place, time.monotonic() + timeout
    try:
        server = socket.create_server(("", place.port), backlog=place.processes)
    except OSError as error:
        raise InputError(f"The coordinator cannot listen at port {place.port}: {error.strerror}.") from error
    with server:
        while missing := sorted({*range(1, place.processes)} - {*group.connections}):
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection = Connection(server.accept()[0])
            except TimeoutError as error:
                absent = f"Process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
                late = f"{absent} of {place.processes} did not come to {place.host}:{place.port} within {timeout} s."
                group.tell({"refused": late, "wrong": False, "host": platform.node()})
                raise ComputationError(late) from error
            hello = _heard(connection, min(HELLO_SECONDS, until - time.monotonic()))
            if hello is None:
                connection.close()
            elif wrong := _wrong(group, asked, hello):
                refused = {"refused": wrong, "wrong": True, "host": platform.node()}
                connection.send(refused)
                connection.close()
                group.tell(refused)
                raise InputError(wrong)
            else:
                if hello["number"] in group.connections:  # which is gone, and has been started again
                    group.connections[hello["number"]].close()
                group.add(hello["number"], hello["host"], connection)
    with socket.create_server(("", 0)) as free:
        service = free.getsockname()[1]
    for connection in group.connections.values():
        connection.send({"service": service, "host": platform.node()})
    return service


def _heard(connection: Connection, seconds: float) -> dict[str, Any] | None:
    """The first message of one that has connected, if it comes within `seconds` and is what a process of ours says."""
    until, data = time.monotonic() + seconds, b""
    with suppress(OSError, ValueError, RecursionError):
        while not data.endswith(b"\n") and len(data) < HELLO_BYTES:
            connection.link.settimeout(max(0.01, until - time.monotonic()))
            if not (more := connection.link.recv(2**16)):
                return None
            data += more
        match json.loads(data):
            case {"number": int(), "processes": int(), "host": str(), "asked": dict()} as hello:
                return hello
    return None


def _is_gone(connection: Connection) -> bool:
    """Whether the other side has closed, or was ended."""
    connection.link.setblocking(False)
    try:
        return not connection.link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.link.setblocking(True)


def _wrong(group: Group, asked: Mapping[str, Any], hello: Mapping[str, Any]) -> str | None:
    """What is wrong with a process that says `hello`."""
    number, processes, place = hello["number"], hello["processes"], group.place
    who = f"process {number} on {hello['host']}"
    if processes != place.processes:
        return f"Process 0 was told of {place.processes} processes, and {who} of {processes}."
    if not 0 < number < processes:
        return f"{who.capitalize()}: of {processes} processes, one from 1 to {processes - 1} is wanted."
    if number in group.hosts and not _is_gone(group.connections[number]):
        other = group.hosts[number]
        return f"Of {processes} processes, two have the number {number}: on {other} and on {hello['host']}."
    theirs = hello["asked"]
    differing = [name for name in {**asked, **theirs} if asked.get(name) != theirs.get(name)]
    told = "; ".join(f"{name} is {asked.get(name)!r} in process 0 and {theirs.get(name)!r} there" for name in differing)
    return f"{who.capitalize()} was asked for something else: {told}." if told else None


def _relay(host: str, port: int) -> int:
    """A port here whose connections lead to that one, and stay open when the other side ends."""
    server = socket.create_server((LOOPBACK, 0))
    held: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, *, onwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                sink.sendall(data)
            if onwards:
                sink.shutdown(socket.SHUT_WR)

    def far_side() -> socket.socket:
        while True:
            with suppress(ConnectionRefusedError):  # the service may begin a little later
                return socket.create_connection((host, port))
            time.sleep(RETRY_SECONDS)

    def accept() -> None:
        while True:
            near, far = server.accept()[0], far_side()
            held.extend((near, far))
            threading.Thread(target=pump, args=(near, far), kwargs={"onwards": True}, daemon=True).start()
            threading.Thread(target=pump, args=(far, near), kwargs={"onwards": False}, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]
