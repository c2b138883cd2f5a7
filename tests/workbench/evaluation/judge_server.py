"""An OpenAI-compatible endpoint that answers as it is told, and notes what it was asked."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Judge:
    """What the endpoint does.

    `answer` makes a verdict from a request's body; it may return a pair instead, an HTTP status and a text, or what is
    else in a choice, such as `{"finish_reason": "length"}`.
    """

    def __init__(self, answer=lambda _: "Rating: [[7]]"):
        self.answer = answer
        self.asked = []
        self.keys = []
        self.url = ""


@contextmanager
def serving(judge):
    """Serve until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(body)
            judge.keys.append(self.headers["Authorization"])
            said = judge.answer(body)
            changes = said if isinstance(said, dict) else {}
            status, text = said if isinstance(said, tuple) else (200, changes.pop("content", said))
            message = {"role": "assistant", "content": text, "refusal": changes.pop("refusal", None)}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            whole["choices"] = [{"index": 0, "finish_reason": "stop", "message": message, **changes}]
            content = json.dumps(whole).encode() if status == 200 else text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
