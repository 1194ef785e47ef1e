"""OpenAI's SDK, LiteLLM and mteb's own HTTP wrappers, the last through a whole local task."""

import json

import numpy as np
import pytest
from conftest import KEY, ROOT

TEXTS = ["연차는 며칠인가요?", "한라산은 제주도에 있다.", "환승할인"]
client = pytest.mark.client


@pytest.fixture(scope="module")
def right(folders):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folders / "encoder"), device="cpu")


@client("openai", "openai.OpenAI, base64 and float", "/v1/embeddings")
def test_openai(server, right):
    import openai

    sdk = openai.OpenAI(base_url=server + "/v1", api_key=KEY)
    assert {model.id for model in sdk.models.list()} == {"encoder", "reranker", "search"}
    wanted = right.encode(TEXTS)
    for settings in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = sdk.embeddings.create(model="encoder", input=TEXTS, **settings)
        vectors = answer.data[0].embedding if settings.get("encoding_format") != "base64" else None
        if vectors is not None:
            assert np.abs(np.array([row.embedding for row in answer.data]) - wanted).max() <= 1e-5
    query = sdk.embeddings.create(model="encoder", input=TEXTS[0], extra_body={"input_type": "query"})
    assert np.abs(np.array(query.data[0].embedding) - right.encode_query(TEXTS[0])).max() <= 1e-5
    short = sdk.embeddings.create(model="encoder", input=TEXTS[0], dimensions=8).data[0].embedding
    assert len(short) == 8
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server + "/v1", api_key="wrong").embeddings.create(model="m", input="a")
    with pytest.raises(openai.UnprocessableEntityError):
        sdk.embeddings.create(model="m", input=[])


@client("litellm", "litellm.embedding openai/", "/v1/embeddings")
def test_litellm(server, right):
    import litellm

    answer = litellm.embedding(model="openai/encoder", input=TEXTS, api_base=server + "/v1", api_key=KEY)
    assert np.abs(np.array([row["embedding"] for row in answer.data]) - right.encode(TEXTS)).max() <= 1e-5


def read(name):
    with (ROOT / "koir/demo/beir" / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def task():
    """Some of the demo as a local mteb task, and the same with candidate lists for rerankers."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    qrels = {}
    for line in (ROOT / "koir/demo/beir/qrels/test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if len(qrels) < 12 or query in qrels:
            qrels.setdefault(query, {})[document] = int(grade)
    documents = [
        {"id": row["_id"], "text": row["text"], "title": row.get("title") or ""} for row in read("corpus.jsonl")
    ]
    queries = [{"id": row["_id"], "text": row["text"]} for row in read("queries.jsonl") if row["_id"] in qrels]
    names = [row["id"] for row in documents]
    ranked = {query: [*answers, *names[:7]] for query, answers in qrels.items()}

    def made(name, candidates):
        class Local(AbsTaskRetrieval):
            metadata = TaskMetadata(
                name=name, description="the demo", type="Retrieval", dataset={"path": "local", "revision": "1"},
                eval_splits=["test"], eval_langs=["kor-Hang"], main_score="ndcg_at_10",
            )  # fmt: skip

            def load_data(self, *args, **kwargs):
                split = {"corpus": Dataset.from_list(documents), "queries": Dataset.from_list(queries),
                         "relevant_docs": qrels, "top_ranked": candidates}  # fmt: skip
                self.dataset = {"default": {"test": split}}
                self.data_loaded = True

        return Local()

    return made("KoirLocal", None), made("KoirLocalRanked", ranked)


def score(model, task):
    import mteb

    found = mteb.evaluate(model, task, cache=None, overwrite_strategy="always", show_progress_bar=False)
    return found.task_results[0].scores["test"][0]["ndcg_at_10"]


@client("mteb", "mteb OpenAIAPIEncodeWrapper, a whole task", "/v1/models, /v1/embeddings")
def test_mteb_embeddings(server, right, task):
    from mteb.models import OpenAIAPIEncodeWrapper, SentenceTransformerEncoderWrapper

    prompts = {"query": "query: ", "document": "passage: "}
    ours = OpenAIAPIEncodeWrapper(server, "encoder", api_key=KEY, prompt_dict=prompts, use_chat_template=False)
    ours.model_prompts = prompts  # mteb 2.26.24 looks prompt_dict's names up here, and leaves it empty
    assert score(ours, task[0]) == pytest.approx(score(SentenceTransformerEncoderWrapper(right), task[0]), abs=1e-4)


@client("mteb", "mteb OpenAIAPIRerankWrapper, a whole task", "/v1/models, /v1/rerank")
def test_mteb_rerank(server, folders, task):
    from mteb.models import CrossEncoderWrapper, OpenAIAPIRerankWrapper
    from sentence_transformers import CrossEncoder

    ours = OpenAIAPIRerankWrapper(server, "reranker", api_key=KEY)
    theirs = CrossEncoderWrapper(CrossEncoder(str(folders / "reranker"), device="cpu"))
    assert score(ours, task[1]) == pytest.approx(score(theirs, task[1]), abs=1e-4)
