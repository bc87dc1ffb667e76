"""Generated texts that show what a model remembers: facts, then noise, then questions.

together    k1 v1 k2 v2 ... in noise, more noise, then each key again, in another order, and its
            value
scattered   the same, with noise between the pairs
passkey     "the pass key is 3 1 4 2 5 ." in filler sentences, more filler, then the question

The values or digits after a question are the answers; only answers are predicted. The vocabulary is
closed: words separated by spaces.
"""

from typing import NamedTuple

import numpy as np

from mmrec_jax.data.tokenizers import WordTokenizer
from mmrec_jax.errors import UserError

TASKS = ("together", "scattered", "passkey")
PASSKEY_LEN = 5
FILLER = (
    "the river runs down to the sea .",
    "a bird sits on the roof .",
    "we walk along the old road .",
    "the bread is on the table .",
    "rain falls all night .",
    "the door is open .",
    "they sing and then they rest .",
    "a cold wind comes from the north .",
)
STATEMENT = "the pass key is"
QUESTION = "what is the pass key ? the pass key is"

KEYS = [f"k{i}" for i in range(64)]
VALUES = [f"v{i}" for i in range(32)]
NOISE = [f"n{i}" for i in range(32)]
DIGITS = [*"0123456789"]
_PROSE = sorted({word for text in (*FILLER, QUESTION) for word in text.split()})
TOKENIZER = WordTokenizer([*KEYS, *VALUES, *NOISE, *DIGITS, *_PROSE])

_KEYS, _VALUES, _NOISE, _DIGITS, _STATEMENT, _QUESTION = (
    TOKENIZER.encode(text if isinstance(text, str) else " ".join(text))
    for text in (KEYS, VALUES, NOISE, DIGITS, STATEMENT, QUESTION)
)
_FILLER = [TOKENIZER.encode(sentence) for sentence in FILLER]
_STOP = TOKENIZER.encode(".")


class Text(NamedTuple):
    """A text in two parts; noise may be put between them."""

    facts: np.ndarray  # int32 [tokens]: what to remember, in noise
    questions: np.ndarray  # int32 [tokens]
    answers: np.ndarray  # bool [tokens]: which tokens of the questions are answers


def chance(task: str) -> float:
    """Expected share of correct answers when guessing at random among the possible ones."""
    return 1 / len(DIGITS if task == "passkey" else VALUES)


def fact_tokens(task: str, pairs: int) -> int:
    """Number of tokens of a text's facts, without noise."""
    return len(_STATEMENT) + PASSKEY_LEN + 1 if task == "passkey" else 2 * pairs


def question_tokens(task: str, pairs: int) -> int:
    """Number of tokens of a text's questions, with the answers."""
    return len(_QUESTION) + PASSKEY_LEN if task == "passkey" else 2 * pairs


class SuiteLengths(NamedTuple):
    """Numbers of tokens in the texts of the recall suite."""

    piece: int  # read in one call; divides the others
    facts: int
    questions: int  # with noise before them


def suite_lengths(pairs: int, length: int, chunk_len: int) -> SuiteLengths:
    """How the suite divides its shortest texts, which have the training length.

    Raises:
        UserError: they are too short for the facts and questions.
    """
    piece = round_up(length // 4, chunk_len)
    questions = round_up(max(question_tokens(task, pairs) for task in TASKS), piece)
    facts = max(round_up(length // 2, piece), piece)
    if facts + questions > length:
        raise UserError(
            f"train.seq_len {length} is too short for {pairs} pairs and their questions"
        )
    return SuiteLengths(piece, facts, questions)


def round_up(count: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-count // unit) * unit


def check_lengths(pairs: int, length: int) -> None:
    """Raises UserError if texts of this length have no room for that many pairs."""
    if pairs > len(KEYS):
        raise UserError(f"data.recall_pairs is {pairs}; there are only {len(KEYS)} keys")
    for task in TASKS:
        need = fact_tokens(task, pairs) + question_tokens(task, pairs)
        if need > length:
            raise UserError(
                f"train.seq_len is {length}; a text of the recall task {task!r} with {pairs} pairs "
                f"needs {need} tokens"
            )


def make_text(rng: np.random.Generator, task: str, pairs: int, length: int) -> Text:
    """A text whose facts, with the noise around them, take `length` tokens."""
    if task == "passkey":
        return _make_passkey(rng, length)
    keys = rng.choice(_KEYS, pairs, replace=False)
    values = rng.choice(_VALUES, pairs)
    facts = make_noise(rng, task, length)
    room = length - pairs  # places to choose from, counting a pair as one
    if task == "together":
        place = rng.integers(length - 2 * pairs + 1) + 2 * np.arange(pairs)
    else:
        place = np.sort(rng.choice(room, pairs, replace=False)) + np.arange(pairs)
    facts[place], facts[place + 1] = keys, values
    order = rng.permutation(pairs)
    questions = np.stack([keys[order], values[order]], axis=1).ravel()
    return Text(facts, questions, np.tile([False, True], pairs))


def _make_passkey(rng, length):
    # All different: a digit that occurred twice would not determine the digit that follows it.
    digits = rng.choice(_DIGITS, PASSKEY_LEN, replace=False)
    statement = np.concatenate([_STATEMENT, digits, _STOP])
    filler = make_noise(rng, "passkey", length - len(statement))
    ends = np.flatnonzero(np.concatenate([_STOP, filler]) == _STOP)  # between two sentences
    facts = np.insert(filler, rng.choice(ends), statement)
    questions = np.concatenate([_QUESTION, digits])
    return Text(facts, questions, np.arange(len(questions)) >= len(_QUESTION))


class Noise:
    """Irrelevant tokens: random noise words, or filler sentences for "passkey"."""

    def __init__(self, rng: np.random.Generator, task: str):
        self.rng, self.task = rng, task
        self.rest = np.zeros(0, np.int32)

    def take(self, length: int) -> np.ndarray:
        """The next tokens, int32 [length]; a sentence that they break off goes on in the next."""
        if self.task != "passkey":
            return self.rng.choice(_NOISE, length)
        most = -(-max(length - len(self.rest), 0) // min(map(len, _FILLER)))
        chosen = self.rng.integers(len(_FILLER), size=most)
        tokens = np.concatenate([self.rest, *(_FILLER[i] for i in chosen)])
        self.rest = tokens[length:]
        return tokens[:length]


def make_noise(rng: np.random.Generator, task: str, length: int) -> np.ndarray:
    """The first tokens of new noise, int32 [length]."""
    return Noise(rng, task).take(length)


def make_training_texts(
    rng: np.random.Generator, pairs: int, count: int, length: int, fewest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts of all tasks in turn, of random lengths, with noise before them as padding.

    Each has `fewest` to `pairs` pairs. Learning begins with the easy ones, which are short and have
    few pairs.

    Returns:
        Tokens, int32 [count, length], and which of them are answers, bool [count, length].
    """
    tokens, answers = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    for row in range(count):
        task = TASKS[row % len(TASKS)]
        some = int(rng.integers(fewest, pairs + 1))
        asked, least = question_tokens(task, some), fact_tokens(task, some)
        used = int(rng.integers(least + asked, length + 1))  # the rest is noise before the facts
        facts = int(rng.integers(least, used - asked + 1))
        text = make_text(rng, task, some, facts)
        before = make_noise(rng, task, length - used)
        after = make_noise(rng, task, used - asked - facts)
        tokens[row] = np.concatenate([before, text.facts, after, text.questions])
        answers[row, length - asked :] = text.answers
    return tokens, answers
