"""Generates text with a model: python generate.py --workdir=runs/tiny --prompt="The old"."""

import sys
from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError, printable

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final, or a step.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Start of the text; may be repeated to generate one text per prompt."
)
_TOKENS = flags.DEFINE_integer("tokens", 300, "Number of tokens to generate.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Softmax temperature; 0 is greedy.")
_GREEDY = flags.DEFINE_bool("greedy", False, "Always take the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from this many likeliest tokens; 0: all.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Sample from the fewest tokens with this total probability."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
_STOP = flags.DEFINE_multi_string("stop", [], "Stop before this string; may be repeated.")
_SESSION = flags.DEFINE_string(
    "session", None, "Session file: continued if it exists, and saved afterward."
)


def main():
    prompts, session = _PROMPT.value, _SESSION.value and Path(_SESSION.value)
    if session and len(prompts) > 1:
        raise UserError("--session can be used with only one --prompt")

    if "" in _STOP.value:
        raise UserError("--stop is empty; give a string to stop before")
    if session:
        _check_folder(session.absolute().parent)

    import mmrec_jax
    from mmrec_jax.inference.generation import Sampling
    from mmrec_jax.waiting import waiting

    sampling = {
        "temperature": 0.0 if _GREEDY.value else _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "seed": _SEED.value,
    }
    Sampling(**sampling)  # raises before anything is read
    how = {"max_tokens": _TOKENS.value, "stop": _STOP.value, **sampling}
    with waiting(f"reading {_WORKDIR.value}"):
        lm = mmrec_jax.load(_WORKDIR.value, _CHECKPOINT.value)
    if len(prompts) > 1:
        with waiting("writing"):
            texts = lm.generate(prompts, **how)
        for prompt, text in zip(prompts, texts, strict=True):
            print(_shown(f"--- {prompt}\n{prompt}{text}"))
        return
    prompt = prompts[0] if prompts else ""
    conversation = lm.session(session if session and session.exists() else None)
    with waiting("reading the prompt"):  # and compiling
        conversation.read(prompt)
    print(_shown(prompt), end="", flush=True)
    for piece in conversation.stream(**how):
        print(_shown(piece), end="", flush=True)
    print()
    if session:
        conversation.save(session)


def _shown(text: str) -> str:
    """The text, which may be of a stranger's model, in a form that is safe for a terminal."""
    return printable(text, keep="\n\t") if sys.stdout.isatty() else text


def _check_folder(folder: Path) -> None:
    """Raises UserError if no session could be saved in a folder."""
    from mmrec_jax.files import check_writable

    if not folder.is_dir():
        raise UserError(f"--session: there is no folder {folder}")
    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(f"--session: {folder} cannot be written to: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
