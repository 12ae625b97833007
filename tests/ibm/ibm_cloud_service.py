"""The stand-in of IBM's service: what it answers, over HTTP."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ibm_cloud_jobs import BadJobError, ExecutorJob, Outcome
from ibm_cloud_records import (
    DEVICES,
    FINAL,
    INSTANCE,
    KINDS,
    OPEN_PLAN_SECONDS,
    PLANS,
    STATUS,
    TOKEN,
    Device,
    Fault,
    Job,
    NoAnswer,
    Refused,
    Session,
    Settings,
    stamp,
)


class Cloud:
    """The state of the service, and its answers."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.jobs_before = settings, 0
        self.lock = threading.RLock()
        self.devices = {name: Device(name, fake, state) for name, (fake, state) in DEVICES.items()}
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.tokens: set[str] = set()
        self.released = threading.Event()
        found: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", "/identity/token", self.issue_token),
            ("POST", "/v3/resources/search", self.search),
            ("GET", "/plan-(.+)", self.catalogue),
            ("GET", "/instances/usage", self.usage),
            ("GET", "/backends", self.list_devices),
            ("GET", "/backends/([^/]+)/configuration", lambda _, name: self.device(name).configuration),
            ("GET", "/backends/([^/]+)/properties", lambda _, name: self.device(name).properties),
            ("GET", "/backends/([^/]+)/status", self.device_status),
            ("POST", "/jobs", self.create_job),
            ("GET", "/jobs", self.list_jobs),
            ("GET", "/jobs/([^/]+)", self.show_job),
            ("DELETE", "/jobs/([^/]+)", self.delete_job),
            ("GET", "/jobs/([^/]+)/results", lambda _, name: self.results(self.job(name))),
            ("GET", "/jobs/([^/]+)/metrics", lambda _, name: self.job(name).metrics()),
            ("GET", "/jobs/([^/]+)/logs", lambda _, name: self.job(name).outcome.reason),
            ("PUT", "/jobs/([^/]+)/tags", self.tag_job),
            ("POST", "/jobs/([^/]+)/cancel", self.cancel_job),
            ("POST", "/sessions", self.create_session),
            ("GET", "/sessions/([^/]+)", lambda _, name: self.session(name).answer()),
            ("PATCH", "/sessions/([^/]+)", self.close_session),
            ("DELETE", "/sessions/([^/]+)/close", self.cancel_session),
            ("GET", "/_control/jobs", lambda query: [job.record() for job in self.jobs_since(query.since)]),
            ("GET", "/_control/requests", lambda query: self.requests[query.since :]),
            ("GET", "/_control/counts", lambda _: (len(self.jobs), len(self.requests))),
            ("POST", "/_control/settings", self.set_up),
            ("POST", "/_control/faults", lambda query: self.faults.append(Fault(**query.json))),
            ("POST", "/_control/clear", self.clear),
            ("POST", "/_control/release", self.release),
            ("POST", "/_control/devices/([^/]+)", self.set_device),
            ("POST", "/_control/sessions/([^/]+)/close", self.close_session),
            ("POST", "/_control/sessions/([^/]+)/expire", self.expire_session),
        ]
        self.routes = [(method, re.compile(path), answer) for method, path, answer in found]

    def answer(self, query: Query) -> Any:
        """The body of the answer to a request; ``None`` for an empty one.

        Raises:
            Refused: If the answer is an error.
            NoAnswer: If there is none.
        """
        self.suffer(query, late=False)
        open_to_all = query.path.startswith(("/_control", "/identity"))
        if not open_to_all and query.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise Refused(401, 1209, "Authentication is invalid.")
        for method, path, answer in self.routes:
            if method == query.method and (match := path.fullmatch(query.path)):
                # A simulation must not hold up other requests: create_job locks what it changes.
                with nullcontext() if answer == self.create_job else self.lock:
                    body = answer(query, *match.groups())
                break
        else:
            raise Refused(404, 1601, f"There is no {query.method} {query.path}.")
        self.suffer(query, late=True)
        return body

    def suffer(self, query: Query, *, late: bool) -> None:
        """Lets the first fault that matches strike; one that only delays leaves the request to the next."""
        for fault in [] if query.path.startswith("/_control") else list(self.faults):
            with self.lock:
                struck = fault.strikes(query.method, query.path, late)
            if struck and KINDS[fault.kind].action == "delay":
                self.released.wait(fault.seconds)
            elif struck:
                return self.strike(query, fault)
        return None

    def strike(self, query: Query, fault: Fault) -> None:
        """Does to the request what the fault says, or leaves it in ``query.fault`` for what comes next."""
        kind = KINDS[fault.kind]
        if kind.action in ("error", "echo", "page"):
            status = fault.status or kind.status
            said = fault.says or f"A fault that the test ordered: {fault.kind}."
            if kind.action == "echo":  # as a proxy does that is asked to help with debugging
                said = f"You sent {query.method} {dict(query.headers)} {query.body!r}"
            error = Refused(status, status, said, fault.retry_after)
            if kind.action == "page":
                error.body = f"<!DOCTYPE html><html><head><title>{said}</title></head><body>Log in.</body></html>"
            raise error
        if kind.action == "stall":
            self.released.wait(fault.seconds)
        if kind.action in ("drop", "stall"):
            raise NoAnswer
        query.fault, query.action = fault, kind.action

    # The account ------------------------------------------------------------------------------------------------------

    def issue_token(self, query: Query) -> dict[str, Any]:
        if query.form.get("apikey") != TOKEN:
            raise Refused(400, 400, "BXNIM0415E: Provided API key could not be found.")
        now, life = int(time.time()), self.settings.token_seconds
        claims = {"iat": now, "exp": now + life, "jti": secrets.token_hex(8)}
        parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
        token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, b"unsigned"))
        self.tokens.add(token)
        answer = {"access_token": token, "refresh_token": "not_supported", "token_type": "Bearer"}
        return answer | {"expires_in": life, "expiration": now + life}

    def search(self, _: Query) -> dict[str, Any]:
        item = {"crn": INSTANCE, "name": "instance", "tags": [], "doc": {"extensions": [{"type": "allocation"}]}}
        return {"items": [item | {"service_plan_unique_id": f"plan-{self.settings.plan}"}], "limit": 100}

    def catalogue(self, _: Query, plan: str) -> dict[str, Any]:
        words, metadata = {"display_name": plan.capitalize()}, {"pricing": {"type": PLANS[plan]}}
        return {"overview_ui": {"en": words}, "metadata": metadata}

    def usage(self, _: Query) -> dict[str, Any]:
        used = self.settings.used_seconds + sum(job.seconds for job in self.jobs_since(self.jobs_before))
        answer = {"instance_id": INSTANCE, "plan_id": self.settings.plan, "usage_consumed_seconds": used}
        if self.settings.plan != "open":
            return answer | {"usage_limit_reached": False}
        reached = used >= OPEN_PLAN_SECONDS
        return answer | {"usage_limit_seconds": OPEN_PLAN_SECONDS, "usage_limit_reached": reached}

    # Devices ----------------------------------------------------------------------------------------------------------

    def device(self, name: str) -> Device:
        if name not in self.devices:
            raise Refused(404, 1215, f"Backend {name} not found.")
        return self.devices[name]

    def list_devices(self, _: Query) -> dict[str, Any]:
        devices = []
        for device in self.devices.values():
            answer = {"name": device.name, "qubits": device.configuration["n_qubits"]}
            devices.append(answer | {"queue_length": self.queue_length(device), "status": {"name": device.state}})
        return {"devices": devices}

    def device_status(self, _: Query, name: str) -> dict[str, Any]:
        device = self.device(name)
        state, status = STATUS[device.state]
        answer = {"state": state, "status": status, "length_queue": self.queue_length(device)}
        return answer | {"backend_version": device.configuration["backend_version"]}

    def queue_length(self, device: Device) -> int:
        return sum(job.request["backend"] == device.name and job.status == "Queued" for job in self.jobs.values())

    def set_device(self, query: Query, name: str) -> None:
        device = self.device(name)
        if query.json.get("recalibrate"):
            device.properties["last_update_date"] = stamp(time.time())
        if state := query.json.get("state"):
            device.state = state
            for job in self.jobs.values():
                if job.request["backend"] == name and job.status == "Queued":
                    job.held = state != "online"

    # Jobs -------------------------------------------------------------------------------------------------------------

    def job(self, name: str) -> Job:
        if name not in self.jobs or self.jobs[name].deleted:
            raise Refused(404, 1291, f"Job not found. Job ID: {name}")
        return self.jobs[name]

    def jobs_since(self, count: int) -> list[Job]:
        return list(self.jobs.values())[count:]

    def create_job(self, query: Query) -> dict[str, Any]:
        request, action = query.json, query.action
        with self.lock:
            device = self.device(request["backend"])
            if action == "offline":
                device.state = "offline"
            self.enter_session(request.get("session_id"), closed=action == "close_session")
        if request["program_id"] != "executor":
            raise Refused(404, 1207, f"Program {request['program_id']} not found: this stand-in runs executor jobs.")
        try:
            job = ExecutorJob(request["params"])
        except BadJobError as error:
            raise Refused(400, 1211, str(error)) from error
        if action == "fail":
            outcome = Outcome(reason="The job failed because the test ordered it.", reason_code=9999)
        elif action == "over_time" or 0 < request.get("cost", 0) < job.seconds:
            outcome = Outcome(reason="Ran too long.", reason_code=1305)
        else:
            outcome = job.run(device.backend, noise=self.settings.noise == "device")
        created = time.time()
        ready = created + (query.fault.seconds if query.fault and action == "queue" else self.settings.queue_seconds)
        done = ready + self.settings.run_seconds
        made = Job(secrets.token_hex(10), request, job, outcome, created, ready, done)
        with self.lock:
            made.held, made.cancelled = device.state != "online", action == "cancel"
            self.jobs[made.id] = made
        return {"id": made.id, "backend": device.name}

    def show_job(self, query: Query, name: str) -> dict[str, Any]:
        return self.job(name).answer(with_params=query.first("exclude_params") != "true")

    def delete_job(self, _: Query, name: str) -> None:
        self.job(name).deleted = True

    def tag_job(self, query: Query, name: str) -> None:
        self.job(name).request["tags"] = query.json["tags"]

    def cancel_job(self, _: Query, name: str) -> None:
        job = self.job(name)
        if job.status in FINAL:
            raise Refused(409, 1293, "The job is in a final state.")
        job.cancelled = True

    def results(self, job: Job) -> str | None:
        return {"Completed": job.outcome.result, "Failed": job.outcome.reason}.get(job.status)

    def list_jobs(self, query: Query) -> dict[str, Any]:
        wanted: dict[str, Callable[[Job, str], bool]] = {
            "pending": lambda job, value: (job.status not in FINAL) == (value == "true"),
            "backend": lambda job, value: job.request["backend"] == value,
            "program": lambda job, value: job.request["program_id"] == value,
            "session_id": lambda job, value: job.request.get("session_id") == value,
            "created_after": lambda job, value: job.created >= datetime.fromisoformat(value).timestamp(),
            "created_before": lambda job, value: job.created <= datetime.fromisoformat(value).timestamp(),
        }
        asked = [(test, value) for name, test in wanted.items() if (value := query.first(name)) is not None]
        tags = set(query.arguments.get("tags", []))
        found = [job for job in self.jobs.values() if not job.deleted and tags <= set(job.request.get("tags", []))]
        found = [job for job in found if all(test(job, value) for test, value in asked)]
        if query.action == "hide":
            found = []
        if query.first("sort") != "ASC":
            found.reverse()
        offset, limit = int(query.first("offset") or 0), int(query.first("limit") or 200)
        page = [job.answer(with_params=False) for job in found[offset : offset + limit]]
        return {"jobs": page, "count": len(found), "limit": limit, "offset": offset}

    # Sessions ---------------------------------------------------------------------------------------------------------

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            raise Refused(404, 1216, f"Session {name} not found.")
        return self.sessions[name]

    def enter_session(self, name: str | None, *, closed: bool) -> None:
        """Takes a job into its session, if it has one; with ``closed``, the session closes just before."""
        if name is None:
            return
        session = self.session(name)
        if closed:
            session.closed = time.time()
        if not session.accepts():
            raise Refused(400, 1217, "The session is closed.")
        session.activated, session.idle = session.activated or time.time(), False

    def create_session(self, query: Query) -> dict[str, Any]:
        mode = query.json.get("mode", "dedicated")
        if mode == "dedicated" and self.settings.plan == "open":
            raise Refused(400, 1352, "You are not authorized to run a session when using the open plan.")
        device = self.device(query.json["backend"])
        session = Session(secrets.token_hex(10), mode, device.name, query.json.get("max_ttl", 28800))
        self.sessions[session.id] = session
        return session.answer()

    def close_session(self, _: Query, name: str) -> None:
        session = self.session(name)
        session.closed = session.closed or time.time()

    def cancel_session(self, query: Query, name: str) -> None:
        self.close_session(query, name)
        for job in self.jobs.values():
            job.cancelled |= job.request.get("session_id") == name and job.status not in FINAL

    def expire_session(self, _: Query, name: str) -> None:
        self.session(name).idle = True

    # Control ----------------------------------------------------------------------------------------------------------

    def set_up(self, query: Query) -> None:
        self.settings, self.jobs_before = Settings(**query.json), len(self.jobs)

    def clear(self, query: Query) -> None:
        self.faults.clear()
        self.release(query)

    def release(self, _: Query) -> None:
        self.released.set()
        self.released = threading.Event()


class Query:
    """A request, and the fault that strikes it."""

    def __init__(self, method: str, target: str, headers: Any, body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.headers, self.body = method, headers, body
        self.path = re.sub("^/(api/v1|experimental)", "", parts.path)
        self.arguments = parse_qs(parts.query)
        self.fault: Fault | None = None
        self.action = ""

    @cached_property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}

    def first(self, name: str) -> str | None:
        return self.arguments.get(name, [None])[0]

    @property
    def since(self) -> int:
        return int(self.first("since") or 0)


class Handler(BaseHTTPRequestHandler):
    """HTTP around ``Cloud``."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body of an answer leave together
    disable_nagle_algorithm = True
    cloud: Cloud

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client died while it wrote
            self.close_connection = True
            return
        query = Query(self.command, self.path, self.headers, body)
        status, retry_after = 200, None
        try:
            answer = self.cloud.answer(query)
        except Refused as error:
            status, answer, retry_after = error.status, error.body, error.retry_after
        except NoAnswer:
            status, answer = 0, None
        except Exception as error:  # a mistake in this file: tests must see it as such
            status, answer = 501, {"errors": [{"code": 0, "message": f"The stand-in is wrong: {error!r}"}]}
        if not query.path.startswith("/_control"):
            self.cloud.requests.append((query.method, query.path, status))
        if status:
            self.reply(204 if answer is None and query.method != "GET" else status, answer, retry_after, query.action)
        else:
            self.hang_up()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def reply(self, status: int, answer: Any, retry_after: int | None, action: str) -> None:
        content = b"" if answer is None else answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        sent = content[: len(content) // 2] if action in ("cut", "garble") else content
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(content if action == "cut" else sent)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(sent)
        if action == "cut":
            self.wfile.flush()
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet: what was asked is in ``Cloud.requests``."""


class Server(ThreadingHTTPServer):
    """Many clients at once, any of which may be killed."""

    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    """Serves until the parent process or the time is gone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    for name, default in vars(Settings()).items():
        choices = {"plan": list(PLANS), "noise": ["none", "device"]}.get(name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices)
    options = vars(parser.parse_args())
    parent, end = os.getppid(), time.monotonic() + options["lifetime"]
    port = options.pop("port")
    Handler.cloud = Cloud(Settings(**options))
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.2)
    os._exit(0)
