"""What a child of :mod:`bestiary.core.isolated` does: jobs from its parent, one by one, until that closes or is gone."""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
import traceback
from typing import IO, Any

from bestiary.core.plugins import resolve
from bestiary.core.plugins.resolve import describe


def main() -> None:
    """Arguments: the descriptor to answer on, and the function that does the work."""
    answers, serve = int(sys.argv[1]), resolve(sys.argv[2], needed_by="a child process")
    os.set_inheritable(answers, False)
    channel = os.fdopen(answers, "wb")
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # A thread, so that the child of a parent that was killed ends in the middle of a job too.
    threading.Thread(target=_receive, args=(os.fdopen(os.dup(0), "rb"), jobs), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def tell(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event).encode() + b"\n")
        channel.flush()

    while True:
        job = jobs.get()
        try:
            answer = {"answer": serve(pickle.loads(job), lambda text: tell({"at": text}))}
        except BaseException as error:
            tell({"raised": f"raised {describe(error)}", "trace": traceback.format_exc()[-2000:]})
        else:
            tell(answer)


def _receive(source: IO[bytes], jobs: queue.SimpleQueue[bytes]) -> None:
    while len(size := source.read(8)) == 8:
        jobs.put(source.read(int.from_bytes(size, "little")))
    os._exit(0)


if __name__ == "__main__":
    main()
