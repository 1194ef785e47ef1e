"""Train a few steps and evaluate on the demo while every connection and every question for an address is refused.

python no_network.py FOLDER: exits with 1 and says where to when anything was tried, even if the library went on.
"""

import sys
from pathlib import Path

ASKED = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
tried = []


def refuse(event, arguments):
    if event in ASKED:
        where = arguments[1] if event.startswith(("socket.connect", "socket.send")) else arguments[0]
        if not isinstance(where, (str, bytes)) or "addr" in event or "host" in event:  # a path is a local socket
            tried.append(f"{event} {where}")
            raise OSError(f"no network here: {where}")


sys.addaudithook(refuse)  # sees what C code asks Python's sockets for, and cannot be taken off again
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from one_step import trainer_module

    import evaluate

    folder = Path(sys.argv[1])
    flags = [
        "--max_steps",
        "2",
        "--num_hidden_layers",
        "1",
        "--max_seq_length",
        "32",
        "--output_dir",
        str(folder / "run"),
    ]
    trainer_module("v1.1").main([*flags, "--per_device_train_batch_size", "8", "--use_cpu"])
    stages = ["bm25", f"dense:{folder / 'run'}"]
    evaluate.main(["--first_stage", *stages, "--tasks", "demo", "--output_dir", str(folder / "results")])
    sys.exit("\n".join(tried) or 0)
