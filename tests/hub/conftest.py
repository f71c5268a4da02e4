"""A hub of models on loopback: what huggingface_hub's client asks of the real one, kept in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import constants

TOKEN, USER = "hf_a_test_token", "someone"


class Repository:
    def __init__(self, private=False, files=None):
        self.private = private
        self.branches = {"main": dict(files or {})}  # branch → path → content

    def commit_id(self, branch):
        content = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.branches[branch].items()))
        return hashlib.sha1(content.encode()).hexdigest()

    def at(self, revision):
        """Branch and files at a branch's name or commit."""
        for branch, files in self.branches.items():
            if revision in (branch, self.commit_id(branch)):
                return branch, files
        return None, None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.requests.append(f"{self.command} {path}")
        if hub.break_at and re.match(hub.break_at, f"{self.command} {path}"):
            self.close_connection = True
            self.connection.close()
            return
        for pattern, handle in ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                handle(self, *found.groups())
                return
        self.answer({"error": f"no such address: {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    @property
    def allowed(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name):
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.allowed):
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        return repository

    def whoami(self):
        if self.allowed:
            self.answer({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        else:
            self.answer({"error": "Invalid credentials"}, 401)

    def create(self):
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if owner != USER or not self.allowed:
            self.answer({"error": f"You don't have the rights to create a model under the namespace {owner}"}, 403)
        elif name in self.server.repositories:
            self.answer({"error": "You already created this model repo"}, 409)
        else:
            self.server.repositories[name] = Repository(asked.get("visibility") == "private")
            self.answer({"url": f"{self.server.address}/{name}"})

    def info(self, name, revision=None):
        if repository := self.repository(name):
            branch, files = repository.at(revision or "main")
            if branch is None:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            siblings = [{"rfilename": path} for path in files]
            sha = repository.commit_id(branch)
            self.answer({"id": name, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings})

    def branch(self, name, branch):
        branches = self.server.repositories[name].branches
        if branch in branches:
            self.answer({"error": "Reference already exists"}, 409)
        else:
            branches[branch] = dict(branches["main"])
            self.answer({})

    def preupload(self, name, revision):
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular"}
            for f in json.loads(self.body)["files"]
        ]
        self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})

    def batch(self, name):
        address = self.server.address
        objects = [
            {**asked, "actions": {"upload": {"href": f"{address}/lfs/{asked['oid']}"}}}
            if asked["oid"] not in self.server.large
            else asked
            for asked in json.loads(self.body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.answer({})

    def validate_yaml(self):
        asked = json.loads(self.body)
        yaml.safe_load(asked["content"].split("---")[1])
        self.answer({"errors": [], "warnings": []})

    def commit(self, name, revision):
        repository = self.server.repositories[name]
        branch, files = repository.at(revision)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.commits.append((name, branch))
        oid = repository.commit_id(branch)
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}"})

    def tree(self, name, revision, path=""):
        self.refuse(404, "EntryNotFound", f"{path} does not exist")

    def resolve(self, name, revision, path):
        if repository := self.repository(name):
            branch, files = repository.at(revision)
            if branch is None:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
            elif path not in files:
                message = "Entry not found"
                headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": repository.commit_id(branch)}
                self.answer({"error": message}, 404, X_Error_Message=message, **headers)
            else:
                etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
                self.answer(files[path], ETag=etag, X_Repo_Commit=repository.commit_id(branch))


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", Handler.info),
    (rf"POST /api/models/{NAME}/branch/{REVISION}", Handler.branch),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"GET /api/models/{NAME}/tree/{REVISION}/?(.*)", Handler.tree),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.upload),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
]


class Hub(ThreadingHTTPServer):
    """The server and what it holds.

    Attributes:
        repositories: by name. large: LFS objects by their SHA-256. commits: name and branch of each.
        break_at: requests (METHOD /path) that match this pattern get no answer: the connection is closed.
    """

    daemon_threads = True
    repository_type = Repository

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.large, self.commits, self.requests, self.break_at = {}, {}, [], [], None


@pytest.fixture
def hub(monkeypatch):
    """The hub, which this process's client asks from now on, with a token that it accepts."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
