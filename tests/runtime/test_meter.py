import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ray_snake.runtime import meter

COUNTER = 'ray_object_manager_bytes{NodeAddress="10.0.0.1",Type="Received"} 1.5e+06\n'
OTHER = 'ray_object_manager_bytes{NodeAddress="10.0.0.1",Type="Pushed"} 7\n'


@pytest.fixture
def raylet():
    """Answers as a raylet does, but for the bytes of `owed`, which it breaks off before."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + self.server.owed))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.text, server.owed = COUNTER + OTHER, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def received(server):
    return meter._received(f"http://127.0.0.1:{server.server_port}/metrics")


def test_reads_what_was_received(raylet):
    assert received(raylet) == 1_500_000


def test_who_has_received_nothing_has_no_counter_yet(raylet):
    raylet.text = OTHER
    assert received(raylet) == 0


def test_a_machine_that_goes_in_the_middle_of_its_answer_is_left_out(raylet):
    raylet.owed = 10
    assert received(raylet) is None


def test_a_machine_that_is_gone_is_left_out():
    assert meter._received("http://127.0.0.1:1/metrics") is None
