"""Tables of what a run will cost: train.py --dry_run."""

from rich import box
from rich.console import Console
from rich.table import Table

from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.learning.cost import count_flops, count_memory, count_parameters


def check_devices(config: Config, devices: int) -> None:
    """Raises UserError where a batch cannot be divided evenly."""
    batch_size = config.train.batch_size
    if devices < 1 or batch_size % devices:
        raise UserError(f"train.batch_size {batch_size} is not divisible by --devices={devices}")


def print_plan(config: Config, devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints what a run costs.

    Args:
        config: of the run.
        devices: among which memory and work are divided evenly.
        tokens: to train on; 0 if the config is to say it.
        flops_per_second: that one device reaches in training; 0 if it is not known.

    Raises:
        UserError: a batch that the devices cannot divide.
    """
    train, model = config.train, config.model
    check_devices(config, devices)
    parameters, flops = count_parameters(model), count_flops(config)
    total, forward = sum(parameters.values()), sum(flops.forward.values())
    print(
        f"{config.name}: {total:,} parameters; V {model.vocab_size:,}, D {model.dim:,}, "
        f"L {model.num_layers}, H {model.num_heads}, K {model.head_dim}, S {model.short_term}, "
        f"C {model.chunk_len}, M {model.long_term}"
    )
    table = _table("", "parameters", "share", "FLOPs a token")
    for part in dict.fromkeys([*parameters, *flops.forward]):
        count = parameters.get(part, 0)
        share = f"{count / total:.1%}" if count else ""
        of_part = f"{flops.forward[part]:,}" if part in flops.forward else ""
        table.add_row(part, f"{count:,}" if count else "", share, of_part)
    table.add_section()
    table.add_row("all, forward", f"{total:,}", "100.0%", f"{forward:,}")
    table.add_row("training", "", "", f"{flops.training:,}")
    Console().print(table)

    memory = count_memory(config)
    table = _table(
        f"{train.batch_size} x {train.seq_len:,} tokens a step", "GB", f"GB a device, of {devices}"
    )
    for name, size in (*memory._asdict().items(), ("all", sum(memory))):
        table.add_row(name, f"{size / 1e9:,.3f}", f"{size / devices / 1e9:,.3f}")
    Console().print(table)
    tokens = tokens or train.fixed_steps * train.step_tokens
    if not tokens:
        print("how long it takes: give --tokens and --flops (a second, that one device reaches)")
        return
    work = tokens * flops.training
    line = f"{tokens:,} tokens: {work:.3g} FLOPs"
    if flops_per_second:
        days = _days(work, devices, flops_per_second)
        line += f", {days:,.2f} days on {devices} x {flops_per_second:.3g} FLOP/s"
    print(line)


def print_plans(configs: list[Config], devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints what each of several runs costs, in a line; arguments as of `print_plan`."""
    table = _table("", "parameters", "FLOPs/token", "tokens a step", "GB", "days")
    for config in configs:
        check_devices(config, devices)
        flops, memory, train = count_flops(config).training, count_memory(config), config.train
        of_run = tokens or train.fixed_steps * train.step_tokens
        days = ""
        if of_run and flops_per_second:
            days = f"{_days(of_run * flops, devices, flops_per_second):,.2f}"
        table.add_row(
            config.name,
            f"{sum(count_parameters(config.model).values()):,}",
            f"{flops:.3g}",
            f"{train.batch_size} x {train.seq_len:,}",
            f"{sum(memory) / devices / 1e9:,.2f}",
            days,
        )
    Console().print(table)
    of_tokens = f"; days of {tokens:,} tokens" if tokens else ""
    print(f"GB a device, of {devices}{of_tokens}")


def _days(work: float, devices: int, flops_per_second: float) -> float:
    return work / (devices * flops_per_second) / 86_400


def _table(first: str, *names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table
