"""Every word of the board in Korean and in English."""

from collections.abc import Sequence

LANGUAGES = {"en": "English", "ko": "한국어"}
WORDS = {
    "title": ("Which pipeline should I ship?", "어떤 파이프라인을 쓸까?"),
    "subtitle": (
        "Korean retrieval: first stage and reranker, scored together, beside published numbers.",
        "한국어 검색: 1단계 검색과 리랭커를 함께 평가하고 공개된 수치와 나란히 놓습니다.",
    ),
    "view": ("View", "화면"),
    "overview": ("Overview", "개요"),
    "cost": ("Quality against cost", "품질과 비용"),
    "pipeline": ("Pipeline", "파이프라인"),
    "compare": ("Compare two", "둘 비교"),
    "training": ("Training", "학습"),
    "group": ("Tasks", "태스크 묶음"),
    "own": ("Own results", "자체 결과"),
    "metric": ("Metric", "지표"),
    "k": ("k", "k"),
    "filters": ("Search and filters", "검색·필터"),
    "search": ("Search by name", "이름으로 찾기"),
    "search_queries": ("Search by query or id", "질의나 id로 찾기"),
    "kind": ("Kind", "종류"),
    "size": ("Parameters", "파라미터"),
    "origin": ("Whose", "구분"),
    "ours": ("ours", "자체"),
    "published": ("published", "공개 수치"),
    "depth": ("Depth", "후보 수"),
    "no_depth": ("no reranker", "리랭커 없음"),
    "complete_rows": ("Only rows with every task", "모든 태스크가 있는 행만"),
    "partial": (
        "{n} rows lack some, fewest tasks first: {names}",
        "일부 태스크가 없는 행 {n}개(태스크가 적은 순): {names}",
    ),
    "task": ("Task", "태스크"),
    "rank": ("Rank", "순위"),
    "name": ("Pipeline", "파이프라인"),
    "mean": ("Mean", "평균"),
    "interval": ("95% interval", "95% 신뢰구간"),
    "coverage": ("Tasks", "태스크"),
    "milliseconds": ("ms a query", "질의당 ms"),
    "parameters": ("Parameters", "파라미터"),
    "pairs_per_second": ("pairs/s", "쌍/초"),
    "sources": ("Sources", "출처"),
    "tied": ("tied with", "동률"),
    "notes": ("Notes", "비고"),
    "common": (
        "Mean over the {n} of {m} tasks that every ranked row has: {tasks}.",
        "순위에 든 모든 행에 있는 태스크의 평균({m}개 중 {n}개): {tasks}.",
    ),
    "common_none": (
        "No task is common to all rows. {n} rows stand below the others without a mean and a rank: {names}. "
        "One task or a filter brings them together.",
        "모든 행에 공통인 태스크가 없습니다. {n}개 행은 평균과 순위 없이 아래에 둡니다: {names}. "
        "태스크 하나를 고르거나 필터를 쓰면 비교할 수 있습니다.",
    ),
    "ranks": (
        "= : tied. A paired test over the common tasks' queries does not tell the row from another one (p ≥ 0.05). "
        "A rank is 1 + the rows that are better, significantly so where both have per-query results (published rows "
        "have none), and never smaller than the rank of the row above.",
        "= : 동률. 공통 태스크의 질의에 대한 대응 검정으로 다른 행과 구별되지 않습니다(p ≥ 0.05). "
        "순위는 더 나은 행의 수 + 1이며, 두 행 모두 질의별 결과가 있으면 유의하게 나은 행만 셉니다"
        "(공개 수치에는 질의별 결과가 없습니다). 바로 위 행의 순위보다 작아지지는 않습니다.",
    ),
    "testing": ("Testing which ranks are tied…", "동률을 검정하는 중…"),
    "broken": ("{n} files could not be read and are left out", "읽을 수 없어 뺀 파일 {n}개"),
    "untested": (
        "{n} files of per-query results could not be read; their rows are ranked by means alone",
        "읽을 수 없는 질의별 결과 파일 {n}개: 그 행은 평균만으로 순위를 매깁니다",
    ),
    "short": (
        "Lists of depth {depths} end before rank {k}; choose k of at most {least}: {names}.",
        "후보 수가 {depths}인 목록은 {k}위에 이르기 전에 끝납니다. k를 {least} 이하로 고르세요: {names}.",
    ),
    "clashes": (
        "Other data under the same name, kept apart: {names}",
        "이름은 같지만 데이터가 달라 따로 둔 태스크: {names}",
    ),
    "empty": ("There are no results here yet.", "아직 결과가 없습니다."),
    "empty_run": (
        "Score something first; both commands use the bundled demo and no network:",
        "먼저 평가를 실행하세요. 두 명령 모두 함께 들어 있는 데모를 쓰며 네트워크가 필요 없습니다.",
    ),
    "no_rows": ("No row fits these filters.", "조건에 맞는 행이 없습니다."),
    "download": ("Download {kind}", "{kind} 내려받기"),
    "drawn": ("The first {n} of {m} rows are drawn.", "{m}개 행 가운데 위의 {n}개만 그렸습니다."),
    "grid": ("Sortable grid", "정렬할 수 있는 표"),
    "grid_help": (
        "The plain table is for reading aloud, searching and copying; the grid sorts by any column.",
        "일반 표는 화면 낭독기, 찾기, 복사에 알맞고, 이 표는 열마다 정렬할 수 있습니다.",
    ),
    "cost_of": ("Cost", "비용"),
    "pareto": ("Pareto front", "파레토 경계"),
    "pareto_say": (
        "On the front (nothing is both cheaper and better): {names}",
        "경계에 있는 것(더 싸면서 더 좋은 것이 없다): {names}",
    ),
    "without_cost": ("{n} rows have no such cost and are left out.", "이 비용이 없는 {n}개 행은 뺐습니다."),
    "stage": ("Stage", "단계"),
    "first_stage": ("First stage", "1단계 검색"),
    "reranked": ("+ reranker", "+ 리랭커"),
    "gain": ("Gain", "향상"),
    "ceiling": ("Ceiling", "상한"),
    "ceiling_say": (
        "The ceiling is the metric if every right answer among the candidates came first; "
        "candidate recall is the share of right answers there.",
        "상한은 후보에 든 정답이 모두 맨 앞에 올 때의 지표이고, 후보 재현율은 정답 가운데 후보에 든 비율입니다.",
    ),
    "candidate_recall": ("Candidate recall", "후보 재현율"),
    "won": ("Won", "이김"),
    "lost": ("Lost", "짐"),
    "same": ("Tied", "비김"),
    "p": ("p", "p"),
    "difference": ("Difference", "차이"),
    "per_query": ("Per query", "질의별"),
    "query": ("Query", "질의"),
    "right": ("First right answer at", "첫 정답 순위"),
    "show": ("Show", "보기"),
    "all": ("all", "모두"),
    "most": ("At most so many rows", "행 수 상한"),
    "order": ("Documents of one query", "한 질의의 문서"),
    "before": ("before", "이전"),
    "after": ("after", "이후"),
    "document": ("Document", "문서"),
    "answer": ("right answer", "정답"),
    "ids_only": (
        "The task's folder is not at hand, so ids stand for texts.",
        "태스크 폴더가 없어 본문 대신 id를 보여 줍니다.",
    ),
    "no_first_stage": (
        "Its first stage alone has no result on these tasks: run it with --reranker none too.",
        "이 태스크들에는 1단계 검색만의 결과가 없습니다. --reranker none으로도 평가하세요.",
    ),
    "first": ("First", "첫 번째"),
    "second": ("Second", "두 번째"),
    "wins": ("Biggest wins of the first", "첫 번째가 크게 앞선 질의"),
    "losses": ("Biggest losses of the first", "첫 번째가 크게 뒤진 질의"),
    "queries": ("queries", "질의"),
    "need_two": (
        "Two pipelines of ours with a task in common are needed.",
        "같은 태스크를 평가한 자체 파이프라인이 둘 있어야 합니다.",
    ),
    "by_query_missing": ("No readable per-query rows", "읽을 수 있는 질의별 결과가 없습니다"),
    "no_per_query": ("This metric has no value for a single query.", "이 지표는 질의 하나의 값이 없습니다."),
    "runs": ("Runs", "학습 실행"),
    "axis": ("Against", "가로축"),
    "step": ("step", "스텝"),
    "epoch": ("epoch", "에폭"),
    "seconds": ("seconds", "초"),
    "loss": ("Loss", "손실"),
    "tokens_per_second": ("Tokens a second", "초당 토큰"),
    "dev": ("Dev score", "dev 점수"),
    "negatives": ("Negatives a query", "질의당 네거티브 수"),
    "steps": ("Steps", "스텝"),
    "trainer": ("Trainer", "학습기"),
    "running": ("unfinished", "미완료"),
    "state": ("State", "상태"),
    "complete": ("complete", "완료"),
    "skipped": (
        "{n} broken lines of {name}/metrics.jsonl are left out.",
        "{name}/metrics.jsonl의 깨진 줄 {n}개를 뺐습니다.",
    ),
    "no_runs": (
        "No run folder with a metrics.jsonl under {folder}.",
        "{folder} 아래에 metrics.jsonl이 있는 실행이 없습니다.",
    ),
    "value": ("Value", "값"),
}  # fmt: skip
METRICS = {
    "ndcg": "nDCG",
    "recall": "Recall",
    "precision": "Precision",
    "mrr": "MRR",
    "hit_rate": "Hit rate",
    "f1": "F1",
}
KS = (1, 3, 5, 10)
MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<$~"})


def words(language: str) -> dict[str, str]:
    """Key -> word in a language."""
    column = list(LANGUAGES).index(language)
    return {key: both[column] for key, both in WORDS.items()}


def verbatim(text: str) -> str:
    """A name or an error as Markdown shows it unchanged: two `~mixed` are no words struck through."""
    return text.translate(MARKS)


def few(names: Sequence[str]) -> str:
    """The first three names, as Markdown."""
    return verbatim(", ".join(names[:3])) + (" …" if len(names) > 3 else "")


def metric_label(metric: str) -> str:
    """`ndcg_at_10` -> `nDCG@10`."""
    name, _, k = metric.rpartition("_at_")
    return f"{METRICS.get(name, name)}@{k}"
