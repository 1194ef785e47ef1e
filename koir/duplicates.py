"""When two texts count as the same: normalised equality, shared character 3-grams, MinHash over many rows."""

import hashlib
import re
import unicodedata

import numpy as np

VALUES = 128  # MinHash values a text: the standard error of an estimated similarity of 0.8 is 0.035
BANDS, BAND_VALUES = 12, 2  # pairs at 0.8 for query and document are missed once in 550: (1 - (0.8 * 0.8)^2)^12
PART = 16384  # shingles at once
WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The letters-and-digits runs of a text, NFC and case-folded; whitespace, punctuation and symbols separate them."""
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())


def normalised(text: str) -> str:
    """A text as duplicates are compared: its `words` without anything between them."""
    return "".join(words(text))


def digest(normal: str) -> int:
    """64 bits that stand for a normalised text, equal on every process and machine."""
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shingles(normal: str) -> np.ndarray:
    """Hashes of the character 3-grams of a normalised text, in order, some perhaps twice; uint32 [S], S >= 1."""
    codes = np.frombuffer(f"\x02{normal or chr(0)}\x03".encode("utf-32-le", "surrogatepass"), np.uint32)
    mixed = codes[:-2] * np.uint32(0x9E3779B1) ^ codes[1:-1] * np.uint32(0x85EBCA77) ^ codes[2:] * np.uint32(0xC2B2AE3D)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    return mixed ^ (mixed >> np.uint32(12))


class MinHash:
    """Signatures whose share of equal values estimates the Jaccard similarity of two sets of `shingles`.

    Numpy rather than datasketch or rensa: a text of 800 characters takes 0.1 ms (1 ms in datasketch, which hashes
    3-gram by 3-gram in Python), and a row takes 350 bytes of an index (1.7 KB in either library's).
    """

    def __init__(self, seed: int):
        generator = np.random.default_rng(seed)
        self.factors = generator.integers(0, 2**32, (VALUES, 1), dtype=np.uint32) | np.uint32(1)
        self.offsets = generator.integers(0, 2**32, (VALUES, 1), dtype=np.uint32)

    def __call__(self, hashes: np.ndarray) -> np.ndarray:
        """uint32 [S] -> uint8 [VALUES]; eight bits a value agree by chance once in 256 (b-bit minwise hashing)."""
        parts = np.array_split(hashes, -(-len(hashes) // PART))  # a text of a megabyte would take half a gigabyte
        lowest = np.minimum.reduce([(self.factors * part + self.offsets).min(axis=1) for part in parts])
        return ((lowest * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


class NearDuplicates:
    """Rows kept so far, found again by locality-sensitive hashing of query and document together.

    Two rows are near duplicates when their queries AND their documents are each similar at `threshold`: over the
    joined text, any two questions on one long paragraph would be. A band's key holds values of both, so one question
    of many documents, or many questions of one document, do not share buckets. A bucket keeps its first row. It is a
    slot of a table with four to eight slots a row: rows that meet there by chance are told apart by their
    signatures, and the later one is missing from that band alone.
    """

    def __init__(self, threshold: float):
        self.threshold, self.rows, self.bands = threshold, 0, np.arange(BANDS)
        self.signatures = np.empty((0, 2, VALUES), np.uint8)
        self._grow(1024)

    def add(self, query: np.ndarray, document: np.ndarray) -> bool:
        """Whether a row (two signatures, uint8 [VALUES]) is a near duplicate of an earlier one; added where not."""
        row = np.stack([query, document])  # [2, VALUES]
        slots = self._slots(row[None])[0]
        found = self.table[self.bands, slots]  # [BANDS]
        rivals = self.signatures[np.unique(found[found >= 0])]  # [C, 2, VALUES]
        if len(rivals) and ((rivals == row).mean(axis=2).min(axis=1) >= self.threshold).any():
            return True
        if self.rows == len(self.signatures):
            self._grow(2 * self.rows)
            slots = self._slots(row[None])[0]
            found = self.table[self.bands, slots]
        self.signatures[self.rows] = row
        self.table[self.bands, slots] = np.where(found >= 0, found, self.rows)
        self.rows += 1
        return False

    def _slots(self, rows: np.ndarray) -> np.ndarray:
        """Signatures [N, 2, VALUES] -> table slots [N, BANDS]."""
        used = rows[:, :, : BANDS * BAND_VALUES].reshape(len(rows), 2, BANDS, BAND_VALUES).swapaxes(1, 2)
        keys = used.reshape(len(rows), -1).view(np.uint32)  # two values of the query, two of the document: 32 bits
        mixed = keys * np.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA77)
        return mixed >> np.uint32(32 - self.bits)

    def _enter(self, start: int, stop: int) -> None:
        slots = self._slots(self.signatures[start:stop])
        numbers = np.arange(start, stop, dtype=np.int32)[::-1]
        for band in self.bands:  # backwards: of two rows in one slot the first is written last, and stays
            before = self.table[band, slots[::-1, band]]
            self.table[band, slots[::-1, band]] = np.where(before >= 0, before, numbers)

    def _grow(self, capacity: int) -> None:
        kept, self.bits = self.signatures[: self.rows], (4 * capacity - 1).bit_length()
        self.signatures = np.empty((capacity, 2, VALUES), np.uint8)
        self.signatures[: self.rows] = kept
        self.table = np.full((BANDS, 1 << self.bits), -1, np.int32)
        for start in range(0, self.rows, 4096):
            self._enter(start, min(start + 4096, self.rows))
