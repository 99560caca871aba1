"""`serve` as a command: mistakes before anything is loaded; and real processes, which end well."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from colbert_zero.serving.index.manifest import read_manifest
from helpers import DOCUMENTS, environment, wait_for


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--writable"], "--writable: needs a key"),
     (["--writable", "--key", "k", "--workers", "2"], "one process writes"),
     (["--key", ""], "--key: is empty"), (["--key", "schlüssel"], "no header can hold"),
     (["--host", "no.such.name.invalid"], "--host no.such.name.invalid: no address of that name")],
)  # fmt: skip
def test_a_mistake_is_one_message_before_anything_is_loaded(command, served_folder, words, message):
    code, _, told = command("serve", served_folder, *words)
    assert code == 2
    assert message in told


def test_what_is_no_index_is_told(command, tmp_path):
    code, _, told = command("serve", tmp_path)
    assert code == 2
    assert "is no index" in told


def test_a_port_that_is_taken_is_told(command, served_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, told = command("serve", served_folder, "--port", taken.getsockname()[1])
    assert code == 2
    assert "cannot be listened on at 127.0.0.1 (Address already in use)" in told


def test_a_missing_package_is_told_with_its_extra(command, served_folder, monkeypatch):
    monkeypatch.setattr("colbert_zero.cli.serve.find_spec", lambda name: None if name == "uvicorn" else name)
    code, _, told = command("serve", served_folder)
    assert code == 2
    assert "uvicorn is not installed; pip install colbert-zero[serve]" in told


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("127.0.0.2", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_whatever_is_reached_from_here_alone_counts_as_local(command, served_folder, monkeypatch, host, local):
    served = []
    monkeypatch.setattr("colbert_zero.serving.http.server.serve", lambda settings, *_: served.append(settings.local))
    code, _, told = command("serve", served_folder, "--host", host, "--port", "0")
    assert (code, served) == (0, [local]), told
    assert ("can search and read this index" in told) == (not local)


# ---- Real processes


@contextmanager
def running(folder, *words, **variables):
    """The command; gives its process and its address once it answers."""
    command = [sys.executable, "-m", "colbert_zero", "serve", str(folder), "--port", "0", *words]
    with subprocess.Popen(
        command, env=environment(PYTHONUNBUFFERED=1, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        said = []
        try:
            while not (found := re.search(r"(http://\S+)/ answers", said[-1] if said else "")):
                said.append(process.stdout.readline())
                assert said[-1], "".join(said)
            wait_for(lambda: answered(found[1] + "/ready")[0] == 200)
            yield process, found[1], said
        finally:
            # With the processes of `--workers`, which would go on serving.
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in (process, *children):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def answered(address, body=None, key=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(address, body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, None


def metrics(address):
    with urllib.request.urlopen(address + "/metrics") as told:
        return told.read().decode()


def ask_in_threads(address, clients=8):
    """Clients that ask until nobody listens; gives their threads and the answers."""
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                with socket.create_connection(address, timeout=30) as connection:
                    connection.sendall(b"GET /search?q=wing&k=3 HTTP/1.0\r\nHost: localhost\r\n\r\n")
                    parts = []
                    while part := connection.recv(1 << 16):
                        parts.append(part)
                    answers.append(b"".join(parts))
            except OSError as error:
                # Refused, or cut off before it was accepted: nothing came.
                answers.append(error)
                if stop.wait(0.01):
                    return

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    return threads, answers, stop


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_it_once_what_it_accepted_is_answered(served_folder, sent, workers):
    with running(served_folder, "--workers", str(workers)) as (process, address, said):
        host, port = address.removeprefix("http://").split(":")
        children = psutil.Process(process.pid).children(recursive=True)
        threads, answers, stop = ask_in_threads((host, int(port)))
        wait_for(lambda: len(answers) > 30)
        process.send_signal(sent)
        assert process.wait(60) == 0
        stop.set()
        for thread in threads:
            thread.join()
        rest = process.stdout.read()
        assert "stopped: all that was accepted is answered" in rest, said
        assert "Traceback" not in rest
        whole = [answer for answer in answers if isinstance(answer, bytes) and answer]
        assert len(whole) > 30
        for answer in whole:
            head, body = answer.split(b"\r\n\r\n", 1)
            assert head.startswith(b"HTTP/1.1 200")
            assert len(json.loads(body)["hits"]) == 3
        wait_for(lambda: not any(child.is_running() for child in children))


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_several_count_together(served_folder):
    generation = rf"^colbert_zero_index_generation {read_manifest(served_folder).generation}\.0$"
    with running(served_folder, "--workers", "2") as (process, address, _):
        wait_for(lambda: len(psutil.Process(process.pid).children()) >= 2)
        for _ in range(20):
            assert answered(address + "/search", {"query": "wing"})[0] == 200
        counted = re.search(r'requests_total\{method="POST",path="/search",status="200"\} (\d+)', metrics(address))
        assert int(counted[1]) == 20
        assert re.search(generation, metrics(address), re.MULTILINE)
        serving = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        serving[0].kill()
        wait_for(lambda: not serving[0].is_running() or serving[0].status() == psutil.STATUS_ZOMBIE)
        wait_for(lambda: all(answered(address + "/ready")[0] == 200 for _ in range(10)))
        assert process.poll() is None
        assert re.search(generation, metrics(address), re.MULTILINE)
        alive = (c for c in psutil.Process(process.pid).children() if c.status() != psutil.STATUS_ZOMBIE)
        folders = {Path(child.environ()["PROMETHEUS_MULTIPROC_DIR"]) for child in alive}
        wait_for(lambda: not any([*folder.glob(f"gauge_live*_{serving[0].pid}.db")] for folder in folders))


@pytest.mark.slow
def test_a_killed_server_leaves_an_index_with_all_that_it_acknowledged(write_index, tmp_path):
    folder = write_index(tmp_path, DOCUMENTS)
    with running(folder, "--writable", COLBERT_ZERO_KEY="the-key") as (process, address, _):
        acknowledged = []

        def write():
            for number in range(1000):
                rows = [{"id": f"n{number}", "text": "a wing"}]
                if answered(address + "/documents", rows, "the-key")[0] != 200:
                    return
                acknowledged.append(f"n{number}")

        writer = threading.Thread(target=write)
        writer.start()
        wait_for(lambda: len(acknowledged) > 5)
        time.sleep(0.05)
        process.kill()
        writer.join()
    with running(folder) as (_, address, _):
        hits = answered(address + "/search", {"query": "wing", "k": 1000})[1]["hits"]
    assert {*acknowledged, *DOCUMENTS} <= {hit["id"] for hit in hits}


def can_mount():
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no user namespaces here to mount a small disk in")
def test_a_full_disk_is_told_and_room_lets_it_go_on(write_index, tmp_path):
    folder = write_index(tmp_path, DOCUMENTS)
    script = f"""
        mkdir small && mount -t tmpfs -o size=2m tmpfs small && cp -r {folder} small/index
        {sys.executable} -m colbert_zero serve small/index --port 0 --writable > said.txt 2>&1 &
        for _ in $(seq 600); do grep -q answers said.txt && break; kill -0 %1 || exit 1; sleep 0.2; done
        address=$(grep -o 'http://[^/]*' said.txt)
        post() {{ curl -s -m 60 -X POST -H 'authorization: Bearer the-key' -H 'content-type: application/json' \\
                  -d '[{{"id": "new", "text": "a wing"}}]' $address/documents; echo; }}
        cat /dev/zero > small/full 2> /dev/null
        post > full.txt
        curl -s "$address/search?q=wing&k=100" > search.txt
        rm small/full
        post > room.txt
        kill -TERM %1; wait %1; echo "code $?" >> said.txt
    """
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], cwd=tmp_path, env=environment(COLBERT_ZERO_KEY="the-key"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = {name: (tmp_path / f"{name}.txt").read_text() for name in ("full", "room", "said")}
    assert json.loads(read["full"])["error"]["code"] == "disk", (read, done.stderr)
    assert json.loads(read["room"])["added"] == 1, read
    assert read["said"].endswith("code 0\n")
