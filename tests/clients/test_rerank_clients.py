"""Every rerank client we know, as its users call it, ranks as the plain HTTP answer does."""

import asyncio
import json
import urllib.request

import pytest
from conftest import KEY

QUERY = "연차 휴가는 며칠인가요?"
DOCUMENTS = [
    "김치가 시어지는 까닭은 유산균이 젖산을 만들기 때문이다.",
    "1년간 80퍼센트 이상 출근한 근로자에게 15일의 유급휴가를 준다.",
    "한라산은 제주도 한가운데에 솟은 화산이다.",
    "환승할인",
]
MASTER = "sk-0f6e2c41d9b84a7d8c0b5f3a91e7642d8c5b9a10"  # LiteLLM refuses to start without one
client = pytest.mark.client


@pytest.fixture(scope="module")
def right(server):
    """[(index, score)] best first, by plain HTTP."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(server + "/v1/rerank", body, headers)) as answer:
        return [(found["index"], found["relevance_score"]) for found in json.load(answer)["results"]]


def same(found, right):
    found = list(found)
    assert [index for index, _ in found] == [index for index, _ in right[: len(found)]]
    assert [score for _, score in found] == pytest.approx([score for _, score in right[: len(found)]], abs=1e-6)


@client("cohere", "cohere.ClientV2", "/v2/rerank")
def test_cohere_v2(server, right):
    import cohere

    answer = cohere.ClientV2(api_key=KEY, base_url=server).rerank(
        model="reranker", query=QUERY, documents=DOCUMENTS, top_n=3, max_tokens_per_doc=400
    )
    same([(found.index, found.relevance_score) for found in answer.results], right)
    assert answer.id and answer.meta.tokens.input_tokens > 0


@client("cohere", "cohere.AsyncClientV2", "/v2/rerank")
def test_cohere_v2_async(server, right):
    import cohere

    async def ask():
        return await cohere.AsyncClientV2(api_key=KEY, base_url=server).rerank(
            model="reranker", query=QUERY, documents=DOCUMENTS
        )

    same([(found.index, found.relevance_score) for found in asyncio.run(ask()).results], right)


@client("cohere", "cohere.Client", "/v1/rerank")
def test_cohere_v1(server, right):
    import cohere

    answer = cohere.Client(api_key=KEY, base_url=server).rerank(
        model="reranker", query=QUERY, documents=[{"text": text} for text in DOCUMENTS], return_documents=True
    )
    same([(found.index, found.relevance_score) for found in answer.results], right)
    assert answer.results[0].document.text == DOCUMENTS[right[0][0]]


@client("cohere", "cohere.ClientV2, wrong key and bad request", "/v2/rerank")
def test_cohere_errors_are_typed(server):
    import cohere

    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=server).rerank(model="m", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.UnprocessableEntityError):
        cohere.ClientV2(api_key=KEY, base_url=server).rerank(model="m", query=QUERY, documents=[])


LITELLM = {
    "jina_ai": ("", "/v1/rerank"),
    "cohere": ("", "/v2/rerank"),
    "hosted_vllm": ("", "/rerank"),
    "hosted_vllm/v1": ("/v1/rerank", "/rerank"),
    "infinity": ("/infinity", "/infinity/rerank"),
    "huggingface": ("", "/rerank (texts)"),
}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    "provider", [pytest.param(p, marks=client("litellm", f"litellm.rerank {p}/", r)) for p, (_, r) in LITELLM.items()]
)
def test_litellm(server, right, provider, documents):
    import litellm

    answer = litellm.rerank(
        model=f"{provider.partition('/')[0]}/reranker", query=QUERY, documents=DOCUMENTS, top_n=3, api_key=KEY,
        api_base=server + LITELLM[provider][0], return_documents=documents,
    )  # fmt: skip
    same([(found["index"], found["relevance_score"]) for found in answer.results], right)
    if documents:
        assert answer.results[0]["document"]["text"] == DOCUMENTS[right[0][0]]


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """LiteLLM's proxy in front of our server: both ways that its users configure."""
    import sys
    from pathlib import Path

    from served import serving

    there = tmp_path_factory.mktemp("proxy")
    (there / "proxy.yaml").write_text(
        f"""
general_settings:
  master_key: {MASTER}
  pass_through_endpoints:
    - path: "/koir/v1/rerank"
      target: "{server}/v1/rerank"
      headers: {{Authorization: "Bearer {KEY}", content-type: application/json, accept: application/json}}
model_list:
  - model_name: ko-reranker
    litellm_params: {{model: jina_ai/reranker, api_base: "{server}", api_key: {KEY}}}
""",
        encoding="utf-8",
    )
    command = [Path(sys.executable).with_name("litellm"), "--config", there / "proxy.yaml", "--host", "127.0.0.1"]
    started = serving(
        log=there / "log", python=command[0], script=map(str, command[1:]), ready="/health/liveliness", seconds=300
    )
    with started as (_, url):
        yield url


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/koir/v1/rerank", marks=client("litellm", "LiteLLM proxy, pass-through", "/v1/rerank")),
        pytest.param("/v1/rerank", marks=client("litellm", "LiteLLM proxy, jina_ai/ in model_list", "/v1/rerank")),
    ],
)
def test_litellm_proxy(proxy, right, path):
    body = json.dumps({"model": "ko-reranker", "query": QUERY, "documents": DOCUMENTS, "top_n": 3}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {MASTER}"}
    with urllib.request.urlopen(urllib.request.Request(proxy + path, body, headers)) as answer:
        content = json.load(answer)
    same([(found["index"], found["relevance_score"]) for found in content["results"]], right)


@client("langchain-cohere", "langchain_cohere.CohereRerank", "/v2/rerank")
def test_langchain_cohere(server, right):
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    reranker = CohereRerank(model="reranker", cohere_api_key=KEY, base_url=server, top_n=3)
    found = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    same([(DOCUMENTS.index(d.page_content), d.metadata["relevance_score"]) for d in found], right)


def nodes():
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in DOCUMENTS]


def ranked(found):
    return [(DOCUMENTS.index(node.node.get_content()), node.score) for node in found]


@client("llama-index-postprocessor-cohere-rerank", "LlamaIndex CohereRerank", "/v2/rerank")
def test_llama_index_cohere(server, right):
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    reranker = CohereRerank(api_key=KEY, model="reranker", top_n=3, base_url=server)
    same(ranked(reranker.postprocess_nodes(nodes(), query_str=QUERY)), right)


@client("llama-index-postprocessor-jinaai-rerank", "LlamaIndex JinaRerank", "/v1/rerank")
def test_llama_index_jina(server, right):
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    reranker = JinaRerank(api_key=KEY, model="reranker", top_n=3, base_url=server + "/v1")
    same(ranked(reranker.postprocess_nodes(nodes(), query_str=QUERY)), right)
    with pytest.raises(RuntimeError, match="key"):  # it reads `detail`
        JinaRerank(api_key="wrong", base_url=server + "/v1").postprocess_nodes(nodes(), query_str=QUERY)


@client("llama-index-postprocessor-tei-rerank", "LlamaIndex TextEmbeddingInference", "/rerank (texts)")
def test_llama_index_tei(server, right):
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    reranker = TextEmbeddingInference(base_url=server, top_n=3, auth_token=f"Bearer {KEY}")
    same(ranked(reranker.postprocess_nodes(nodes(), query_str=QUERY)), right)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param(kind, path, marks=client("rerankers", f"rerankers {kind}", path))
        for kind, path in [("jina", "/v1/rerank"), ("cohere", "/v1/rerank"), ("text-embeddings-inference", "/rerank")]
    ],
)
def test_rerankers(server, right, kind, path):
    from rerankers import Reranker

    ranker = Reranker("reranker", model_type=kind, url=server + path, api_key=KEY, verbose=0)
    same([(found.doc_id, found.score) for found in ranker.rank(QUERY, DOCUMENTS).results], right)
