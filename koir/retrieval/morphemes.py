"""Korean words for lexical search: Kiwi's content morphemes, found on all cores once and kept on disk.

Kiwi reads some 70,000 characters a second and core and lets go of Python's lock meanwhile (95 % of the time is spent in
its own threads), so it runs on all cores by itself and needs no worker processes; what is worth having is not to ask
it twice for the same text: from the cache come some 4 million characters a second.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import sqlite3
import sys
import unicodedata
from collections.abc import Iterator, Sequence

from kiwipiepy import Kiwi

from koir.bars import progress_bar
from koir.manifest import cache_folder

# What counts as a word: nouns, numerals, roots, foreign words, numbers, Chinese characters, URLs, prefixes, suffixes.
# Chosen by nDCG@10 on dev splits (benchmarks/bm25_tags.py); dependent nouns, pronouns and verbs cost more than they
# give.
CONTENT_TAGS = ("NNG", "NNP", "NR", "XR", "SL", "SN", "SH", "W_", "XP", "XS")
# Characters that stand for others: full-width ones for ASCII's, and for none.
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
PLAIN |= dict.fromkeys([0x00AD, *range(0x200B, 0x200E), 0x2060, 0xFEFF])  # soft hyphen, zero-width ones
WORTH_KEEPING = 20_000  # characters in one call below which the cache is left alone: 0.3 s of one core
CACHE_BYTES = 2 * 2**30  # then the older half is forgotten
CHUNK = 2048  # texts between two commits: a killed run keeps what it has


@functools.cache
def _kiwi() -> Kiwi:
    return Kiwi()


def morphemes(texts: Sequence[str], progress: str | None = None) -> list[list[str]]:
    """The content morphemes of each text, lower-cased; particles, endings and punctuation are left out.

    progress: what the bar on stderr calls the texts; None for no bar.
    """
    keep = _cache() if sum(map(len, texts)) > WORTH_KEEPING else contextlib.nullcontext()
    found, shared = [], {}  # equal words are one object: a corpus of words fits in memory
    with keep as cache, progress_bar(progress, total=len(texts), unit="text", leave=False) as bar:
        for start in range(0, len(texts), CHUNK):
            chunk = [plain_forms(t).encode("utf-8", "ignore") for t in texts[start : start + CHUNK]]
            lists = None
            if cache:
                try:
                    lists = _remembered(chunk, cache)
                except sqlite3.Error as error:  # damaged, read-only, a full disk
                    _do_without(error)
                    cache = None
            lists = lists or _tokenised([text.decode() for text in chunk])
            found += [[shared.setdefault(word, word) for word in words] for words in lists]
            bar.update(len(chunk))
    return found


def plain_forms(text: str) -> str:
    """A text in NFC, full-width letters, digits and signs as ASCII's, without characters that show nothing."""
    return unicodedata.normalize("NFC", text).translate(PLAIN)


def _tokenised(texts: list[str]) -> list[list[str]]:
    return [
        [token.form.lower() for token in tokens if token.tag.startswith(CONTENT_TAGS)]
        for tokens in _kiwi().tokenize(texts)
    ]


# --- cache -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _cache() -> Iterator[sqlite3.Connection | None]:
    """morphemes.sqlite in the cache folder: a hash of version and text -> words. None where it cannot be used."""
    file = cache_folder() / "morphemes.sqlite"
    try:
        cache = sqlite3.connect(file, timeout=60, isolation_level=None)
        cache.execute("PRAGMA synchronous = OFF")
        cache.execute("CREATE TABLE IF NOT EXISTS morphemes (number INTEGER PRIMARY KEY, key BLOB UNIQUE, words TEXT)")
    except sqlite3.Error as error:
        _do_without(error)
        yield None
        return
    with contextlib.closing(cache):
        yield cache


def _do_without(error: sqlite3.Error) -> None:
    file = cache_folder() / "morphemes.sqlite"
    print(f"{file}: {error}; every text is tokenised anew (the file may be deleted)", file=sys.stderr)


def _remembered(texts: list[bytes], cache: sqlite3.Connection) -> list[list[str]]:
    """The words of each text, from the cache where it has them, and in it afterwards."""
    keys = [hashlib.blake2b(_version() + text, digest_size=16).digest() for text in texts]
    distinct, known = list(dict.fromkeys(keys)), {}
    for start in range(0, len(distinct), 500):
        some = distinct[start : start + 500]
        marks = ",".join("?" * len(some))
        known.update(cache.execute(f"SELECT key, words FROM morphemes WHERE key IN ({marks})", some))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    words = _tokenised([text.decode() for text in missing.values()])
    new = {key: "\n".join(of_text) for key, of_text in zip(missing, words, strict=True)}
    if new:
        cache.execute("BEGIN IMMEDIATE")
        cache.executemany("INSERT OR IGNORE INTO morphemes (key, words) VALUES (?, ?)", new.items())
        _forget_older_half(cache)
        cache.execute("COMMIT")
    known.update(new)
    return [known[key].split("\n") if known[key] else [] for key in keys]


def _forget_older_half(cache: sqlite3.Connection) -> None:
    facts = ("page_count", "freelist_count", "page_size")
    pages, free, size = (cache.execute(f"PRAGMA {what}").fetchone()[0] for what in facts)
    if (pages - free) * size > CACHE_BYTES:
        cache.execute("DELETE FROM morphemes WHERE number <= (SELECT (MIN(number) + MAX(number)) / 2 FROM morphemes)")


@functools.cache
def _version() -> bytes:
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("kiwipiepy", "kiwipiepy_model")]
    return "\n".join([*packages, *CONTENT_TAGS, ""]).encode()
