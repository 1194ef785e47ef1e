"""Serve /v1/rerank, /v1/embeddings and /v1/search; without arguments: the newest runs, else the demo."""

import logging
import math
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is loaded: see docs/serving.md, Speed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.errors import FlagError, exit_on_user_error
from koir.flags import parse, require
from koir.serving.app import create_app, run
from koir.serving.door import DoorRules, read_keys
from koir.serving.loading import ServedArguments, load

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class ServerArguments:
    """Who may call, and how."""

    host: str = field(default="127.0.0.1", metadata={"help": "0.0.0.0 lets other machines in"})
    port: int = field(default=8000, metadata={"help": "TCP port"})
    api_key_file: str | None = field(
        default=None,
        metadata={"help": "bearer keys, one a line; /health, /ready and /v1/models stay open; default: no key"},
    )
    cors_origins: list[str] = field(
        default_factory=list, metadata={"help": "web pages that may call, such as https://example.org; default: none"}
    )
    max_body_mb: float = field(default=32, metadata={"help": "MiB of a request's body; a larger one gets 413"})
    return_documents: bool = field(
        default=False, metadata={"help": "repeat texts in rerank answers unless the request says no, as LocalAI does"}
    )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Load what was asked for, then serve until a signal."""
    models, server = parse([ServedArguments, ServerArguments], argv, __doc__, recipes=False)
    require(0 < server.max_body_mb < math.inf, "--max_body_mb", str(server.max_body_mb), "above 0")
    rules = DoorRules(read_keys(server.api_key_file), int(server.max_body_mb * 2**20))
    _free(server.host, server.port)
    registry = load(models)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("koir").setLevel(logging.INFO)
    for served in registry.batching:
        products = "bfloat16" if served.bf16 else "float32"
        size = f"at most {served.max_seq_length} tokens, chunks of {served.batcher.chunk_tokens:,}"
        print(f"{served.kind:<9} {served.name}: {served.device}, {products} products, {size}", file=sys.stderr)
    for served in registry.by_kind["pipeline"].values():
        reranker = served.reranker.name if served.reranker else "none"
        print(f"pipeline  {served.name}: {served.index.name}, reranker {reranker}", file=sys.stderr)
    if server.host not in LOOPBACK and not rules.keys:
        print(
            f"warning: {server.host} is reachable from other machines and asks for no key (--api_key_file)",
            file=sys.stderr,
        )
    print(
        f"serving   http://{server.host}:{server.port} (Ctrl+C stops; /docs describes it)", file=sys.stderr, flush=True
    )
    shown = models.score_map or "sigmoid"
    run(create_app(registry, rules, server.cors_origins, server.return_documents, shown), server.host, server.port)


def _free(host: str, port: int) -> None:
    """FlagError before anything loads where the address cannot be had."""
    require(0 < port < 65536, "--port", str(port), "1 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise FlagError(f"--host {host} --port {port}", error.strerror or str(error), "a free address") from None


if __name__ == "__main__":
    main()
