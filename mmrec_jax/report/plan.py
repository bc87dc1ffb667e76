"""Tables of the cost of a run, printed by train.py --dry_run."""

from mmrec_jax.config import Config
from mmrec_jax.errors import UserError
from mmrec_jax.learning.cost import count_flops, count_memory, count_parameters
from mmrec_jax.tables import print_table


def print_plan(config: Config, devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints the cost of a run.

    Args:
        devices: how many share memory and work evenly.
        tokens: to train on; 0 takes their number from the config.
        flops_per_second: FLOP/s that one device achieves in training; 0 if unknown.

    Raises:
        UserError: the devices cannot divide a batch evenly.
    """
    train, model = config.train, config.model
    _check_devices(config, devices)
    parameters, flops = count_parameters(model), count_flops(config)
    total, forward = sum(parameters.values()), sum(flops.forward.values())
    print(
        f"{config.name}: {total:,} parameters; V {model.vocab_size:,}, D {model.dim:,}, "
        f"L {model.num_layers}, H {model.num_heads}, K {model.head_dim}, S {model.short_term}, "
        f"C {model.chunk_len}, M {model.long_term}"
    )
    rows = []
    for part in dict.fromkeys([*parameters, *flops.forward]):
        count = parameters.get(part, 0)
        share = f"{count / total:.1%}" if count else ""
        of_part = f"{flops.forward[part]:,}" if part in flops.forward else ""
        rows.append((part, f"{count:,}" if count else "", share, of_part))
    rows += [
        (),
        ("total, forward", f"{total:,}", "100.0%", f"{forward:,}"),
        ("training", "", "", f"{flops.training:,}"),
    ]
    print_table(("", "parameters", "share", "FLOPs per token"), rows)

    memory = count_memory(config)
    of_step = f"{train.batch_size} x {train.seq_len:,} tokens per step"
    print_table(
        (of_step, "GB", f"GB per device (of {devices})"),
        [
            (name, f"{size / 1e9:,.3f}", f"{size / devices / 1e9:,.3f}")
            for name, size in (*memory._asdict().items(), ("total", sum(memory)))
        ],
    )
    tokens = tokens or train.fixed_steps * train.step_tokens
    if not tokens:
        print("for the training time, give --tokens and --flops (FLOP/s achieved by one device)")
        return
    work = tokens * flops.training
    line = f"{tokens:,} tokens: {work:.3g} FLOPs"
    if flops_per_second:
        days = _days(work, devices, flops_per_second)
        line += f", {days:,.2f} days on {devices} x {flops_per_second:.3g} FLOP/s"
    print(line)


def print_plans(configs: list[Config], devices: int, tokens: int, flops_per_second: float) -> None:
    """Prints the cost of several runs, one per line; arguments as for `print_plan`."""
    rows = []
    for config in configs:
        _check_devices(config, devices)
        flops, memory, train = count_flops(config).training, count_memory(config), config.train
        of_run = tokens or train.fixed_steps * train.step_tokens
        days = ""
        if of_run and flops_per_second:
            days = f"{_days(of_run * flops, devices, flops_per_second):,.2f}"
        rows.append(
            (
                config.name,
                f"{sum(count_parameters(config.model).values()):,}",
                f"{flops:.3g}",
                f"{train.batch_size} x {train.seq_len:,}",
                f"{sum(memory) / devices / 1e9:,.2f}",
                days,
            )
        )
    print_table(("", "parameters", "FLOPs/token", "tokens/step", "GB", "days"), rows)
    of_tokens = f"; days for {tokens:,} tokens" if tokens else ""
    print(f"GB per device (of {devices}){of_tokens}")


def _check_devices(config: Config, devices: int) -> None:
    """Raises UserError if the devices cannot divide a batch evenly."""
    batch_size = config.train.batch_size
    if devices < 1 or batch_size % devices:
        raise UserError(f"train.batch_size {batch_size} is not divisible by --devices={devices}")


def _days(work: float, devices: int, flops_per_second: float) -> float:
    return work / (devices * flops_per_second) / 86_400
