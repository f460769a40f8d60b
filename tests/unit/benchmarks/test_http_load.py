import itertools
import math
import socketserver
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from benchmarks.http_load import Answer, Load, LoadGenerator, percentile, post

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0.01\r\ncontent-length: 0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


class Server(socketserver.ThreadingTCPServer):
    """Answers the n-th request with what `script(n)` returns, piece by piece."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.numbers = itertools.count()
        self.connections = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.server.connections += 1
        while head := self.rfile.readline():
            while (line := self.rfile.readline()) != b"\r\n":
                head += line
            length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
            self.rfile.read(length)
            pieces = self.server.script(next(self.server.numbers))
            for piece in pieces:
                self.wfile.write(piece)
            if not pieces or CLOSING in pieces:
                return


@contextmanager
def serving(script):
    with Server(script) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with LoadGenerator(server.server_address, patience=5) as generator:
            yield server, generator
        server.shutdown()


def requests(server):
    return itertools.repeat(post("/", b"{}", server.server_address))


def statuses(load):
    return Counter(answer.status for answer in load.answers)


def in_order(load):
    return sorted(load.answers, key=lambda answer: answer.due)


def moments(load):
    dues = [answer.due for answer in in_order(load)]
    return [round(due - dues[0], 6) for due in dues]


def test_a_closed_loop_keeps_its_connections_and_counts_within_its_turn():
    marks = []
    with serving(lambda _: [GOOD]) as (server, generator):
        load = generator.closed_loop(
            requests(server), 3, 0.2, warm_up=0.05, mark=lambda: marks.append(time.perf_counter())
        )
    assert server.connections == 3
    assert set(statuses(load)) == {200}
    assert load.rate == pytest.approx(len(load.answers) / load.seconds)
    assert all(marks[0] <= answer.done <= marks[1] for answer in load.answers)


@pytest.mark.parametrize(
    "pieces",
    [
        [GOOD],
        [GOOD[:20], GOOD[20:]],
        [GOOD[:-1], GOOD[-1:]],
        [GOOD.replace(b"Content-Length", b"content-length")],
    ],
)
def test_an_answer_is_whole_when_its_body_is(pieces):
    with serving(lambda _: pieces) as (server, generator):
        load = generator.open_loop(requests(server), 200, 0.1)
    assert set(statuses(load)) == {200}


def test_a_connection_that_breaks_is_an_answer_that_is_not_good_and_another_is_opened():
    with serving(lambda number: [] if number % 2 else [GOOD]) as (server, generator):
        load = generator.open_loop(requests(server), 200, 0.2)
    assert statuses(load)[0] == len(load.answers) // 2
    assert len(load.good) == statuses(load)[200] > 0


def test_a_connection_that_the_server_closes_is_not_used_again():
    with serving(lambda _: [CLOSING]) as (server, generator):
        load = generator.open_loop(requests(server), 100, 0.2)
    assert set(statuses(load)) == {200}
    assert server.connections == len(load.answers)


def test_an_open_loop_does_not_wait_for_answers():
    held = threading.Event()

    def script(number):
        # Nobody is answered before three are here.
        if number >= 2:
            held.set()
        held.wait(5)
        return [GOOD]

    with serving(script) as (server, generator):
        load = generator.open_loop(requests(server), 100, 0.5)
    assert server.connections >= 3
    first = in_order(load)[0]
    third = sorted(answer.sent for answer in load.answers)[2]
    assert first.done >= third


def test_latency_counts_from_the_moment_a_request_was_to_be_sent():
    answer = Answer(due=1.0, sent=3.0, done=3.5, status=200)
    assert answer.seconds == 2.5
    assert Load([answer], 1.0, 0.0).lateness(99) == 2.0


def test_who_is_refused_comes_back_once_and_in_the_place_of_another():
    with serving(lambda _: [REFUSED]) as (server, generator):
        bodies = (b"%d" % number for number in itertools.count())
        different = (post("/", body, server.server_address) for body in bodies)
        load = generator.open_loop(different, 300, 0.3)
    fresh = [answer for answer in load.answers if not answer.is_return]
    returned = [answer for answer in load.answers if answer.is_return]
    assert Counter(one.request for one in returned) == Counter(one.request for one in fresh)
    assert all(answer.retry_after == 0.01 for answer in load.answers)
    # The turn has the same moments as one in which nobody is refused.
    with serving(lambda _: [GOOD]) as (server, generator):
        usual = generator.open_loop(requests(server), 300, 0.3)
    assert moments(usual) == moments(load)[: len(usual.answers)]
    assert any(answer.is_return for answer in in_order(load)[: len(usual.answers)])


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (1, 1), (50, 50), (51, 51), (99, 99), (100, 100)]
)
def test_a_percentile_is_one_of_the_values(percent, value):
    assert percentile(range(100, 0, -1), percent) == value


def test_of_nothing_there_is_no_percentile():
    assert math.isnan(percentile([], 50))
