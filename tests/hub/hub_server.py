"""A small Hub on this machine: what huggingface_hub asks for when it pushes and pulls, over real HTTP.

Repositories, branches, commits and pull requests live in memory. Large files go another way than small ones, through
another origin (`localhost` beside `127.0.0.1`), as they do on the Hub. Every request is noted with the bytes that
came, and a list of `Fault`s says which requests go wrong, and how.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "T0ken" * 7
OTHER_TOKEN = "hf_" + "0ther" * 7
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Fault:
    """A request that goes wrong.

    Args:
        where: regular expression, searched in "METHOD /path".
        do: "status": answer `status`, before anything is done; "hang up": close the connection before anything is
            done; "lose answer": do it, then close; "cut": close after `at` bytes of the body of the request (PUT,
            POST) or of the answer (GET); "stall": wait until the server is told to go on; "tamper": other bytes than
            asked for.
        first: the first request of those that fit that goes wrong, from 1.
        times: how many do.
    """

    where: str
    do: str
    status: int = 500
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    at: int = 0
    first: int = 1
    times: float = 1
    seen: int = 0


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str | None
    range: str | None
    received: int = 0  # bytes of the body
    sent: int = 0  # bytes of the answer's body
    status: int | None = None  # of the answer; None: there was none


@dataclass
class Commit:
    tree: dict[str, "Entry"]
    message: str
    parent: str | None


@dataclass
class Entry:
    """A file of a tree; of a large one the content is in the server's storage."""

    size: int
    oid: str  # git's
    content: bytes | None = None
    sha256: str | None = None


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def add(self, tree: dict[str, Entry], message: str, parent: str | None) -> str:
        text = json.dumps([parent, message, len(self.commits), sorted((p, e.oid) for p, e in tree.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(tree, message, parent)
        return oid

    def find(self, revision: str) -> str:
        refs = {**self.branches, **self.pull_requests, **{f"refs/heads/{n}": oid for n, oid in self.branches.items()}}
        oid = refs.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


class HubError(Exception):
    def __init__(self, status: int, code: str | None, message: str, **more):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value, status: int = 200, **headers: str) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def small_entry(content: bytes) -> Entry:
    return Entry(len(content), git_sha1(content), content=content)


def large_entry(sha256: str, size: int) -> Entry:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Entry(size, git_sha1(pointer.encode()), sha256=sha256)


class HubServer:
    """The server; a context that runs it.

    Attributes:
        url: what HF_ENDPOINT must be.
        requests: what came in so far.
        faults: what shall go wrong.
        users: user of each token that is accepted.
        repos: by (type, "owner/name").
        storage: large files by their SHA-256.
        page_size: entries of a page of a listing.
        part_size: large files of more bytes are asked for in parts; None: never.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.users = {TOKEN: "alice", OTHER_TOKEN: "bob"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.page_size, self.part_size = 1000, None
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.httpd.hub = self
        self.port = self.httpd.server_address[1]
        self.url, self.storage_url = f"http://127.0.0.1:{self.port}", f"http://localhost:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.go_on.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    # --- for tests

    def fail(self, where: str, do: str = "status", **settings) -> Fault:
        """Add a fault."""
        self.faults.append(Fault(where, do, **settings))
        return self.faults[-1]

    def seen(self, where: str) -> list[Request]:
        """The requests whose "METHOD /path" fits."""
        return [request for request in self.requests if re.search(where, f"{request.method} {request.path}")]

    def bytes_received(self, where: str = "PUT /storage/") -> int:
        """Bytes that came in bodies; by default those of large files."""
        return sum(request.received for request in self.seen(where))

    def bytes_sent(self, where: str = "GET /storage/") -> int:
        """Bytes that went out in bodies; by default those of large files."""
        return sum(request.sent for request in self.seen(where))

    def forget(self) -> None:
        """No requests, no faults."""
        self.requests.clear()
        self.faults.clear()

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """The contents of a repository's files, without the .gitattributes that the Hub makes."""
        repo = self.repo(name, kind)
        tree = repo.commits[repo.find(revision)].tree
        return {
            path: self.storage[entry.sha256] if entry.sha256 else entry.content
            for path, entry in tree.items()
            if path != ".gitattributes"
        }

    def history(self, name: str, revision: str = "main", kind: str = "models") -> list[str]:
        """Messages of the commits of a branch, newest first."""
        repo = self.repo(name, kind)
        oid, messages = repo.find(revision), []
        while oid is not None:
            messages.append(repo.commits[oid].message)
            oid = repo.commits[oid].parent
        return messages

    # --- requests

    def next_fault(self, route: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.where, route):
                    fault.seen += 1
                    if fault.first <= fault.seen < fault.first + fault.times:
                        return fault
        return None

    def respond(self, request: Request, body: bytes) -> Reply:
        with self.lock:
            try:
                for method, pattern, name in ROUTES:
                    match = re.fullmatch(pattern, request.path)
                    if match and method == request.method:
                        groups = {key: unquote(value) for key, value in match.groupdict().items() if value}
                        return getattr(self, name)(request, body, **groups)
                raise HubError(404, None, f"no such page: {request.method} {request.path}")
            except HubError as error:
                headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
                return as_json({"error": str(error), **error.more}, error.status, **headers)

    def user(self, request: Request) -> str | None:
        """Who asks; None: nobody in particular."""
        if request.authorization is None:
            return None
        token = request.authorization.removeprefix("Bearer ")
        if token not in self.users:
            # A server that repeats the token: it must not get into messages.
            raise HubError(401, None, f"Invalid credentials in Authorization header: {token}")
        return self.users[token]

    def known(self, request: Request, kind: str, name: str, write: bool = False) -> Repo:
        """A repository that the asking user may read (or write)."""
        user = self.user(request)
        repo = self.repos.get((kind, name))
        owner = name.split("/")[0]
        if repo is None or (repo.private and user != owner):
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise HubError(403, None, f"You don't have the rights to write to {name}")
        return repo

    # --- API: repositories

    def harnesses(self, request, body):
        return as_json({})

    def whoami(self, request, body):
        user = self.user(request)
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        return as_json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, request, body):
        asked = json.loads(body)
        user = self.user(request)
        owner = asked.get("organization") or user
        kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        if owner != user:
            raise HubError(403, None, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner}")
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.repos:
            raise HubError(409, None, f"You already created this {kind[:-1]} repo", url=url)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        repo = self.repos[kind, name] = Repo(name, private)
        attributes = small_entry(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        repo.branches["main"] = repo.add({".gitattributes": attributes}, "initial commit", None)
        return as_json({"url": url, "name": name, "id": name})

    def info(self, request, body, kind, repo, revision="main"):
        known = self.known(request, kind, repo)
        oid = known.find(revision)
        files = [{"rfilename": path} for path in sorted(known.commits[oid].tree)]
        return as_json(
            {
                "_id": "1", "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": oid, "tags": [],
                "private": known.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0,
                "lastModified": DATE, "createdAt": DATE, "siblings": files,
            }
        )  # fmt: skip

    def refs(self, request, body, kind, repo):
        known = self.known(request, kind, repo)
        heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in known.branches.items()]
        pulls = [{"name": n, "ref": n, "targetCommit": oid} for n, oid in known.pull_requests.items()]
        return as_json({"branches": heads, "converts": [], "tags": [], "pullRequests": pulls})

    def branch(self, request, body, kind, repo, branch):
        known = self.known(request, kind, repo, write=True)
        if branch in known.branches:
            raise HubError(409, None, f"Reference already exists: {branch}")
        known.branches[branch] = known.find(json.loads(body or b"{}").get("startingPoint", "main"))
        return as_json({})

    # --- API: trees

    def shown(self, path: str, entry: Entry) -> dict:
        shown = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.sha256:
            shown["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
        return shown

    def tree(self, request, body, kind, repo, revision, path=""):
        tree = self.entries(request, kind, repo, revision)
        prefix = f"{path}/" if path else ""
        inside = {name: entry for name, entry in tree.items() if name.startswith(prefix)}
        shown = {}
        for name, entry in sorted(inside.items()):
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                shown[folder] = {"type": "directory", "path": folder, "size": 0, "oid": git_sha1(folder.encode())}
            shown[name] = self.shown(name, entry)
        if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            shown = {name: each for name, each in shown.items() if "/" not in name.removeprefix(prefix)}
        listed, start = list(shown.values()), int(request.query.get("cursor", ["0"])[0])
        end = start + self.page_size
        headers = {}
        if end < len(listed):
            query = "&".join(f"{key}={values[0]}" for key, values in request.query.items() if key != "cursor")
            headers["Link"] = f'<{self.url}{request.path}?{query}&cursor={end}>; rel="next"'
        return as_json(listed[start:end], **headers)

    def paths_info(self, request, body, kind, repo, revision):
        tree = self.entries(request, kind, repo, revision)
        wanted = parse_qs(body.decode())["paths"]
        return as_json([self.shown(path, tree[path]) for path in wanted if path in tree])

    def entries(self, request, kind, repo, revision) -> dict[str, Entry]:
        known = self.known(request, kind, repo)
        return known.commits[known.find(revision)].tree

    # --- API: commits

    def validate_yaml(self, request, body):
        content = json.loads(body)["content"]
        head = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        if head is None:
            return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        try:
            yaml.safe_load(head.group(1))
        except yaml.YAMLError as error:
            return as_json({"errors": [{"message": f"not valid YAML: {error}"}], "warnings": []}, 400)
        return as_json({"errors": [], "warnings": []})

    def preupload(self, request, body, kind, repo, revision):
        tree = self.entries(request, kind, repo, revision)
        self.known(request, kind, repo, write="create_pr" not in request.query)
        ignored = tree[".gitignore"].content.decode().split() if ".gitignore" in tree else []
        files = []
        for asked in json.loads(body)["files"]:
            sample, path = base64.b64decode(asked["sample"]), asked["path"]
            large = path.endswith((".safetensors", ".parquet")) or b"\0" in sample
            there = tree.get(path)
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": path in ignored,
                    "oid": (there.sha256 or there.oid) if there else None,
                }
            )
        return as_json({"files": files})

    def commit(self, request, body, kind, repo, revision):
        proposed = "create_pr" in request.query
        known = self.known(request, kind, repo, write=not proposed)
        parent = known.find(revision)
        tree, summary = dict(known.commits[parent].tree), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
                if value.get("parentCommit") not in (None, parent):
                    raise HubError(412, None, "the branch has moved on")
            elif item["key"] == "file":
                tree[value["path"]] = small_entry(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.storage:
                    raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                tree[value["path"]] = large_entry(value["oid"], len(self.storage[value["oid"]]))
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise HubError(400, None, f"unknown operation {item['key']}")
        oid = known.add(tree, summary, parent)
        page = f"{self.url}/{'' if kind == 'models' else kind + '/'}{repo}"
        reply = {"commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "success": True}
        if proposed:
            number = len(known.pull_requests) + 1
            known.pull_requests[f"refs/pr/{number}"] = oid
            reply["pullRequestUrl"] = f"{page}/discussions/{number}"
        elif revision in known.branches:
            known.branches[revision] = oid
        else:
            known.pull_requests[revision] = oid
        return as_json(reply)

    # --- large files

    def lfs_batch(self, request, body, repo, kind="models"):
        self.known(request, kind, repo)
        objects = []
        for asked in json.loads(body)["objects"]:
            sha256, size = asked["oid"], asked["size"]
            shown = {"oid": sha256, "size": size, "authenticated": True}
            if sha256 not in self.storage:
                upload = {"href": f"{self.storage_url}/storage/{sha256}", "header": {}}
                if self.part_size and size > self.part_size:
                    count = -(-size // self.part_size)
                    upload = {"href": f"{self.url}/complete/{sha256}", "header": {"chunk_size": str(self.part_size)}}
                    for n in range(1, count + 1):
                        upload["header"][str(n)] = f"{self.storage_url}/storage/{sha256}/{n}"
                shown["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/verify"}}
            objects.append(shown)
        return as_json({"transfer": "basic", "objects": objects})

    def store(self, request, body, sha256, part=None):
        if part is None:
            self.storage[sha256] = body
        else:
            self.parts[sha256, int(part)] = body
        return Reply(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, request, body, sha256):
        parts = [self.parts[sha256, part["partNumber"]] for part in json.loads(body)["parts"]]
        self.storage[sha256] = b"".join(parts)
        return as_json({})

    def verify(self, request, body):
        asked = json.loads(body)
        stored = self.storage.get(asked["oid"])
        if stored is None or len(stored) != asked["size"] or hashlib.sha256(stored).hexdigest() != asked["oid"]:
            self.storage.pop(asked["oid"], None)
            raise HubError(400, None, "the file that arrived is not the one that was announced")
        return as_json({})

    # --- downloads

    def resolve(self, request, body, repo, revision, path, kind="models"):
        known = self.known(request, kind, repo)
        oid = known.find(revision)
        tree = known.commits[oid].tree
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if path not in tree:
            return Reply(b"", 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        entry = tree[path]
        if entry.sha256:
            headers.update({"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'})
            headers.update({"Location": f"{self.storage_url}/storage/{entry.sha256}", "ETag": f'"{entry.oid}"'})
            return Reply(b"", 302, headers)
        return in_range(request, entry.content, {**headers, "ETag": f'"{entry.oid}"'})

    def stored(self, request, body, sha256):
        if sha256 not in self.storage:
            raise HubError(404, None, "no such object")
        return in_range(request, self.storage[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def in_range(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """The part of a file that was asked for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "")
    if match is None:
        return Reply(content, 200, headers)
    start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return Reply(content[start : end + 1], 206, headers)


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"  # of models it has no kind
ROUTES = [
    ("GET", r"/api/agent-harnesses", "harnesses"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", API, "info"),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"{API}/refs", "refs"),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"{API}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/storage/(?P<sha256>[0-9a-f]{64})(?:/(?P<part>\d+))?", "store"),
    ("POST", r"/complete/(?P<sha256>[0-9a-f]{64})", "complete"),
    ("POST", r"/verify", "verify"),
    ("GET", r"/storage/(?P<sha256>[0-9a-f]{64})", "stored"),
    ("GET", rf"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client to confirm its first packet

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self) -> None:
        hub: HubServer = self.server.hub
        url = urlsplit(self.path)
        request = Request(
            self.command, url.path, parse_qs(url.query), self.headers["Authorization"], self.headers["Range"]
        )
        hub.requests.append(request)
        fault = hub.next_fault(f"{request.method} {request.path}")
        do = fault.do if fault else None
        if do == "hang up":
            return self.hang_up()
        if do == "stall":
            hub.stalled.set()
            hub.go_on.wait(60)
        body = self.read_body(request, fault.at if do == "cut" and self.command in ("PUT", "POST") else None)
        if body is None:
            return self.hang_up()
        if do == "status":
            reply = as_json({"error": fault.message}, fault.status, **fault.headers)
        else:
            asked = Request(**{**vars(request), "method": "GET"}) if self.command == "HEAD" else request
            reply = hub.respond(asked, body)
        if do == "lose answer":
            return self.hang_up()
        if do == "tamper":
            reply.body = bytes(byte ^ 1 for byte in reply.body)
        request.status = reply.status
        self.send(request, reply, fault.at if do == "cut" else None)

    def read_body(self, request: Request, limit: int | None) -> bytes | None:
        """The body; None if it ended too early, or was cut off."""
        body = bytearray()
        if "chunked" in (self.headers["Transfer-Encoding"] or ""):
            while length := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            request.received = len(body)
            return bytes(body)
        left = int(self.headers["Content-Length"] or 0)
        while left:
            block = self.rfile.read1(min(left, 65536, (limit - len(body)) or 1 if limit is not None else 65536))
            if not block:
                return None
            body += block
            left -= len(block)
            request.received = len(body)
            if limit is not None and len(body) >= limit:
                return None
        return bytes(body)

    def send(self, request: Request, reply: Reply, limit: int | None) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = reply.body if limit is None else reply.body[:limit]
        request.sent = len(body)
        self.wfile.write(body)
        if limit is not None:
            self.wfile.flush()
            self.close_connection = True  # without a reset, so that what was sent arrives

    def hang_up(self) -> None:
        """Close the connection as a broken line does: at once, without goodbye."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *arguments) -> None:
        pass

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass  # the connection is closed
