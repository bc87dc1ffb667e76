"""Trains a model, or resumes its training: python train.py --config=configs/tiny.py

Trains a ladder of models, each grown from the one before:
python train.py --config=configs/ladder.py
"""

import importlib.util
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli, processes
from mmrec_jax.commands.config_help import text
from mmrec_jax.config import Config
from mmrec_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/tiny.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run; default: runs/<config.name>.")
_REPORT = flags.DEFINE_bool("report", True, "Write report.html when training ends.")
_PROFILE = flags.DEFINE_bool("profile", False, "Trace a few steps and print where the time goes.")
_HELP_CONFIG = flags.DEFINE_bool(
    "help_config", False, "Print every knob of a config with its meaning, and exit."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run will cost, and exit.")
_DEVICES = flags.DEFINE_integer("devices", 1, "With --dry_run: number of devices there will be.")
_COMPILE = flags.DEFINE_bool(
    "compile", False, "With --dry_run: compile the step, for as many virtual CPU devices."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "With --dry_run: compile for a slice of TPUs, such as v5p:2x4x4, by libtpu."
)
_TOKENS = flags.DEFINE_float("tokens", 0, "With --dry_run: tokens to train on, e.g. 1e9.")
_DEVICE = flags.DEFINE_string(
    "device", None, "With --dry_run: the kind of device, e.g. H100 or v5p, to estimate the time."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if several processes train one model."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of these processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this one, from 0.")
_CONNECT_TIMEOUT = flags.DEFINE_integer(
    "connect_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
_FLOPS = flags.DEFINE_float("flops", 0, "With --dry_run: FLOP/s achieved by one device.")


def main():
    if _HELP_CONFIG.value:
        print(text())
        return
    cli.require("config")
    path = Path(_WORKDIR.value or f"runs/{_CONFIG.value.get('name')}")
    meeting = processes.Meeting(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CONNECT_TIMEOUT.value
    )
    meeting.check()
    if _DRY_RUN.value:
        _dry_run(_configs(path))
        return
    if meeting.is_expected:
        processes.supervise(meeting, path)
        processes.join(meeting, path)

    from mmrec_jax.training.ladder import climb, is_ladder
    from mmrec_jax.training.loop import train

    configs, is_climb = processes.together(lambda: _configs(path)), is_ladder(_CONFIG.value)
    if is_climb and _PROFILE.value:
        raise UserError("--profile works on a single run; use it with the config of one rung")

    for config in configs:
        if config.model.long_term and not config.trains_saliency:
            print(
                f"{config.name}: no token leaves short-term memory within train.seq_len "
                f"{config.train.seq_len}, so nothing teaches saliency, and the bank keeps the "
                "newest tokens; lower model.short_term or model.chunk_len"
            )

    lacking = [name for name in ("matplotlib", "jinja2") if not importlib.util.find_spec(name)]
    if _REPORT.value and lacking:
        print(f"no report will be written: {cli.missing(lacking[0])}")

    def report(path: Path) -> None:
        if not _REPORT.value or lacking or not processes.is_first():
            return
        if processes.are_several():  # all of them would have to read the checkpoint
            processes.run_alone(Path(__file__).with_name("report.py"), f"--workdir={path}")
            return
        from mmrec_jax.report.page import write_report  # matplotlib is slow to import

        print(f"report: {write_report(path)}")

    if is_climb:
        climb(configs, path, after_run=report)
    elif train(configs[0], path, _PROFILE.value):
        report(path)
    processes.leave()


def _configs(path: Path) -> list[Config]:
    """The config of the run, or those of the rungs of a ladder."""
    from mmrec_jax.config import from_mapping
    from mmrec_jax.training.ladder import is_ladder, rung_configs

    if is_ladder(_CONFIG.value):
        return rung_configs(_CONFIG.value, path)
    return [from_mapping(_CONFIG.value)]


def _dry_run(configs: list[Config]) -> None:
    import jax

    from mmrec_jax.learning.hardware import named_device
    from mmrec_jax.report.plan import print_compiled, print_plan, print_plans
    from mmrec_jax.training.ladder import is_ladder

    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is shown
    count, devices = _DEVICES.value, None
    if _TOPOLOGY.value:
        from mmrec_jax.learning.compiled import topology

        devices = topology(_TOPOLOGY.value)
        count = len(devices)
    elif _COMPILE.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
        devices = jax.devices()
    device = named_device(_DEVICE.value) if _DEVICE.value else None
    how = count, int(_TOKENS.value), _FLOPS.value, device
    print_plans(configs, *how) if is_ladder(_CONFIG.value) else print_plan(configs[0], *how)
    if devices:
        for config in configs:
            print_compiled(config, devices)


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
