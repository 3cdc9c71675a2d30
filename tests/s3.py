"""A real S3 server for tests and benchmarks: one node of Ceph in memory, and its gateway.

``python -m tests.s3 --port 9103`` keeps one running until Ctrl-C. It needs Debian's ``radosgw``, ``ceph-mon``,
``ceph-osd`` and ``ceph-common``. It checks signatures, answers ranges, and has atomic conditional writes, which
stand-ins written for tests lack.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "setpriv")

# One monitor and one OSD, each alone in its quorum, on few placement groups. What is far from Ceph's defaults: the
# monitor decides at once (a start in 2 s instead of 13), deleted objects are collected at once (they would fill the
# memory), the gateway answers small ranges without waiting for more (5 ms instead of 50).
_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:{host}:{v2},v1:{host}:{v1}]
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = true
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_max_pg_per_osd = 2000
osd_crush_chooseleaf_type = 0
ms_bind_ipv6 = false
public_addr = {host}
cluster_addr = {host}
run_dir = {state}/run
admin_socket = {state}/run/$name.asok
pid_file = {state}/run/$name.pid
log_file = {state}/log/$name.log
keyring = {state}/keyring
setuser_match_path =
debug_none = 0
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_osd_min_up_ratio = 0
osd_pool_default_read_lease_ratio = 10000
osd_heartbeat_grace = 600
osd_op_thread_timeout = 600
osd_op_thread_suicide_timeout = 6000
[mon.a]
host = localhost
mon_data = {state}/mon
mon_cluster_log_file = {state}/log/cluster.log
mon_data_avail_warn = 1
mon_data_avail_crit = 1
[osd.0]
host = localhost
osd_objectstore = memstore
memstore_device_bytes = {memory}
osd_data = {state}/osd
osd_journal = {state}/osd/journal
osd_scrub_load_threshold = 0
[client.rgw]
rgw_frontends = beast endpoint={host}:{port} tcp_nodelay=1
rgw_data = {state}/rgw
rgw_enable_usage_log = false
rgw_gc_max_objs = 1
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 2
rgw_gc_processor_max_time = 60
rgw_num_rados_handles = 1
rgw_usage_max_shards = 1
rgw_lc_max_objs = 1
rgw_data_log_num_shards = 1
rgw_md_log_max_shards = 1
rgw_thread_pool_size = 64
rgw_enable_static_website = false
rgw_enable_apis = s3, admin
rgw_run_sync_thread = false
rgw_enable_quota_threads = false
rgw_override_bucket_index_max_shards = 1
"""


@dataclass(frozen=True)
class S3:
    """A running server and who may use it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use the server, and nothing else's settings."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        import boto3

        name = f"cloudem-{secrets.token_hex(6)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)
        return name


def missing() -> str | None:
    """Return why no server can be started here, or None."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no S3 server: {', '.join(absent)} missing (apt-get install radosgw ceph-mon ceph-osd ceph-common)"
    return None if find_spec("boto3") else "no S3 client: boto3 is not installed (pip install 'cloudem[aws]')"


@contextmanager
def serve(host: str = "127.0.0.1", port: int | None = None, memory: int = 3 * 2**30) -> Iterator[S3]:
    """Run a server while the block runs.

    Parameters
    ----------
    host, port
        Where the gateway listens; a free port if none is given.
    memory
        Bytes that it may store.
    """
    for attempt in (1, 2, 3):
        with contextlib.ExitStack() as stack:
            try:
                server = _start(stack, host, port, memory)
            except (RuntimeError, subprocess.SubprocessError):  # somebody took a port meanwhile
                if attempt == 3:
                    raise
                continue
            yield server
            return


def _start(stack: contextlib.ExitStack, host: str, port: int | None, memory: int) -> S3:
    shared = Path("/dev/shm")  # some containers have 64 MiB of it
    place = shared if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 2**29 else None
    state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudem-s3-", dir=place)))
    for name in ("mon", "osd", "run", "log", "rgw"):
        (state / name).mkdir()
    v2, v1, free = _free_ports(host, 3)
    port = free if port is None else port
    fsid, osd = uuid.uuid4(), uuid.uuid4()
    settings = state / "ceph.conf"
    settings.write_text(
        _CONFIGURATION.format(fsid=fsid, host=host, v1=v1, v2=v2, port=port, state=state, memory=memory)
    )
    server = S3(f"http://{host}:{port}", f"AK{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30))

    def run(*command: str) -> None:
        done = subprocess.run(
            [command[0], "-c", str(settings), *command[1:]], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-1000:]}")

    def daemon(*command: str) -> subprocess.Popen[bytes]:
        # Killed with the process that started it, and out of reach of its Ctrl-C.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", command[0], "-f", "-c", str(settings), *command[1:]],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        stack.callback(_stop, process)
        return process

    keyring, monmap = str(state / "keyring"), str(state / "monmap")
    everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
    run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    for name in ("client.admin", "client.rgw", "osd.0"):
        run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
    address = f"[v2:{host}:{v2},v1:{host}:{v1}]"
    run("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", address, monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    _wait_for(host, v2, daemon("ceph-mon", "-i", "a"))
    run("ceph", "osd", "new", str(osd))
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(osd))
    run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
    daemon("ceph-osd", "-i", "0")
    run(
        *("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test"),
        *("--access-key", server.access_key, "--secret", server.secret_key),
    )
    _wait_for(host, port, daemon("radosgw", "-n", "client.rgw"))
    return server


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _free_ports(host: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in held]


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not listen on {host}:{port}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server for the session; the environment points to it. Skips, with the reason, where none can be started."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("CLOUDEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server


def main() -> None:
    """Run a server until Ctrl-C; print what a shell needs to use it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--memory-gib", type=float, default=6)
    parser.add_argument("--buckets", type=int, default=1, help="buckets to make; their names are printed")
    options = parser.parse_args()
    reason = missing()
    if reason:
        raise SystemExit(reason)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with serve(options.host, options.port, int(options.memory_gib * 2**30)) as server:
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        for _ in range(options.buckets):
            print(f"# s3://{server.bucket()}", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
