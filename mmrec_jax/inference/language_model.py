"""The interface to a trained model in Python, for example in a notebook.

lm = mmrec_jax.load("runs/tiny")
print(lm.generate("The old "))
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrec_jax.data.batches import TextWindows
from mmrec_jax.data.tokenizers import document_tokens
from mmrec_jax.errors import UserError
from mmrec_jax.inference.generation import Generator, Sampling, Session, until_stop
from mmrec_jax.inference.inspection import Inside, look_inside
from mmrec_jax.inference.sessions import fingerprint, load_session, save_session
from mmrec_jax.learning.breakdown import Bucket
from mmrec_jax.learning.evaluate import EvalResult, evaluate, make_eval_step
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.tables import table_text


def load(workdir: str | Path, checkpoint: str = "best") -> "LanguageModel":
    """Loads the model of a run: its checkpoint best, latest, final, or a step.

    Raises:
        UserError: the workdir or checkpoint does not exist or cannot be read.
    """
    return LanguageModel(Path(workdir), checkpoint)


class LanguageModel:
    """Reads and writes texts. Has `config`, `tokenizer` and `params` of a run."""

    def __init__(self, workdir: Path, checkpoint: str):
        run = open_run(workdir)
        self.config, self.tokenizer = run.config, run.tokenizer
        self.params = run.params(run.checkpoints.resolve(checkpoint))
        self.generator = Generator(self.config.model, self.params, self.tokenizer.text_ids)
        self._eval_step = make_eval_step(self.config.model)

    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int = 300,
        stop: Sequence[str] = (),
        **sampling,
    ) -> str | list[str]:
        """The model's continuation of a prompt, or of each of several, read as one batch.

        Args:
            prompt: one text or several, of any length.
            max_tokens: maximum number of tokens to generate.
            stop: strings to stop before.
            **sampling: temperature, top_k, top_p, seed (`generation.Sampling`).

        Raises:
            UserError: a value is out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            return []
        tokens = [document_tokens(self.tokenizer, text) for text in prompts]
        session = self.generator.read(self.generator.start(len(prompts)), tokens)
        written = self.generator.write(session, max_tokens, Sampling(**sampling))

        def read_row(row, steps):
            tokens = (int(step[row]) for step in steps)
            return "".join(until_stop(self.tokenizer.pieces(tokens), stop))

        # Each text reads up to its stop string; tokens are drawn when the first text needs them.
        copies = itertools.tee((tokens for tokens, _ in written), len(prompts))
        texts = [read_row(row, steps) for row, steps in enumerate(copies)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self, prompt: str, max_tokens: int = 300, stop: Sequence[str] = (), **sampling
    ) -> Iterator[str]:
        """Like `generate` for one prompt, but yields the text piece by piece as it is written."""
        return self.session().stream(prompt, max_tokens, stop, **sampling)

    def session(self, path: str | Path | None = None) -> "Conversation":
        """A new session, or the one saved at `path`.

        Raises:
            UserError: the file is missing, is not a session, or belongs to another model.
        """
        return Conversation(self, path)

    def evaluate(self, text: str) -> EvalResult:
        """Loss, accuracy and other measures of a text, read with carried memory.

        Raises:
            UserError: the text is empty.
        """
        return self._evaluate(text, distances=False)

    def _evaluate(self, text: str, distances: bool) -> EvalResult:
        line_ends, seq_len = self.config.data.count_line_ends, self.config.train.seq_len
        windows = TextWindows([text], self.tokenizer, seq_len, "the text", line_ends)
        step, config = self._eval_step, self.config
        return evaluate(step, self.params, windows, config, carry_memory=True, distances=distances)

    def loss_by_distance(self, text: str) -> "LossByDistance":
        """The loss of each token of a text by how far back the token last occurred.

        Printing the result shows it as a table.

        Raises:
            UserError: the text is empty.
        """
        breakdown = self._evaluate(text, distances=True).breakdown
        return LossByDistance(breakdown.buckets("token"), breakdown.buckets("pair"))

    def perplexity(self, text: str) -> float:
        """exp of the mean loss of a text in nats per token; see `evaluate`."""
        return self.evaluate(text).perplexity

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits of the next token after each token id, float32 [tokens, vocab]."""
        return self.generator.logits(np.asarray(ids, np.int32))

    def look_inside(self, text: str) -> Inside:
        """Saliencies, what long-term memory keeps, and half-lives as the model reads a text.

        Raises:
            UserError: the text is empty.
        """
        if not text:
            raise UserError("the text is empty; give at least one character")
        return look_inside(self.config.model, self.params, self.tokenizer.encode(text))

    def fingerprint(self) -> str:
        """A hash of the parameters, the model's shape and the tokenizer."""
        return fingerprint(self.config.model, self.params, self.tokenizer.to_json())


class LossByDistance(NamedTuple):
    """The loss of a text, read with carried memory, by tokens since something last occurred."""

    token: list[Bucket]  # since the same token
    pair: list[Bucket]  # since the same token after the same token

    def __repr__(self) -> str:
        names = dict.fromkeys(of.name for of in sorted((*self.token, *self.pair), key=_never_last))
        columns = [{bucket.name: bucket for bucket in of} for of in self]
        rows = []
        for name in names:
            found = [buckets.get(name) for buckets in columns]
            cells = [(f"{of.tokens:,}", f"{of.loss:.4f}") if of else ("0", "-") for of in found]
            rows.append((name, *cells[0], *cells[1]))
        heads = ("distance", "same token:\ntokens", "\nloss", "same pair:\ntokens", "\nloss")
        return table_text(heads, rows)


def _never_last(bucket: Bucket) -> float:
    return math.inf if bucket.first is None else bucket.first


class Conversation:
    """A session: a text read and written in turns. Its memory has a constant size."""

    def __init__(self, lm: LanguageModel, path: str | Path | None = None):
        self._lm = lm
        session = lm.generator.start()
        if path is not None:
            session = load_session(Path(path), session, lm.fingerprint())
        self._set(session)

    def _set(self, session: Session) -> None:
        self._now = lambda: session  # what gives the session now

    @property
    def tokens_read(self) -> int:
        """Tokens of the text so far, including generated ones."""
        return int(self._now().read[0])

    def read(self, text: str) -> None:
        """Reads more text."""
        tokenizer = self._lm.tokenizer
        begin = document_tokens(tokenizer, "") if self.tokens_read == 0 else []
        tokens = np.array([*begin, *tokenizer.encode(text)], np.int32)
        self._set(self._lm.generator.read(self._now(), [tokens]))

    def stream(
        self, prompt: str = "", max_tokens: int = 300, stop: Sequence[str] = (), **sampling
    ) -> Iterator[str]:
        """Reads a prompt and yields its continuation in pieces; see `LanguageModel.generate`.

        Everything generated counts as read, including a stop string.
        """
        self.read(prompt)
        tokens = self._write(max_tokens, Sampling(**sampling))
        yield from filter(None, until_stop(self._lm.tokenizer.pieces(tokens), stop))

    def _write(self, max_tokens, sampling):
        written = self._lm.generator.write(self._now(), max_tokens, sampling)
        for tokens, self._now in written:
            yield int(tokens[0])

    def generate(self, prompt: str = "", max_tokens: int = 300, stop=(), **sampling) -> str:
        """Like `stream`, but returns the complete text."""
        return "".join(self.stream(prompt, max_tokens, stop, **sampling))

    def save(self, path: str | Path) -> None:
        """Saves the session; `LanguageModel.session(path)` continues it."""
        save_session(Path(path), self._now(), self._lm.fingerprint())
