"""What tests of several folders share: a small collection, studies on files, real processes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import yaml

from colbert_zero.recipe.reading import check_recipe
from colbert_zero.study.show import Quiet
from colbert_zero.study.study import Study

ROOT = Path(__file__).parents[1]


PROMPTS = {"query": "[Q] search_query: ", "document": "[D] search_document: "}


DOCUMENTS = {
    "lift": "The lift of a wing in a slipstream grows with the angle of attack.",
    "drag": "Drag of a thin wing at supersonic speed, measured in a wind tunnel.",
    "heat": "Heat transfer to a blunt body in hypersonic flow.",
    "boundary": "A boundary layer separates where the pressure rises.",
    "flutter": "Flutter of a panel heated on one side.",
    "library": "A library lends books; its catalogue lists every title.",
    "index": "An index maps each term to the documents that contain it.",
    "stem": "A stemmer cuts the endings of words, so that libraries and library meet.",
    "query": "A query is short; a document is long.",
    "rank": "Documents are ranked by their similarity to the query.",
    "lens": "The crystalline lens of the eye focuses light.",
    "glucose": "Glucose in the plasma of mother and child at delivery.",
    "oxygen": "Oxygen in the blood and in the cerebrospinal fluid.",
    "lung": "Cells of the lung take up oxygen and give off carbon dioxide.",
    "heart": "The heart pumps blood through the body.",
    "algebra": "An international algebraic language for computers.",
    "root": "Extraction of roots by repeated subtraction.",
    "matrix": "Programs that multiply a matrix by a vector, and a matrix by a matrix, on a digital computer.",
    "sort": "Sorting.",
    "sharing": "A time sharing system lets several people use one computer at the same time.",
}


QUERIES = {
    "q1": "lift and drag of a wing",
    "q2": "how do libraries list books",
    "q3": "oxygen in blood",
    "q4": "computer",
    "q5": "what is ranked for a query, and by which similarity",
}


QRELS = {
    "q1": {"lift": 2, "drag": 2, "boundary": 1},
    "q2": {"library": 2, "index": 1, "stem": 0},
    "q3": {"oxygen": 2, "lung": 1, "heart": 1},
    "q4": {"algebra": 1, "matrix": 1, "sharing": 1},
    "q5": {"rank": 1},
}


TOPICS = (
    "wing lift drag flow body heat panel flutter",
    "index term query rank stem list library book",
    "blood lung heart oxygen lens eye plasma cell",
    "root matrix sort program language computer share time",
)


def rows(count):
    """Pairs whose query shares two rare words with its document."""
    for i in range(count):
        words = TOPICS[i % 4].split()
        key = f"key{i} code{i * 7 % 1000}"
        yield {
            "query": f"{key} {words[i % 8]}",
            "document": f"{' '.join(words[i % 5 :])} {key} {' '.join(words[: i % 5])} text",
        }


def write_rows(path, count=160):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))


def data(folder, **changes):
    contrastive = {
        "objective": "contrastive", "sources": ["pairs"], "global_batch_size": 16, "learning_rate": 2e-3, "steps": 6,
    }  # fmt: skip
    recipe = {
        "name": "tiny",
        "model": {
            "architecture": {
                "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            },
            "vocabulary": 600, "dim": 16,
        },
        "query_tokens": 12, "document_tokens": 24,
        "prompts": {"query": "q: ", "document": "d: "},
        "sources": {
            "pairs": {"kind": "jsonl", "path": str(folder / "pairs.jsonl")},
            "hard": {"kind": "mined", "of": "pairs", "negatives": 3, "queries": 64},
            "scored": {"kind": "scored", "of": "hard", "teacher": "blend"},
        },
        "collections": {"held-out": {"kind": "held-out", "source": "pairs", "documents": 30, "queries": 20}},
        "teachers": {"blend": {"pipeline": ["unsupervised"], "bm25_weight": 1.0}},
        "phases": {
            "dense": {**contrastive, "representation": "dense", "temperature": 0.05},
            "unsupervised": {**contrastive, "representation": "multi-vector"},
            "supervised": {
                **contrastive, "representation": "multi-vector", "sources": ["hard"], "negatives": 2,
                "global_batch_size": 8, "steps": 3,
            },
            "distillation": {
                "representation": "multi-vector", "objective": "distillation", "sources": ["scored"],
                "global_batch_size": 8, "learning_rate": 1e-3, "steps": 3,
            },
        },
        "pipelines": {"kd-only": ["dense", "distillation"], "full": ["unsupervised", "supervised", "distillation"]},
    }  # fmt: skip
    return recipe | changes


def with_cross_encoder(folder, phase=None, teacher=None, **changes):
    """The recipe whose teacher ends in a cross-encoder, trained on the mined negatives."""
    recipe = data(folder, **changes)
    recipe["phases"]["reranker"] = {
        "representation": "cross-encoder", "objective": "listwise", "sources": ["hard"], "negatives": 3,
        "global_batch_size": 8, "learning_rate": 1e-3, "steps": 4,
    } | (phase or {})  # fmt: skip
    recipe["teachers"] = {"blend": {"pipeline": ["dense", "reranker"]} | (teacher or {})}
    recipe["pipelines"] = {"kd": ["unsupervised", "distillation"]}
    return recipe


def study(folder, recipe):
    return Study(check_recipe(recipe), folder / "out", Quiet(), folder / "cache")


def triples(words, count):
    """So many texts of three of twelve words of the tiny encoder's."""
    return [" ".join(one) for one in combinations(words.split(), 3)][:count]


WINGS = "wing drag heat flow lift panel flutter speed angle pressure body layer"

BODIES = "blood lung heart oxygen lens eye plasma cells glucose child light root"


STEPS = 240


def write_recipe(folder, **phase):
    """A recipe whose batches divide by two and by three; mini_batch_tokens makes the middle phase a cached one."""
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder)
    recipe["phases"]["unsupervised"] |= {"global_batch_size": 12, "mini_batch_tokens": 100_000, **phase}
    recipe["phases"]["supervised"] |= {"global_batch_size": 6, "mini_batch_tokens": 50}
    recipe["phases"]["distillation"] |= {"global_batch_size": 6}
    recipe["pipelines"] = {"full": ["unsupervised", "supervised", "distillation"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def processor_with(monkeypatch, *, bfloat16=False, amx=False):
    """A processor that multiplies bfloat16 itself, by AVX-512 alone or in matrix units; or neither."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | {key: str(value) for key, value in more.items()}


def launch(world, *command):
    """torchrun's command line for so many processes, or the plain one for one."""
    if world == 1:
        return [sys.executable, *command]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(free_port())]
    return [sys.executable, *launcher, *command]


class Commands:
    """Runs the program's commands in forks of one process that has imported it: none waits seconds for imports."""

    CODE = """
import json, os, sys
import sentence_transformers, torch
from transformers import BertModel
from colbert_zero import cli
from colbert_zero.serving.index import building, changing
MORE
said = os.open("said.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for line in sys.stdin:
    if not (child := os.fork()):
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["colbert-zero", *json.loads(line)]
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

    def __init__(self, folder, more=""):
        self._said = folder / "said.log"
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE.replace("MORE", more)], cwd=folder, text=True,
            env=environment(TOKENIZERS_PARALLELISM="false"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()

    def start(self, *arguments):
        """Begin a command; its process's number."""
        self._process.stdin.write(json.dumps([str(word) for word in arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def ended(self):
        """Its exit status, once it has ended: 0 of success."""
        return int(self._process.stdout.readline())

    def succeed(self, *arguments):
        """Run a command that must succeed."""
        self.start(*arguments)
        assert self.ended() == 0, self._said.read_text()


def alive(process):
    """Whether a process of this number has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def succeed(command, folder, **variables):
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run(command, cwd=folder, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def newest_step(folder):
    found = [int(path.name.split("-")[1]) for path in folder.glob("out/phases/*.unfinished/step-*")]
    return max(found, default=0)


class Hub:
    """The few answers of the Hugging Face Hub that a model needs: its commits, and their files; and to be sent some.

    Attributes:
        repos: {ID: {commit: folder}}, the last commit being the branch's.
        taken: Where the files of commits that are sent are kept; None: none are taken.
        created: What repositories were asked for, in the Hub's words.
        answer: A status and an error code that every request gets instead.
        asked: Paths of all requests, but of the list of agents that the Hub's client asks for once a day.
    """

    def __init__(self):
        self.repos, self.answer, self.asked = {}, None, []
        self.taken, self.created = None, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                if self.path == "/api/agent-harnesses":
                    return self.reply(404, "EntryNotFound")
                hub.asked.append(self.path)
                _, *words = self.path.split("?")[0].split("/")
                api = words[:2] == ["api", "models"]
                name = "/".join(words[2:4] if api else words[:2])
                commits = hub.repos.get(name)
                if hub.answer or not commits:
                    return self.reply(*(hub.answer or (401, "RepoNotFound")))
                revision = words[5] if len(words) > 5 and api else "main" if api else words[3]
                commit = {"main": list(commits)[-1]}.get(revision, revision)
                if commit not in commits:
                    return self.reply(404, "RevisionNotFound")
                folder = commits[commit]
                if api:
                    names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
                    about = {"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                    if "tree" in words:  # of a folder in it, which no model of these tests has
                        about = [{"type": "file", "path": n, "size": 1, "oid": n} for n in names if len(words) == 6]
                    return self.reply(200, "", json.dumps(about).encode())
                file = folder.joinpath(*words[4:])
                if not file.is_file():
                    return self.reply(404, "EntryNotFound", commit=commit)
                return self.reply(200, "", file.read_bytes(), commit)

            do_GET = do_HEAD

            def do_POST(self):
                hub.asked.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                _, _, _, *words = self.path.split("?")[0].split("/")
                if hub.answer or not hub.taken or "Bearer" not in self.headers.get("Authorization", ""):
                    return self.reply(*(hub.answer or (401, "")))
                if self.path == "/api/validate-yaml":
                    return self.reply(200, "", json.dumps({"errors": [], "warnings": []}).encode())
                if words[-1] == "create":
                    hub.created.append(json.loads(body))
                    name = f"{hub.created[-1]['organization']}/{hub.created[-1]['name']}"
                    hub.repos.setdefault(name, {"0" * 40: hub.taken / "nothing"})
                    return self.reply(200, "", json.dumps({"url": f"{hub.address}/{name}"}).encode())
                name = "/".join(words[:2])
                if words[2] == "preupload":
                    files = json.loads(body)["files"]
                    modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                    return self.reply(200, "", json.dumps({"files": modes}).encode())
                commit = sha1(body).hexdigest()
                for row in map(json.loads, body.splitlines()):
                    if row["key"] == "file":
                        file = hub.taken / commit / row["value"]["path"]
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(b64decode(row["value"]["content"]))
                hub.repos[name][commit] = hub.taken / commit
                done = {"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit}
                return self.reply(200, "", json.dumps(done).encode())

            def reply(self, status, error, body=b"", commit=None):
                self.send_response(status)
                named = {"X-Error-Code": error, "X-Repo-Commit": commit, "ETag": f'"{sha1(body).hexdigest()}"'}
                for key, value in {**named, "Content-Length": str(len(body))}.items():
                    if value:
                        self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        """Answer no more: a connection is refused from now on."""
        self.server.shutdown()
        self.server.server_close()
