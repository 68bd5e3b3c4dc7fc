"""``bestiary plan-memory``: what an engine will take, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Building, Json, print_json, spread

if TYPE_CHECKING:
    from bestiary.core.engine.memory import MemoryPlan

_MEANINGS = {
    "weights_mapped": ("weights, mapped", "pages of the weight files, shared between processes"),
    "weights_made": ("weights, copied", "merged, sliced, cast, or on the device"),
    "kv_cache": ("KV cache", "{batch} sequences of {length} tokens"),
    "activations": ("activations", "results of a step of {tokens} tokens; {scored} of it for prompt logprobs"),
    "inputs": ("step inputs", "token ids, positions, block tables; the state of {batch} slots"),
    "sampler": ("sampler", "for {batch} requests that sample at once, all penalized"),
    "workspace": ("workspace", "of the kernel that takes most"),
    "graphs": ("graphs", "an estimate of all that may be recorded; none on a processor"),
    "held": ("held already", "Python, torch, and on a GPU its context"),
}


@spread
def plan_memory(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="HF directory, GGUF file, hub id, checkpoint or engine.")],
    *,
    memory: Annotated[
        str | None, typer.Option(metavar="BYTES|GiB", help="Fit into this much, such as 24GiB, not into what is free.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 78 if it does not fit.")] = False,
    building: Building,
    json: Json = False,
) -> None:
    """Say what an engine takes of memory, whether it fits, and what else would."""
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import BAD_CONFIG
    from bestiary.core.home import bytes_of
    from bestiary.core.planning import plan_memory as plan

    limit = None if memory is None else bytes_of(memory, "--memory")
    with progress(silent=json) as steps:
        found = plan(model, host=session_of(ctx).host, said=building.said(), memory=limit, progress=steps)
    if json:
        print_json({"model": model, **found.as_dict()})
    else:
        _show(found)
    if check and not found.fits:
        raise typer.Exit(BAD_CONFIG)


def _show(plan: MemoryPlan) -> None:
    from bestiary.core.cli.report import table
    from bestiary.core.home import gib

    facts = {
        "batch": plan.max_batch_size,
        "length": plan.max_seq_len,
        "tokens": plan.max_num_tokens,
        "scored": f"{plan.prompt_logprobs:,}",
    }
    rows = [
        (_MEANINGS[name][0], f"{size:,}", gib(size), _MEANINGS[name][1].format(**facts))
        for name, size in plan.shares._asdict().items()
    ]
    total = plan.shares.total
    ranks = plan.tensor_parallel * plan.pipeline_parallel
    share = f"on {plan.device}" + (f", the one of {ranks} ranks that takes most" if ranks > 1 else "")
    table(("", "bytes", "", "what"), [*rows, ("total", f"{total:,}", gib(total), share)])
    verdict = "fits" if plan.fits else "does not fit"
    print(f"\n{verdict} into {plan.available:,} bytes ({gib(plan.available)})" + _because(plan.shortage))
    bound = " (by max_num_tokens: a step has a token for each)" if plan.largest_batch == plan.max_num_tokens else ""
    print(f"largest batch at {plan.max_seq_len} tokens: {plan.largest_batch}{bound}")
    print(f"longest sequence at {plan.max_batch_size} at a time: {plan.largest_seq} tokens")
    if plan.unstated:
        print(f"kernels that don't state their workspace: {', '.join(plan.unstated)}")


def _because(shortage: str | None) -> str:
    return f": {shortage}" if shortage else ""
