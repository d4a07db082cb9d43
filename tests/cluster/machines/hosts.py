"""Several hosts on this machine, with a network between them that can be cut.

Each host has namespaces of its own for network, processes, host name, mounts and shared memory, an
sshd, and a name that all others know. Files are shared, as by NFS. Addresses and ports exist inside
only, so that several tests can have hosts at the same time. Whatever happens to the process that
made them, even SIGKILL, ends them all and leaves nothing but their folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from machines.processes import HostProcess, listens, processes_beside

LOGIN = "login"
INTERFACE = "eth0"
_PROGRAMS = ("ip", "bridge", "nsenter", "unshare", "sshd", "ssh", "ssh-keygen")
_UNSHARE = (
    *("unshare", "--net", "--uts", "--ipc", "--mount", "--pid"),
    *("--fork", "--kill-child", "bash"),
)
_HOST = Path(__file__).with_name("host.sh")
# Variables of the tests that sessions over ssh get as well, as a cluster's own settings would do.
_CARRIED = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")
_SSHD_CONFIG = """\
AuthorizedKeysFile {folder}/id.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
MaxStartups 200
Subsystem sftp internal-sftp
"""
_SSH_CONFIG = """\
Host *
    IdentityFile {folder}/id
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
"""


@functools.cache
def why_no_hosts() -> str:
    """Why this machine cannot have hosts; "" where it can."""
    if os.geteuid() != 0:
        return "making namespaces needs root"
    missing = [program for program in _PROGRAMS if find_program(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        [*_UNSHARE, "-c", "mount -t tmpfs tmpfs /dev/shm"], capture_output=True, text=True
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def find_program(name: str) -> str | None:
    """Find a program, also where only root looks for it."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as something holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@dataclass
class _Service:
    """A program that runs on a host as long as the host does."""

    command: tuple[str, ...]
    port: int | None
    """Where it listens when it is ready."""
    process: HostProcess | None = None


@dataclass
class _Host:
    number: int
    services: dict[str, _Service] = field(default_factory=dict)
    holder: subprocess.Popen[bytes] | None = None
    """`unshare`, whose standard input keeps the host up."""
    first_process: int = 0
    cut: bool = False


class Hosts:
    """`login`, `node1`, `node2` … on a switch. The folder lies on a file system they all see."""

    def __init__(self, count: int, folder: Path) -> None:
        """Raise them.

        Args:
            count: Of nodes, beside `login`.
            folder: New or empty, readable for all, with a short path.
        """
        self.folder = folder
        self.names = [LOGIN, *(f"node{number}" for number in range(1, count + 1))]
        self.nodes = self.names[1:]
        self.environment: dict[str, str] = {}
        """Variables of everything that :meth:`start` starts, beside those of this process."""
        self._hosts = {name: _Host(number) for number, name in enumerate(self.names)}
        self._started: list[HostProcess] = []
        self._write_files()
        self._switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; read -r _"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert self._switch.stdout is not None
            assert self._switch.stdout.readline() == b"ready\n", "no switch"
            self._ip(self._switch.pid, "link add br0 type bridge", "link set br0 up")
            sshd = str(find_program("sshd"))
            for name in self.names:
                key = ("-h", str(self._ssh / f"host_key_{name}"))
                command = (sshd, "-D", "-e", "-f", str(self._ssh / "sshd_config"), *key)
                self._hosts[name].services["sshd"] = _Service(command, 22)
                self.boot(name)
        except BaseException:
            self.close()
            raise

    @property
    def known_hosts(self) -> Path:
        """The file in which ssh on all hosts finds their keys."""
        return self._ssh / "known_hosts"

    def address(self, host: str) -> str:
        """The host's address."""
        return f"10.77.0.{10 + self._hosts[host].number}"

    def start(
        self,
        host: str,
        *command: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> HostProcess:
        """Start a program on a host.

        Args:
            host: Which.
            command: Program and arguments.
            environment: Variables beside those of this process.
            folder: Where it runs; none is the current folder.
            stdin: As for `subprocess.Popen`.
        """
        process = HostProcess(
            self._hosts[host].first_process,
            command,
            environment={**os.environ, **self.environment, **(environment or {})},
            folder=folder or Path.cwd(),
            stdin=stdin,
        )
        self._started.append(process)
        return process

    def run(
        self,
        host: str,
        *command: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout_seconds: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host to its end. Both outputs are in `stdout`.

        Args:
            host: Which.
            command: Program and arguments.
            environment: Variables beside those of this process.
            folder: Where it runs; none is the current folder.
            timeout_seconds: Then it is killed, and `subprocess.TimeoutExpired` raised.
            check: An exit code but 0 is an `AssertionError`.
        """
        process = self.start(host, *command, environment=environment, folder=folder)
        try:
            code = process.wait(timeout_seconds)
            output = process.output
        except subprocess.TimeoutExpired as error:
            error.output = process.output
            process.kill()
            raise
        finally:
            self._started.remove(process)
            process.leave()
        assert code == 0 or not check, f"{host}: {command} ended with {code}:\n{output}"
        return subprocess.CompletedProcess(command, code, output, "")

    def cut(self, host: str) -> None:
        """Let every packet to and from a host vanish, its link staying up: a switch port died."""
        self._let_through(host, False)

    def mend(self, host: str) -> None:
        """Undo :meth:`cut`."""
        self._let_through(host, True)

    def crash(self, host: str) -> None:
        """Take a host's power: it says nothing more, and all its processes are gone."""
        self.cut(host)
        self._power_off(host)

    def boot(self, host: str) -> None:
        """Start a host, with its services, and connect it."""
        this = self._hosts[host]
        assert this.holder is None, f"{host} is up"
        this.holder = subprocess.Popen(
            [*_UNSHARE, str(_HOST), host, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log" / f"{host}.log").open("wb"),
            start_new_session=True,
        )
        assert this.holder.stdout is not None
        told = this.holder.stdout.readline()
        assert told, (self.folder / "log" / f"{host}.log").read_text()
        this.first_process = int(told)
        self._connect(host)
        for name in this.services:
            self.start_service(host, name)

    def add_service(self, host: str, name: str, command: Sequence[str], port: int | None) -> None:
        """Start a program that also starts whenever the host boots.

        Args:
            host: Where.
            name: Of the service; its output is the file `log/HOST-NAME.log`.
            command: It must stay in the foreground.
            port: Where it listens when it is ready, if it does.
        """
        self._hosts[host].services[name] = _Service(tuple(command), port)
        self.start_service(host, name)

    def start_service(self, host: str, name: str) -> None:
        """Start a service that has ended, and wait until it is ready."""
        this = self._hosts[host]
        service = this.services[name]
        log = self.folder / "log" / f"{host}-{name}.log"
        process = HostProcess(
            this.first_process,
            service.command,
            environment={**os.environ, **self.environment},
            folder=self.folder,
            log=log,
        )
        service.process = process
        port = service.port
        if port is not None:
            wait_for(
                lambda: process.poll() is not None or listens(this.first_process, port),
                30,
                f"{name} on {host}",
            )
        assert process.poll() is None, f"{name} on {host}: {process.output}"

    def kill_service(self, host: str, name: str) -> None:
        """End a service by SIGKILL, and nothing else on its host."""
        process = self._hosts[host].services[name].process
        assert process is not None
        process.kill()
        process.wait()

    def processes(self, host: str) -> dict[int, str]:
        """Command lines of what runs on a host beside its services, by number as seen outside."""
        this = self._hosts[host]
        services = {
            service.process.command_pid for service in this.services.values() if service.process
        }
        running = processes_beside(this.first_process)
        return {number: line for number, line in running.items() if number not in services}

    def restore(self) -> None:
        """Mend and boot what is broken, and kill what still runs: ready for the next test."""
        for process in self._started:
            process.leave()
        self._started.clear()
        for name, this in self._hosts.items():
            if this.holder is None:
                self.boot(name)
            self.mend(name)
            for service in [key for key, value in this.services.items() if _ended(value)]:
                self.start_service(name, service)
            wait_for(lambda name=name: not self._kill_processes(name), 10, f"{name} to be idle")

    def close(self) -> None:
        """End all hosts and whatever runs on them."""
        for process in self._started:
            process.leave()
        for name, this in self._hosts.items():
            if this.holder is not None:
                self._power_off(name)
        self._switch.communicate()

    @property
    def _ssh(self) -> Path:
        return self.folder / "ssh"

    def _write_files(self) -> None:
        for folder in (self.folder, self.folder / "log", self._ssh):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        # Names from the files alone: nobody waits for an answer of a name server out of reach.
        words = ("passwd", "group", "shadow", "hosts")
        (self.folder / "nsswitch.conf").write_text("".join(f"{word}: files\n" for word in words))
        carried = [f'"{name}={os.environ[name]}"' for name in _CARRIED if name in os.environ]
        settings = _SSHD_CONFIG.format(folder=self._ssh)
        settings += f"SetEnv {' '.join(carried)}\n" if carried else ""
        (self._ssh / "sshd_config").write_text(settings)
        (self._ssh / "ssh_config").write_text(_SSH_CONFIG.format(folder=self._ssh))
        for key in ("id", *(f"host_key_{name}" for name in self.names)):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", key]
            subprocess.run(make, cwd=self._ssh, check=True)
        self.known_hosts.write_text(
            "".join(
                f"{name},{self.address(name)} {(self._ssh / f'host_key_{name}.pub').read_text()}"
                for name in self.names
            )
        )

    def _connect(self, host: str) -> None:
        this = self._hosts[host]
        this.cut = False
        # A crashed host's port lingers until the kernel has buried its namespace.
        subprocess.run(
            [*self._into(self._switch.pid), "ip", "link", "delete", f"port-{host}"],
            stderr=subprocess.DEVNULL,
        )
        # The same hardware address after a reboot: neighbours remember it.
        peer = f"name {INTERFACE} address 02:00:00:00:00:{this.number + 16:02x}"
        self._ip(
            self._switch.pid,
            f"link add port-{host} type veth peer {peer} netns {this.first_process}",
            f"link set port-{host} master br0 up",
        )
        self._ip(
            this.first_process,
            f"address add {self.address(host)}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            "link set lo up",
        )

    def _let_through(self, host: str, yes: bool) -> None:
        state = ("bridge", "link", "set", "dev", f"port-{host}", "state", "3" if yes else "0")
        if self._hosts[host].cut == yes:
            subprocess.run([*self._into(self._switch.pid), *state], check=True)
            self._hosts[host].cut = not yes

    def _power_off(self, host: str) -> None:
        this = self._hosts[host]
        assert this.holder is not None, f"{host} is down"
        this.holder.communicate()  # the end of its standard input ends it, and so all on it
        this.holder = None
        for service in this.services.values():
            if service.process is not None:
                service.process.leave()
                service.process = None

    def _kill_processes(self, host: str) -> dict[int, str]:
        running = self.processes(host)
        for number in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return running

    def _ip(self, process: int, *commands: str) -> None:
        text = "".join(f"{command}\n" for command in commands).encode()
        subprocess.run([*self._into(process), "ip", "-batch", "-"], input=text, check=True)

    def _into(self, process: int) -> list[str]:
        return ["nsenter", "--target", str(process), "--net"]


def _ended(service: _Service) -> bool:
    return service.process is None or service.process.poll() is not None
