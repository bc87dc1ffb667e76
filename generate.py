"""Writes text with a trained model: python generate.py --workdir=runs/tiny --prompt="The old"."""

from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, final or a step.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "What the text starts with, if anything. Given several times: so many texts."
)
_TOKENS = flags.DEFINE_integer("tokens", 300, "How many tokens to write.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Of the softmax; 0 is greedy.")
_GREEDY = flags.DEFINE_bool("greedy", False, "Take the most likely token each time.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among so many most likely tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the fewest tokens of this probability.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
_STOP = flags.DEFINE_multi_string("stop", [], "Stop before this string. May be given repeatedly.")
_SESSION = flags.DEFINE_string(
    "session", None, "Go on with the session in this file if it is there, and save it afterwards."
)


def main():
    prompts, session = _PROMPT.value, _SESSION.value and Path(_SESSION.value)
    if session and len(prompts) > 1:
        raise UserError("--session goes with one --prompt, not with several")

    import mmrec_jax

    lm = mmrec_jax.load(_WORKDIR.value, _CHECKPOINT.value)
    how = {
        "max_tokens": _TOKENS.value,
        "stop": _STOP.value,
        "temperature": 0.0 if _GREEDY.value else _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "seed": _SEED.value,
    }
    if len(prompts) > 1:
        for prompt, text in zip(prompts, lm.generate(prompts, **how), strict=True):
            print(f"--- {prompt}\n{prompt}{text}")
        return
    prompt = prompts[0] if prompts else ""
    conversation = lm.session(session if session and session.exists() else None)
    print(prompt, end="", flush=True)
    for piece in conversation.stream(prompt, **how):
        print(piece, end="", flush=True)
    print()
    if session:
        conversation.save(session)


if __name__ == "__main__":
    cli.run(main, required=["workdir"])
