import contextlib
import fcntl
import json
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, run, run_together
from served import free_port
from tokenizers.normalizers import NFD

from koir.encoder import load_encoder
from koir.errors import FlagError, RunError
from koir.evaluation.tasks import load_corpus, load_task
from koir.retrieval import dense, opening, stages
from koir.retrieval.bm25 import BM25
from koir.retrieval.dense import Dense, encoder_fingerprint
from koir.retrieval.hybrid import DENSE_SHARE, FETCH, RRF_K, Hybrid, reciprocal_ranks, weighted
from koir.retrieval.opening import open_index
from koir.retrieval.ranking import align, best, minmax, ranked, standard
from koir.retrieval.score_maps import SCORE_MAPS, exp_normalize, sigmoid
from koir.retrieval.stages import first_stage, in_memory

LAW = {
    "계약": "근로계약서를 만들어 근로자에게 내주어야 한다.",
    "휴가": "한 해를 일하면 연차 휴가를 받는다.",
    "임금": "임금은 매달 정한 날에 준다.",
    "세금 1": "부가가치세를 신고한다. 😀",
    "b": "근로자의 날은 쉰다.",
    "빈": "",
}
QUERIES = ["연차 휴가는 며칠?", "임금은 언제 주나", "근로자", "", "\ud83d"]


@pytest.fixture(scope="module")
def small():
    encoder = load_encoder("demo", num_hidden_layers=1)
    with torch.no_grad():  # weights drawn at random give all texts one direction; words must count
        encoder.transformer.embeddings.word_embeddings.weight.mul_(50)
    return encoder


@pytest.fixture(scope="module")
def model(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "한국어"
    small.save(folder)
    return str(folder)


# --- ranking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 3, 7, 50])
def test_the_best_are_those_of_a_whole_sort_with_ties_by_position(depth):
    rng = np.random.default_rng(depth)
    for _ in range(50):
        scores = rng.choice(np.float32([0.1, 0.5, 0.5000001, 2]), size=rng.integers(1, 30))
        assert best(scores, depth).tolist() == np.lexsort((np.arange(len(scores)), scores))[::-1][:depth].tolist()
    scores = rng.permutation(1000).astype(np.float32)  # so many that a partition leaves most in no order
    assert best(scores, 19 * depth).tolist() == np.argsort(-scores)[: 19 * depth].tolist()


def test_ranked_breaks_ties_of_float32_by_id():
    assert ranked({"a": 0.1, "나": 0.1 + 1e-12, "b": 0.1 - 1e-12, "z": 0.0}) == ["나", "b", "a", "z"]


def test_scales():
    assert minmax(np.array([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5] and minmax(np.array([2.0, 2.0])).tolist() == [1, 1]
    assert standard(np.array([1.0, 5.0])).tolist() == [-1, 1] and standard(np.array([2.0])).tolist() == [0]
    assert standard(np.array([0.1, 0.1, 0.1])).tolist() == [0, 0, 0]  # whose mean is not 0.1
    assert minmax(np.array([])).tolist() == standard(np.array([])).tolist() == []


def test_mixing_moves_from_one_run_to_the_other():
    first, second = {"a": 9.0, "b": 5.0, "c": 1.0}, {"c": 0.9, "d": 0.1}
    pair = align(first, second)
    assert pair.mixed(0.0, 4) == {"a": 1.0, "b": 0.5, "d": 0.0, "c": 0.0}  # absent is 0; ties by id
    assert pair.mixed(0.5, 2) == {"c": 0.5, "a": 0.5}
    assert align(first, {"a": 1.0, "b": 4.0, "c": 5.0}, "raw").mixed(0.5, 3) == {"a": 5.0, "b": 4.5, "c": 3.0}
    assert list(pair.mixed(1.0, 1)) == ["c"]
    assert list(align({"a": 1 + 1e-12, "b": 1.0}, {}, "raw").mixed(0.0, 2)) == ["b", "a"]  # equal in float32


def test_a_weighted_hybrid_keeps_how_sure_bm25_is():
    dense = {"a": 0.9, "b": 0.5, "c": 0.3}
    clear, poor = weighted({"b": 30.0}, dense), weighted({"b": 3.0}, dense)
    assert clear.ids == ["a", "b", "c"] and clear.first.tolist() == [0, 30, 0]
    assert clear.second.tolist() == pytest.approx([15, 5, 0])  # 25 points for a cosine, from the worst on
    assert next(iter(clear.mixed(0.5, 1))) == "b" and next(iter(poor.mixed(0.5, 1))) == "a"
    assert list(weighted({"a": 1.0}, {}).mixed(0.5, 2)) == ["a"]


def test_reciprocal_ranks_count_from_one_and_absence_gives_nothing():
    fused = reciprocal_ranks([{"a": 3.0, "b": 2.0}, {"b": 0.5}], 10)
    expected = {"b": 1 / (RRF_K + 2) + 1 / (RRF_K + 1), "a": 1 / (RRF_K + 1)}
    assert list(fused) == ["b", "a"] and fused == pytest.approx(expected)
    assert reciprocal_ranks([{}, {}], 10) == {}
    for first, second in ("ab", "ba"):  # equal sums go by id
        assert list(reciprocal_ranks([{first: 2.0, second: 1.0}, {second: 2.0, first: 1.0}], 2)) == ["b", "a"]


def test_score_maps_keep_the_order_and_only_exp_normalize_looks_at_the_others():
    logits = np.array([3.0, -1.0, 0.5, 0.0, -800.0, 800.0])
    for shown in SCORE_MAPS.values():
        assert (np.diff(shown(np.sort(logits))) >= 0).all() and np.isfinite(shown(logits)).all()
    assert sigmoid(logits)[:4] == pytest.approx(1 / (1 + np.exp(-logits[:4])))
    assert exp_normalize(np.log([1.0, 3.0])) == pytest.approx([0.25, 0.75])
    assert (
        exp_normalize(logits).sum() == pytest.approx(1) and exp_normalize(logits[:3])[0] != exp_normalize(logits[:1])[0]
    )
    assert exp_normalize(np.array([])).tolist() == []


# --- indexes on disk -------------------------------------------------------------------------------------------------


def test_a_saved_bm25_index_is_mapped_and_finds_the_same(tmp_path):
    built = BM25(LAW)
    built.save(tmp_path)
    again = BM25.load(tmp_path)
    assert isinstance(again.index.scores["data"], np.memmap)
    assert again.search(QUERIES, 3) == built.search(QUERIES, 3) and again.ids == sorted(LAW)


def test_jax_takes_no_gpu_where_it_is_installed(tmp_path):
    package = tmp_path / "jax"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nprint('JAX on', os.environ.get('JAX_PLATFORMS'))\n")
    (package / "lax.py").write_text("def top_k(values, k):\n    return values[:k], [0]\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import koir.retrieval.bm25"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "JAX on cpu\n"


def test_an_index_without_words_is_saved_too(tmp_path):
    BM25({"a": "..."}).save(tmp_path)
    assert BM25.load(tmp_path).search(["휴가"], 3) == [{}]


def test_dense_search_is_exact_and_ties_go_by_id(small):
    corpus = {f"문서{n}": f"임금 {n % 3}" for n in range(40)}  # equal texts tie, beyond the depth too
    index = Dense.build(small, corpus, "dense")
    (found,) = index.search(["임금 1"], 5)
    scores = index.vectors @ small.encode(["임금 1"], "query")[0]
    highest = np.flatnonzero(scores >= scores.max() - 1e-6)
    assert list(found) == sorted((index.ids[n] for n in highest), reverse=True)[:5]
    assert len(index.search(["임금"], 100)[0]) == 40


@pytest.mark.parametrize("depth", [7, 50])
def test_equal_vectors_tie_wherever_they_stand_and_however_many_queries_there_are(depth):
    """BLAS rounds the products of wide vectors by their place in a block, and takes part from 20 queries on."""
    different = np.random.default_rng(0).standard_normal((5, 768)).astype(np.float32)
    different /= np.linalg.norm(different, axis=1, keepdims=True)
    index = Dense(None, [f"{n:03}" for n in range(100)], different[np.arange(100) % 5], "dense")
    queries = np.repeat(different, 40, axis=0)
    found = index.search([""] * 200, depth, queries)
    for number, one in enumerate(found):
        assert list(one)[:20] == [f"{n:03}" for n in range(number // 40, 100, 5)][::-1][:depth]
        assert len(set(one.values())) == -(-depth // 20)
    assert [list(index.search([""], depth, queries[n : n + 1])[0]) for n in range(0, 200, 40)] == list(
        map(list, found[::40])
    )


def test_a_document_with_half_of_a_surrogate_pair_is_embedded_without_it(small):
    index = Dense.build(small, {"a": "연차\ud83d 휴가", "b": "연차 휴가"}, "dense")
    assert np.array_equal(*index.vectors)


def test_the_second_build_embeds_nothing(model, tmp_path, monkeypatch):
    built = first_stage(f"dense:{model}", str(tmp_path), progress=False)(LAW)
    assert isinstance(built.vectors, np.memmap) and built.vectors.dtype == np.float32

    def refuse(*_, **__):
        raise AssertionError("embedded again")

    monkeypatch.setattr(Dense, "build", refuse)
    again = first_stage(f"dense:{model}", str(tmp_path), progress=False)(dict(reversed(LAW.items())))
    assert again.search(["휴가"], 3) == built.search(["휴가"], 3)


def test_a_killed_build_goes_on_from_its_shards(small, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "SHARD", 2)
    texts, encode = [], small.encode

    def until_killed(some, kind, **settings):
        if len(texts) >= 4:
            raise KeyboardInterrupt
        texts.extend(some)
        return encode(some, kind, **settings)

    monkeypatch.setattr(small, "encode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        Dense.build(small, LAW, "dense", parts=tmp_path / "shards")
    done, texts = texts, []
    built = Dense.build(small, LAW, "dense", parts=tmp_path / "shards")
    assert not set(done) & set(texts) and len(done) + len(texts) == len(LAW)
    monkeypatch.undo()
    assert np.allclose(built.vectors, Dense.build(small, LAW, "dense").vectors, atol=1e-6)


def test_two_checkpoints_never_share_an_index(small, model, tmp_path):
    first = first_stage(f"dense:{model}", str(tmp_path), progress=False)
    first(LAW)
    other = tmp_path / "other"
    with torch.no_grad():
        weight = small.transformer.embeddings.word_embeddings.weight
        weight[5, 0] += 1e-3
        small.save(other)
        weight[5, 0] -= 1e-3
    second = first_stage(f"dense:{other}", str(tmp_path), progress=False)
    assert first.fingerprint != second.fingerprint
    second(LAW)
    second(LAW | {"새": "글"})
    assert len(list(tmp_path.glob("dense-*"))) == 3 and not list(tmp_path.glob("*.shards"))
    fused = [first_stage(f"{kind}:{path}", str(tmp_path)) for kind in ("hybrid", "milvus") for path in (model, other)]
    assert len({stage.fingerprint for stage in fused}) == 4


def test_a_corpus_is_known_by_its_ids_and_texts_whatever_their_order():
    first, second = {"a": "연차", "b": "임금"}, {"b": "임금", "a": "연차"}
    assert stages.corpus_fingerprint(first) == stages.corpus_fingerprint(second)
    others = [{"a": "연차", "c": "임금"}, {"a": "연차", "b": "세금"}, {"a": "임금", "b": "연차"}, {"a": "연차"}]
    assert len({stages.corpus_fingerprint(corpus) for corpus in (first, *others)}) == 5


@pytest.mark.parametrize("what", ["CONTENT_TAGS", "PLAIN", "K1", "B", "PAIR_WEIGHT", "LEAD_WORDS"])
def test_an_index_of_other_settings_of_bm25_is_another(what, monkeypatch):
    before = first_stage("bm25").part_folder("bm25", "corpus")
    monkeypatch.setattr(stages, what, (5,))
    assert first_stage("bm25").part_folder("bm25", "corpus") != before


def test_the_fingerprint_sees_prompts_pooling_and_length(small):
    before = encoder_fingerprint(small)
    small.prompts = small.prompts | {"query": "질문: "}
    after = encoder_fingerprint(small)
    small.prompts = small.prompts | {"query": "query: "}
    assert before != after and encoder_fingerprint(small) == before
    for name, other in (("pooling", "cls"), ("max_seq_length", 99)):
        kept = getattr(small, name)
        setattr(small, name, other)
        after = encoder_fingerprint(small)
        setattr(small, name, kept)
        assert before != after and encoder_fingerprint(small) == before


def test_the_fingerprint_sees_how_texts_are_cut_and_layers_compute_and_no_use(small, model):
    before, other = encoder_fingerprint(small), load_encoder(model, dropout=0.3)
    other.encode(["연차 휴가 " * 900], "query")
    assert encoder_fingerprint(other) == before, "saved, loaded, set to be trained and used"
    words, config = other.tokenizer.backend_tokenizer, other.transformer.config
    words.normalizer, kept = NFD(), words.normalizer
    assert encoder_fingerprint(other) != before
    words.normalizer, config.layer_norm_eps = kept, 1e-3
    assert encoder_fingerprint(other) != before


def test_hybrid_is_the_fusion_of_its_parts(model, tmp_path):
    lexical, vectors, fused = (
        first_stage(spec, str(tmp_path), progress=False)(LAW) for spec in ("bm25", f"dense:{model}", f"hybrid:{model}")
    )
    by_ranks = first_stage(f"hybrid:{model}", str(tmp_path), False, "rrf")(LAW)
    for query, found in zip(QUERIES[:4], fused.search(QUERIES[:4], 4), strict=True):
        parts = [stage.search([query], 1000)[0] for stage in (lexical, vectors)]
        assert found == weighted(*parts).mixed(DENSE_SHARE, 4)
        assert by_ranks.search([query], 4)[0] == reciprocal_ranks(parts, 4)
    assert len(list(tmp_path.iterdir())) == 2  # the parts are shared
    whole = first_stage(f"hybrid:{model}", str(tmp_path), False, "weighted", 0.0)(LAW)
    assert [next(iter(found)) for found in whole.search(QUERIES[:2], 4)] == ["휴가", "임금"]


@pytest.mark.parametrize(("depth", "fetched"), [(10, FETCH), (FETCH + 500, FETCH + 500)])
def test_a_hybrid_fuses_as_many_as_are_asked_for(depth, fetched):
    class Part:
        def search(self, queries, depth, vectors=None):
            return [{f"{number:05}": -float(number) for number in range(depth)} for _ in queries]

    hybrid = Hybrid(Part(), Part(), "hybrid", "rrf", None)
    assert [len(run) for pair in hybrid.parts(["휴가"], depth) for run in pair] == [fetched] * 2
    assert len(hybrid.search(["휴가"], depth)[0]) == depth


def test_an_encoder_in_training_is_never_written(small, tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path))
    assert len(in_memory(small)(LAW).search(["휴가"], 3)[0]) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("bm52", "did you mean bm25?"), ("dense", "dense:PATH"), ("hybird:x", "did you mean hybrid?"), ("bm25:x", "")],
)
def test_an_unknown_first_stage_is_refused(spec, hint):
    with pytest.raises(FlagError, match="an unknown first stage") as caught:
        first_stage(spec)
    assert hint in str(caught.value)


# --- scripts/build_index.py ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "said"),
    [({"run.json": '{"kind": "encoder"}'}, "a folder with a run.json of kind 'encoder'"),
     ({"documents.jsonl": "{}"}, "a documents.jsonl that is no index's")],
)  # fmt: skip
def test_a_folder_of_something_else_is_left_as_it_is(held, said, tmp_path):
    for name, text in held.items():
        (tmp_path / name).write_text(text)
    done = build_index("--corpus", "demo", "--index_uri", tmp_path)
    assert done.returncode == 2 and f"--index_uri {tmp_path}: found {said}; expected a new folder" in done.stderr
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == held


def build_index(*words, processes=None):
    script = ROOT / "scripts/build_index.py"
    return run_together(script, processes, *words) if processes else run(script, *words)


def test_another_command_that_builds_the_same_index_is_waited_for(tmp_path, monkeypatch, capsys):
    stage, corpus, found, built = first_stage("bm25", str(tmp_path), False), {"a": "연차 휴가"}, [], []
    build = stages.FirstStage._build
    monkeypatch.setattr(stages.FirstStage, "_build", lambda *of: (built.append(of[1]), build(*of)))
    folder = stage.part_folder("bm25", stages.corpus_fingerprint(corpus))
    with stages._alone(folder):
        waiting = threading.Thread(target=lambda: found.append(stage(corpus)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not built
        build(stage, "bm25", folder, corpus, stages.corpus_fingerprint(corpus))
    waiting.join()
    assert not built, "what the other command built is opened"
    assert found[0].search(["연차"], 1) == stage(corpus).search(["연차"], 1)
    assert f"waiting: another command builds {folder}" in capsys.readouterr().err


def test_an_index_is_built_and_opened_without_its_corpus(model, tmp_path):
    corpus = tmp_path / "law.jsonl"
    rows = [{"_id": name, "text": unicodedata.normalize("NFD", text)} for name, text in LAW.items()]
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    uri = tmp_path / "index"
    done = build_index("--corpus", corpus, "--first_stage", f"hybrid:{model}", "--index_uri", uri, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    index = open_index(str(uri))
    assert index.name == f"hybrid:{model}" and index.ids == sorted(LAW)
    same = stages.first_stage(f"hybrid:{model}", str(tmp_path / "elsewhere"), progress=False)(load_corpus(str(corpus)))
    assert [list(found) for found in index.search(QUERIES, 3)] == [list(found) for found in same.search(QUERIES, 3)]
    facts = json.loads((uri / "run.json").read_text())
    assert (facts["kind"], facts["documents"]) == ("index", len(LAW))
    assert len((uri / "documents.jsonl").read_text().splitlines()) == len(LAW)
    (Path(model) / "model.safetensors").touch()
    with pytest.raises(RunError, match="no run.json"):
        open_index(str(tmp_path / "elsewhere"))


HEADER = "\x93NUMPY\x01\0v\0{'d(" + " " * 200  # of an array, cut
DAMAGES = {
    "bm25": [
        ("ids.json", "[1, 2, 3]"), ("ids.json", '["a"]'), ("ids.json", "5"), ("complete.json", "[]"),
        ("complete.json", '{"documents": 4}'), ("vocabulary.json", "[]"), ("vocabulary.json", '{"연차": "0"}'),
        ("params.index.json", "{}"), ("params.index.json", "[]"), ("indptr.csc.index.npy", HEADER),
    ],
    "dense": [("ids.json", "null"), ("ids.json", '["a", "b"]'), ("vectors.npy", HEADER)],
}  # fmt: skip


@pytest.mark.parametrize("part", DAMAGES)
def test_an_index_with_a_damaged_part_is_one_line(part, small, tmp_path):
    small.save(tmp_path / "model")
    stage = first_stage("bm25" if part == "bm25" else f"dense:{tmp_path / 'model'}", str(tmp_path / "index"), False)
    stage(LAW)
    (folder,) = (tmp_path / "index").iterdir()
    for name, damaged in DAMAGES[part]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(damaged.encode("latin-1") if name.endswith("npy") else damaged.encode())
        with pytest.raises(RunError, match="found an index that is cut short .*; expected it deleted, and built anew"):
            stage.open(stages.corpus_fingerprint(LAW))
        (folder / name).write_bytes(whole)
    assert stage.open(stages.corpus_fingerprint(LAW)).ids == sorted(LAW)


def test_an_index_of_other_weights_is_not_opened(small, tmp_path):
    folder, uri = tmp_path / "model", str(tmp_path / "index")
    small.save(folder)
    stage = first_stage(f"dense:{folder}", uri, progress=False)
    stage(LAW)
    facts = {"first_stage": stage.spec, "fusion": "rrf", "weight": None}
    (tmp_path / "index/run.json").write_text(
        json.dumps(facts | {"corpus_fingerprint": stages.corpus_fingerprint(LAW)}), encoding="utf-8"
    )
    assert open_index(uri).ids == sorted(LAW)
    small.prompts = small.prompts | {"query": "질문: "}
    small.save(folder)
    small.prompts = small.prompts | {"query": "query: "}
    stages._encoder.cache_clear()
    with pytest.raises(RunError, match="other weights"):
        open_index(uri)


def test_an_index_that_was_killed_as_it_was_described_is_not_described_as_before(tmp_path, monkeypatch):
    stage, other = first_stage("bm25", str(tmp_path), progress=False), {"휴가": "연차 휴가"}
    for corpus in (LAW, other):
        stage(corpus)
    opening.describe(tmp_path, stage, LAW)
    monkeypatch.setattr(opening, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opening.describe(tmp_path, stage, LAW)
    assert open_index(str(tmp_path)).ids == sorted(LAW)
    with pytest.raises(ZeroDivisionError):
        opening.describe(tmp_path, stage, other)
    with pytest.raises(RunError, match="no run.json"):
        open_index(str(tmp_path))


# --- Milvus ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def milvus_is_here():
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@contextlib.contextmanager
def server(folder):
    """The address of a Milvus server, milvus-lite's own: a cluster as far as a client can tell."""
    port = free_port()
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert b"listening" in process.stdout.readline()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["in a file", "at a server"])
def milvus_and_hybrid(request, model, milvus_is_here, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    task, cases = load_task("demo", "dev"), (("rrf", None), ("weighted", 0.4))
    with contextlib.ExitStack() as running:
        uri = str(folder) if request.param == "in a file" else running.enter_context(server(folder / "served"))
        yield (
            task,
            [
                first_stage(f"{kind}:{model}", at, False, how, share)(task.corpus)
                for how, share in cases
                for kind, at in (("milvus", uri), ("hybrid", str(folder)))
            ],
        )


def test_milvus_ranks_as_the_index_in_process(milvus_and_hybrid):
    task, (milvus, hybrid, milvus_weighted, weighted) = milvus_and_hybrid
    queries = [*list(task.queries.values())[:30], "", "\ud83d"]
    for part in ("lexical", "dense"):
        theirs, ours = getattr(milvus, part).search(queries, 50), getattr(hybrid, part).search(queries, 50)
        for found, expected in zip(theirs, ours, strict=True):
            assert found.keys() == expected.keys() or same_but_for_the_edge(found, expected)
            assert all(found[d] == pytest.approx(expected[d], rel=1e-5) for d in found.keys() & expected.keys())
    same = [list(a) == list(b) for a, b in zip(milvus.search(queries, 20), hybrid.search(queries, 20), strict=True)]
    assert sum(same) >= 0.9 * len(same)  # where two scores are one up to the last bit, ranks may differ
    pairs = zip(milvus_weighted.search(queries, 20), weighted.search(queries, 20), strict=True)
    assert sum(list(a) == list(b) for a, b in pairs) >= 0.9 * len(same)


def same_but_for_the_edge(found, expected):
    edge = min(expected.values())
    return all(
        score == pytest.approx(edge, rel=1e-5)
        for d, score in (found | expected).items()
        if (d in found) != (d in expected)
    )


def test_a_milvus_index_that_is_there_says_what_it_was_built_for_last(milvus_is_here, model, tmp_path):
    from koir.retrieval import milvus

    rows = [{"_id": name, "text": text} for name, text in LAW.items()]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with server(tmp_path / "served") as uri:
        words = ["--corpus", tmp_path / "law.jsonl", "--first_stage", f"milvus:{model}", "--index_uri", uri]
        for how, said in ((["--fusion", "rrf"], ("rrf", None)), (["--weight", "0.7"], ("weighted", 0.7))):
            done, facts = build_index(*words, *how), milvus.described(uri)
            assert done.returncode == 0 and (facts["fusion"], facts["weight"]) == said, done.stderr[-2000:]
        assert open_index(uri).weight == 0.7


def test_of_several_indexes_in_a_milvus_the_one_of_a_first_stage_is_opened(milvus_is_here, small, model, tmp_path):
    uri, other = str(tmp_path / "law.db"), tmp_path / "other"
    small.prompts = small.prompts | {"query": "질문: "}
    small.save(other)
    small.prompts = small.prompts | {"query": "query: "}
    specs = [f"milvus:{model}", f"milvus:{other}"]
    for spec in specs:
        first_stage(spec, uri, progress=False)(LAW)
    assert [open_index(uri, spec=spec).name for spec in specs] == specs
    with pytest.raises(RunError, match="2 complete indexes;"):
        open_index(uri)
    first_stage(specs[0], uri, progress=False)({"휴가": "연차 휴가"})
    with pytest.raises(RunError, match=f"2 complete indexes of {specs[0]};"):
        open_index(uri, spec=specs[0])
    assert open_index(uri, spec=specs[1]).name == specs[1]


def test_a_milvus_file_that_another_process_holds_is_said_in_one_line(milvus_is_here, tmp_path, capfd):
    from koir.retrieval import milvus

    (tmp_path / "law.db").mkdir()
    with (tmp_path / "law.db/LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="no other process .* holds open"):
            milvus.connect(str(tmp_path / "law.db"))
    assert "Traceback" not in capfd.readouterr().err


def test_of_several_processes_the_first_alone_opens_a_milvus(model, tmp_path, monkeypatch):
    stage = first_stage(f"milvus:{model}", str(tmp_path / "law.db"), progress=False)
    (tmp_path / "law.db").touch()
    monkeypatch.setattr(stages, "rank", lambda: 1)
    monkeypatch.setattr(stages, "gather_sizes", lambda *_: [[1], [0]])  # what the first says of an index, and this one
    monkeypatch.setattr(stages, "_milvus", None)
    assert stage(LAW) is None


def test_a_milvus_that_answers_no_more_is_said_in_one_line(milvus_is_here):
    from pymilvus import MilvusException

    from koir.retrieval import milvus

    class Gone:
        def has_collection(self, name):
            raise MilvusException(message="gone")

    with pytest.raises(RunError, match="Milvus.*gone.*a Milvus that is up"):
        milvus.is_complete(Gone(), "law")


def test_a_milvus_index_is_complete_or_built_again(milvus_is_here, model, tmp_path):
    from koir.retrieval import milvus

    stage = first_stage(f"milvus:{model}", str(tmp_path / "law.db"), progress=False)
    key = stages.corpus_fingerprint(LAW)
    assert not stage.is_complete(key)
    found = stage(LAW).search(QUERIES, 3)
    assert (
        stage.is_complete(key)
        and next(iter(found[0])) == "휴가"
        and found[3].keys() == stage(LAW).search([""], 3)[0].keys()
    )
    assert open_index(str(tmp_path / "law.db")).ids == sorted(LAW)
    client = milvus.connect(str(tmp_path / "law.db"))
    client.delete(f"{stage._collection(key)}_words", ids=[milvus.COMPLETE])
    assert not stage.is_complete(key)  # as after a kill
    assert stage(LAW).search(QUERIES, 3) == found and stage.is_complete(key)


def test_a_first_stage_takes_the_forward_pass_without_gradients_and_finds_the_same(model, monkeypatch):
    from koir import encoder as module

    calls, inference = [], module.Inference
    monkeypatch.setattr(module, "Inference", lambda *given: calls.append(1) or inference(*given))
    loaded = stages._encoder.__wrapped__(model)  # not one that has it laid out already
    sooner = loaded.encode(list(LAW.values()), "document")
    assert calls == [1]
    monkeypatch.setattr(module, "same_layers", lambda backbone: False)
    assert np.allclose(loaded.encode(list(LAW.values()), "document"), sooner, atol=1e-6) and calls == [1]
