"""Reading comprehension becomes rows: question -> paragraph, where the answer stands where the file says it stands."""

import contextlib
import html
import re
import unicodedata
from collections.abc import Iterator

from koir.sources.tally import Tally

# A text is HTML where one of these stands in it: a Korean title is <Okja> or <설국열차>, a writer <name@host>.
HTML = re.compile(
    r"</?(?:p|div|span|table|thead|tbody|tr|t[dh]|ul|ol|li|dl|dt|dd|h[1-6]|br|hr|img|strong|em|sup|sub|font|script|style"
    r"|html|body)\b[^<>]*>|</[abi]>|<a\s[^<>]*>|<!--|<!DOCTYPE",
    re.IGNORECASE,
)
TAG = re.compile(r"</?[a-zA-Z][\w:-]*(?:[\s/][^<>]*)?>")  # of any name, where the text is HTML
BLOCK = re.compile(
    r"</(?:p|div|tr|li|ul|ol|h\d|table|caption|dd|dt|title)>|<br\s*/?>|<tr\b[^<>]*>(?:\s*<t[dh]\b[^<>]*>)?",
    re.IGNORECASE,
)
CELL = re.compile(r"(?:</t[dh]>)?\s*<t[dh]\b[^<>]*>", re.IGNORECASE)  # a cell's end may be left out
MARKUP = 8  # characters with markup for one of text: where an answer's surroundings are looked for
UNSEEN = re.compile(r"<(script|style|head)\b.*?</\1>|<!--.*?-->|<!DOCTYPE[^>]*>", re.IGNORECASE | re.DOTALL)


def questions(record: dict, place: str, tally: Tally, source: str, answered: bool = True) -> Iterator[dict]:
    """Rows of one entry of a SQuAD-like file, whichever of its spellings: `paragraphs` or one `context` or `passage`;
    `qas`, `qa_pairs` or a flat row; `answers` as a list, an object, or lists in an object; `answer`.

    A question is dropped, and counted, when it is unanswerable, has no answer, or none of its answers or clues stands
    in the context at the offset given (offsets may count the context as it is or as NFC; an answer without any offset
    must occur). answered: False for a release without answers, or with computed ones: then an answer may be missing,
    and one without an offset need not occur, in a context that stays whole. A context longer than `tally.window`
    characters becomes a window around the first answer, begun by the title. HTML becomes text, cells divided by " | ".
    """
    title = record.get("title") or record.get("doc_title") or ""
    paragraphs = record.get("paragraphs", [record])
    if not paragraphs:
        tally.drop("no paragraph", place)
    for paragraph in paragraphs or []:
        context = paragraph["passage"] if "passage" in paragraph else paragraph["context"]
        context = context or ""
        asked = paragraph.get("qas", paragraph.get("qa_pairs"))
        for qa in [paragraph] if asked is None else asked:
            tally.questions += 1
            number = qa.get("question_id") or qa.get("guid") or qa.get("id") or ""
            reason, start, end = _span(qa, context, answered)
            for counted in _as_counted(context) if reason else ():
                found = _span(qa, counted, answered)
                if not found[0]:
                    context, (reason, start, end) = counted, found
                    break
            whole = _whole(context, tally.window)
            if not reason and whole is None and not end:
                reason = "no place of the answer in a paragraph longer than the window"
            if reason:
                tally.drop(reason, f"{place}, question {number}")
                continue
            document = whole
            if document is None:
                tally.notes["paragraphs cut to a window around the answer"] += 1
                document = excerpt(context, start, end, tally.window, title)
            caption = str(paragraph.get("table_title") or "").strip()  # what the numbers of a table are of
            if caption and caption not in document:
                document = f"{caption}\n{document}"
            yield {"query": qa["question"].strip(), "document": document, "source": source, "id": str(number)}


def _as_counted(context: str) -> list[str]:
    """What offsets may count in its place: composed text in a macOS copy, single line ends in a Windows one."""
    composed = unicodedata.normalize("NFC", context)
    others = dict.fromkeys((composed, context.replace("\r\n", "\n"), composed.replace("\r\n", "\n")))
    return [other for other in others if other != context]


def _whole(context: str, window: int) -> str | None:
    """The context as text where that fits the window; of a page far beyond it not even the markup is read."""
    text = plain(context) if len(context) <= MARKUP * window else None
    return text if text is not None and len(text) <= window else None


def _span(qa: dict, context: str, answered: bool) -> tuple[str, int, int]:
    """Why the question is dropped ("" when it is not), and where its answer starts and ends in the context (0, 0: not
    known)."""
    if str(qa.get("is_impossible") or False).lower() not in ("false", "0", "n"):
        return "unanswerable", 0, 0
    if not (qa["question"] or "").strip():
        return "empty question", 0, 0
    if not context.strip():
        return "empty paragraph", 0, 0
    spans = _answers(qa)
    located = answered or any(start is not None for start, _ in spans)
    for start, text in spans:
        start = context.find(text) if start is None else start
        if start >= 0 and context.startswith(unicodedata.normalize("NFC", text), start):
            return "", start, start + len(text)
        if start >= 0 and context.startswith(text, start):
            return "", start, start + len(text)
    if spans and located:
        return "the answer is not at its offset", 0, 0
    return ("no answer" if answered else ""), 0, 0


def _answers(qa: dict) -> list[tuple[int | None, str]]:
    """(offset or None, text) of every answer and clue; of an answer that has a clue only with an offset of its own."""
    found = qa.get("answers") or qa.get("answer") or []
    if isinstance(found, dict) and isinstance(found.get("text"), list):  # as dataset libraries flatten it
        found = [{"text": t, "answer_start": s} for t, s in zip(found["text"], found["answer_start"], strict=True)]
    spans = []
    for answer in found if isinstance(found, list) else [found]:
        answer = answer if isinstance(answer, dict) else {"text": answer}
        start, text, clue = _offset(answer, "answer_start"), answer.get("text"), answer.get("clue_text")
        if text not in (None, "") and not (clue and start is None):
            spans.append((start, str(text)))
        if clue:
            spans.append((_offset(answer, "clue_start"), clue))
    return spans


def _offset(answer: dict, name: str) -> int | None:
    """Where an answer or clue begins; None where that is not told, -1 where it is no number."""
    found = answer.get(name)
    with contextlib.suppress(ValueError, OverflowError):
        return None if found is None or found == "" else int(found)
    return -1


def excerpt(context: str, start: int, end: int, window: int, title: str = "") -> str:
    """The context as text; when longer than `window` characters, the title and a window with [start, end) in it.

    The window has the answer in its middle, or its first `window` characters where the answer is longer, and begins and
    ends at white space.
    """
    if len(context) <= window:
        return plain(context)
    marked = HTML.search(context) is not None
    margin = window * (MARKUP if marked else 1)
    low, high = max(0, start - margin), min(len(context), end + margin)
    before, answer, after = context[low:start], context[start:end], context[end:high]
    if marked:
        before = before[max(0, before.find(">") + 1 if low else 0) :]
        before, answer, after = map(_text, (before, answer, re.sub(r"<[^<>]*$", "", after)))
    answer = answer[:window]
    room = window - len(answer)
    side = room - min(len(after), room // 2)  # what the other side does not need
    left = before[max(0, len(before) - side) :]
    right = after[: room - len(left)]
    if len(left) < len(before) or low:
        left = re.sub(r"^\S*\s", "", left)
    if len(right) < len(after) or high < len(context):
        right = re.sub(r"\s\S*$", "", right)
    text = (left + answer + right).strip()
    return text if not title or text.startswith(title) else f"{title}\n{text}"


def plain(text: str) -> str:
    """HTML as text: rows on lines of their own, cells divided by " | "; other text as it is."""
    return (_text(text) if HTML.search(text) else text).strip()


def _text(markup: str) -> str:
    text = TAG.sub("", CELL.sub(" | ", BLOCK.sub("\n", UNSEEN.sub(" ", markup))))
    text = html.unescape(text).replace("\xa0", " ")
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", text))
