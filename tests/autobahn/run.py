"""Runs the converted Autobahn cases against a WebSocket echo server.

    run.py <directory with the converted `cases` package> <ws://host:port/path> [--only 6.4] [--messages 1000] [--seconds 600] [--verbose]

Passes only if every case, and the way its connection was closed, is OK or INFORMATIONAL; NON-STRICT counts as failed. Prints the
failed cases, each with what was expected and what came, and ends with one line:

    autobahn: 517 passed, 0 failed (515 OK, 2 INFORMATIONAL)

Cases wait for a second or more, mostly for nothing to happen, so sixteen run side by side. The limits and timings of section 9 run
after them, one by one, because the client's own work there would disturb the clocks of the others. The cases of compression (12 and
13) send a thousand messages each, which takes the old library half an hour: `--messages` says how many are enough.
"""

import argparse
import codecs
import sys
import time
import warnings

warnings.simplefilter("ignore")  # the old library uses spellings that new Pythons complain about

import txaio

txaio.use_twisted()

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, connectWS
from autobahn.websocket import protocol as library
from twisted.internet import reactor

TOLERATED = ("OK", "INFORMATIONAL")
SIDE_BY_SIDE = 16
CONNECT_SECONDS = 5


def octets(text):
    """A case's text, whose characters are bytes, as bytes."""
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)


def text(octets):
    return bytes(octets).decode("latin-1")


class FastMasker:
    """Does what the library's masker does, a thousand times faster: 16 MiB in Python loops would outlast the cases' patience."""

    def __init__(self, mask, length=None):
        self.mask, self.at = bytes(mask), 0

    def pointer(self):
        return self.at

    def reset(self):
        self.at = 0

    def process(self, data):
        count = len(data)
        shift = self.at & 3
        mask = (self.mask[shift:] + self.mask[:shift]) * (count // 4 + 1)
        self.at += count
        masked = int.from_bytes(data, "big") ^ int.from_bytes(mask[:count], "big")
        return masked.to_bytes(count, "big")


class FastValidator:
    """Judges received text as the library's validator does, without its loop over every byte."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.total = 0

    def validate(self, octets):
        self.total += len(octets)
        try:
            self.decoder.decode(octets)
        except UnicodeDecodeError:
            return False, False, 0, self.total
        return True, not self.decoder.getstate()[0], len(octets), self.total


library.createXorMasker = FastMasker
library.Utf8Validator = FastValidator


class CaseProtocol(WebSocketClientProtocol):
    """The connection as a case sees it: text whose characters are bytes, and a few timers."""

    def connectionMade(self):
        self.connectionWasOpen = False
        self.createWirelog = False
        self.txFrameStats = {}
        self.sent = []
        self.spoilt = None
        super().connectionMade()

    def onOpen(self):
        self.connectionWasOpen = True
        self.runCase.onOpen()

    def onMessage(self, payload, isBinary):
        # Section 9 compares lengths only; an echo must also be what was sent.
        if self.factory.id.startswith("9.") and bytes(payload) != b"".join(self.sent):
            self.spoilt = "the echo differs from what was sent"
        self.sent = []
        self.runCase.onMessage(text(payload), isBinary)

    def onPong(self, payload):
        self.runCase.onPong(text(payload))

    def onClose(self, wasClean, code, reason):
        self.runCase.onClose(wasClean, code, reason)

    def connectionLost(self, reason):
        super().connectionLost(reason)
        try:
            self.runCase.onConnectionLost(self.failedByMe)
        except Exception as error:  # a defect of the conversion must fail its case, not stop the run
            self.spoilt = f"the case itself broke: {error!r}"
        self.factory.done(self.factory, self.runCase, self.spoilt)

    def sendFrame(self, opcode, payload=b"", fin=True, rsv=0, mask=None, payload_len=None, chopsize=None, sync=False):
        payload = octets(payload)
        if payload_len is not None:
            payload = (payload * (payload_len // len(payload) + 1))[:payload_len]
        if opcode in (0, 1, 2):
            self.sent.append(payload)
        super().sendFrame(opcode, payload, fin, rsv, mask, None, chopsize, sync)

    def sendMessage(self, payload, isBinary=False, fragmentSize=None, sync=False, doNotCompress=False):
        super().sendMessage(octets(payload), isBinary, fragmentSize, sync, doNotCompress)

    def sendMessageFrameData(self, payload, sync=False):
        return super().sendMessageFrameData(octets(payload), sync)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        super().sendCloseFrame(code, octets(reasonUtf8) if reasonUtf8 is not None else None, isReply)

    def logTxFrame(self, frameHeader, payload, repeatLength, chopsize, sync):
        self.txFrameStats[frameHeader.opcode] = self.txFrameStats.get(frameHeader.opcode, 0) + 1

    def logRxFrame(self, frameHeader, payload):
        pass

    def enableWirelog(self, enable):
        pass

    def continueLater(self, delay, then, tag=None):
        reactor.callLater(delay, lambda: self.state != self.STATE_CLOSED and then())

    def killAfter(self, delay):
        reactor.callLater(delay, lambda: self.state != self.STATE_CLOSED and self.failConnection())

    def closeAfter(self, delay):
        reactor.callLater(delay, lambda: self.state != self.STATE_CLOSED and self.sendClose())


class CaseFactory(WebSocketClientFactory):
    """One connection for one case."""

    def __init__(self, url, case, done):
        super().__init__(url, useragent="tidegate-autobahn")
        self.setProtocolOptions(failByDrop=False)
        self.logFrames = True
        self.case, self.done = case, done
        self.id = case_id(case)

    def buildProtocol(self, addr):
        protocol = CaseProtocol()
        protocol.factory = self
        protocol.runCase = self.case(protocol)
        return protocol

    def clientConnectionFailed(self, connector, reason):
        self.done(self, None, f"no connection: {reason.getErrorMessage().splitlines()[0]}")


class Runner:
    def __init__(self, url, cases, seconds, verbose):
        self.url, self.seconds, self.verbose = url, seconds, verbose
        quick = [case for case in cases if not case_id(case).startswith("9.")]
        slow = [case for case in cases if case_id(case).startswith("9.")]
        busy = [case for case in quick if case_id(case).startswith(("12.", "13."))]
        quick = [case for case in quick if case not in busy]
        self.phases = [(SIDE_BY_SIDE, quick), (2, busy), (1, slow)]
        self.running = {}
        self.counts = dict.fromkeys(TOLERATED, 0)
        self.failed = []

    def run(self):
        reactor.callLater(self.seconds, self.give_up)
        reactor.callWhenRunning(self.start_more)
        reactor.run()
        for line in sorted(self.failed, key=lambda failure: id_key(failure[0])):
            print("failed: case %s: %s" % line)
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        print(f"autobahn: {sum(self.counts.values())} passed, {len(self.failed)} failed ({counts})")
        return not self.failed and sum(self.counts.values()) > 0

    def start_more(self):
        while self.phases:
            width, waiting = self.phases[0]
            while waiting and len(self.running) < width:
                factory = CaseFactory(self.url, waiting.pop(0), self.case_done)
                self.running[factory.id] = time.monotonic()
                connectWS(factory, timeout=CONNECT_SECONDS)
            if waiting or self.running:
                return
            self.phases.pop(0)
        if reactor.running:
            reactor.stop()

    def case_done(self, factory, case, spoilt):
        begun = self.running.pop(factory.id, None)
        if begun is None:
            return
        if self.verbose:
            print(f"case {factory.id}: {time.monotonic() - begun:.1f} s", flush=True)
        if spoilt:
            self.failed.append((factory.id, spoilt))
        elif case.behavior in TOLERATED and case.behaviorClose in TOLERATED:
            self.counts[case.behavior] += 1
        else:
            received, expected = short(case.received), short(case.expected)
            why = f"{case.behavior}, closing {case.behaviorClose}: {case.result} {case.resultClose}"
            self.failed.append((factory.id, f"{why} expected {expected}, received {received}"))
        reactor.callLater(0, self.start_more)

    def give_up(self):
        waiting = [case_id(case) for _, cases in self.phases for case in cases]
        for name in list(self.running) + waiting:
            self.failed.append((name, f"not finished when the {self.seconds} s of the whole run were over"))
        self.running, self.phases = {}, []
        reactor.stop()


def case_id(case):
    """`Case6_4_1` is 6.4.1."""
    return case.__name__[len("Case"):].replace("_", ".")


def id_key(name):
    return [int(part) for part in name.split(".")]


def short(value):
    shown = repr(value)
    return shown if len(shown) <= 300 else shown[:300] + "..."


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("suite")
    parser.add_argument("url")
    parser.add_argument("--only", default="")
    parser.add_argument("--messages", type=int, default=1000, help="how many a case of compression sends")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--verbose", action="store_true", help="say how long each case lasted")
    options = parser.parse_args()
    sys.path.insert(0, options.suite)
    from cases import Cases
    from cases.case import Case

    # The suite compares pickles, which in Python 3 differ for equal values when objects are shared.
    Case.compare = lambda self, one, other: one == other
    cases = [case for case in Cases if not options.only or (case_id(case) + ".").startswith(options.only.rstrip(".") + ".")]
    for case in cases:
        if hasattr(case, "CLIENT_OFFERS"):
            case.COUNT = min(case.COUNT, options.messages)
    cases.sort(key=lambda case: id_key(case_id(case)))
    sys.exit(0 if Runner(options.url, cases, options.seconds, options.verbose).run() else 1)


if __name__ == "__main__":
    main()
