"""On SIGTERM or Ctrl-C, training saves a checkpoint and ends."""

import signal


class Interrupted(SystemExit):
    """Training was asked to stop and has saved; `code` is the shell's for that signal."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)


class StopSignals:
    """Turns the first SIGTERM or Ctrl-C into a request; a second one stops immediately."""

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
