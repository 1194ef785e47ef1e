"""Which models and pipelines are in the house, and which one a request means."""

from koir.errors import nearest
from koir.serving.models import ServedEncoder, ServedReranker
from koir.serving.problems import Problem
from koir.serving.search import ServedPipeline

KINDS = ("encoder", "reranker", "pipeline")


class Registry:
    """Served models by kind and name."""

    def __init__(self):
        self.by_kind: dict[str, dict] = {kind: {} for kind in KINDS}

    def add(self, served: ServedEncoder | ServedReranker | ServedPipeline) -> None:
        """Serve it under its name; names are checked before anything loads."""
        self.by_kind[served.kind][served.name] = served

    def find(self, kind: str, name: str | None):
        """The one that `name` means. Where one of a kind is loaded it answers to any name. Raises Problem 404, 422."""
        there = self.by_kind[kind]
        if len(there) == 1:
            return next(iter(there.values()))
        if not there:
            message = f"model: found no {kind} on this server; start it with one"
            if kind == "pipeline":  # there may be one, but no corpus that it searches
                message = "model: found no index on this server; start it with --index_uri FOLDER "
                message += "(scripts/build_index.py)"
            raise Problem(404, message, "model_not_found", "model")
        known = ", ".join(there)
        if name is None:
            raise Problem(422, f"model: found none; expected one of {known}", "missing", "model")
        if name not in there:
            message = f"model: found no {kind} of that name; expected one of {known}{nearest(name, there)}"
            raise Problem(404, message, "model_not_found", "model")
        return there[name]

    @property
    def all(self) -> list:
        """Everything served, in the order of kinds."""
        return [served for kind in KINDS for served in self.by_kind[kind].values()]

    @property
    def batching(self) -> list[ServedEncoder | ServedReranker]:
        """Those with a queue of their own."""
        return [served for served in self.all if served.kind != "pipeline"]

    def close(self) -> None:
        """End all threads."""
        for served in self.all:
            served.close()
