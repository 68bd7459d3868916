"""A W&B server on this machine's loopback: what `wandb sweep`, `wandb agent` and a run ask for, and nothing more.

It speaks the GraphQL operations of wandb 0.31 by name. An operation that it does not know answers an error and is
kept in `WandbServer.unknown`, so that a test can show what a newer client wants.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

ENTITY = "tester"
_Variables = dict[str, Any]


@dataclass
class Run:
    """What one run has sent.

    Attributes:
        sweep: id of the sweep that it belongs to, or None.
        config: the hyperparameters, as W&B keeps them: key to value.
        starts: how many processes have begun to log to it.
        history: the rows, in the order of their offsets.
        summary: the last summary.
        files: uploaded files, by path in the run.
        exit_code: of its process, or None while it runs.
    """

    project: str
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    starts: int = 0
    lines: dict[int, str] = field(default_factory=dict)  # by offset: a client that retries sends a line again
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]

    def column(self, key: str) -> list[Any]:
        """Values of one key, of the rows that have it."""
        return [row[key] for row in self.history if key in row]


class WandbServer:
    """State of the server, and the answers to GraphQL operations.

    Args:
        suggestions: the configurations that an agent is given, one after the other; then it is told to exit.

    Attributes:
        sweeps: the files given to ``wandb sweep``, by the id they got.
        projects: of the sweeps, by id.
        runs: by id, in the order in which they were handed out or began.
        requests: how many came, of any kind.
        unknown: names of the operations that were refused.
    """

    def __init__(self, suggestions: Sequence[dict[str, Any]] = ()) -> None:
        self.suggestions = list(suggestions)
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.handed_out: list[str] = []
        self.requests = 0
        self.unknown: list[str] = []
        self.url = ""
        self._lock = threading.Lock()
        self._answers: dict[str, Callable[[_Variables], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": {"organization": None}},
            "UpsertSweep": self._upsert_sweep,
            "SweepWithRuns": self._sweep_with_runs,
            "CreateAgent": lambda _: {"createAgent": {"agent": {"id": "agent-1"}}},
            "Heartbeat": self._heartbeat,
            "RunResumeStatus": lambda _: {"model": None},
            "UpsertBucket": self._upsert_run,
            "CreateRunFiles": self._create_run_files,
        }

    def graphql(self, query: str, variables: _Variables) -> dict[str, Any]:
        """The answer to one request; unknown operations are recorded and refused."""
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else query.strip()
        with self._lock:
            if name not in self._answers:
                self.unknown.append(name)
                return {"data": None, "errors": [{"message": f"this test server does not know {name}"}]}
            return {"data": self._answers[name](variables)}

    def stream(self, run_id: str, message: dict[str, Any]) -> None:
        """Take rows, the summary and the exit code from a message of the file stream."""
        with self._lock:
            run = self.runs[run_id]
            files = message.get("files") or {}
            history = files.get("wandb-history.jsonl") or {"offset": 0, "content": []}
            for position, line in enumerate(history["content"]):
                run.lines[history["offset"] + position] = line
            for line in (files.get("wandb-summary.json") or {"content": []})["content"]:
                run.summary = json.loads(line)
            if message.get("complete"):
                run.exit_code = message["exitcode"]

    def keep(self, run_id: str, path: str, content: bytes) -> None:
        """Keep an uploaded file."""
        with self._lock:
            self.runs[run_id].files[path] = content

    # -- operations ----------------------------------------------------------------------------------------------

    def _viewer(self, _: _Variables) -> dict[str, Any]:
        user = {"id": "user-1", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}"}
        return {"viewer": {**user, "teams": {"edges": []}}}

    def _upsert_sweep(self, variables: _Variables) -> dict[str, Any]:
        name = variables["id"] or f"sweep{len(self.sweeps) + 1}"
        self.sweeps[name] = yaml.safe_load(variables["config"])
        self.projects[name] = variables["projectName"]
        sweep = {"name": name, "project": _project(self.projects[name])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _sweep_with_runs(self, variables: _Variables) -> dict[str, Any]:
        name = variables["sweep"]
        if name not in self.sweeps or variables["project"] != self.projects[name]:
            return {"project": {"sweep": None}}
        sweep = {"id": name, "name": name, "config": yaml.safe_dump(self.sweeps[name]), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _heartbeat(self, variables: _Variables) -> dict[str, Any]:
        commands: list[dict[str, Any]] = []
        if not json.loads(variables["runState"]):  # `exit` would kill what still runs
            if len(self.handed_out) < len(self.suggestions):
                values = self.suggestions[len(self.handed_out)]
                (sweep,) = self.sweeps  # one a test
                run_id = f"run{len(self.handed_out) + 1}"
                self.handed_out.append(run_id)
                commands = [
                    {
                        "type": "run",
                        "run_id": run_id,
                        "program": self.sweeps[sweep].get("program"),
                        "args": {key: {"value": value} for key, value in values.items()},
                    }
                ]
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _upsert_run(self, variables: _Variables) -> dict[str, Any]:
        name = variables["name"]
        is_new = name not in self.runs
        run = self.runs.setdefault(name, Run(project=variables["project"], sweep=variables.get("sweep")))
        if variables.get("host"):  # only the first message of a process says where it runs
            run.starts += 1
        if variables.get("config"):
            config = json.loads(variables["config"])
            run.config = {key: entry["value"] for key, entry in config.items() if key != "_wandb"}
        bucket = {
            "id": name, "name": name, "displayName": name, "description": None, "config": "{}", "historyLineCount": 0,
            "sweepName": run.sweep, "project": _project(run.project),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _create_run_files(self, variables: _Variables) -> dict[str, Any]:
        address = f"{self.url}/uploads/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


def _project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


class _Handler(BaseHTTPRequestHandler):
    state: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self._body()
        if self.path.startswith("/sdk/otel/"):  # telemetry of the client itself
            self._answer({})
            return
        body = json.loads(content or b"{}")
        if self.path == "/graphql":
            self._answer(self.state.graphql(body["query"], body.get("variables") or {}))
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.state.stream(stream.group(1), body)
            self._answer({"exitcode": None, "limits": {}})
        else:
            self.state.unknown.append(f"POST {self.path}")
            self._answer({}, status=404)

    def do_PUT(self) -> None:
        content = self._body()
        if upload := re.fullmatch(r"/uploads/([^/]+)/(.+)", unquote(self.path.partition("?")[0])):
            self.state.keep(upload.group(1), upload.group(2), content)
            self._answer({})
        else:
            self.state.unknown.append(f"PUT {self.path}")
            self._answer({}, status=404)

    def do_GET(self) -> None:
        self._body()
        self.state.unknown.append(f"GET {self.path}")
        self._answer({}, status=404)

    def log_message(self, format: str, *arguments: object) -> None:  # the base class names it so
        """Keep quiet."""

    def _body(self) -> bytes:
        self.state.requests += 1
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that hang up, as a process does at its end."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(suggestions: Sequence[dict[str, Any]] = ()) -> Iterator[WandbServer]:
    """A server in a thread of its own, shut down on leaving."""
    state = WandbServer(suggestions)
    handler = type("Handler", (_Handler,), {"state": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
