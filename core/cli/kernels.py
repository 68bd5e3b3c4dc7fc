"""``bestiary kernels``: the implementations of every op."""

from __future__ import annotations

from typing import Annotated

import typer

from bestiary.core.cli.options import Json, print_json


def kernels(
    ctx: typer.Context,
    op: Annotated[str | None, typer.Argument(help="Only this op's.")] = None,
    json: Json = False,
) -> None:
    """List kernels by op, and whether what they require is installed."""
    from bestiary.core.cli.report import table
    from bestiary.core.cli.session import session_of
    from bestiary.core.plugins.requirements import unmet

    host = session_of(ctx).host
    if op is not None:
        host.op(op)
    # Every op has its reference, which no plugin registers apart from the op.
    found: list[dict[str, object]] = [
        {
            "op": one.name, "kernel": "reference", "distribution": host.origin(one).distribution,
            "version": host.origin(one).version, "batch_invariant": False, "graph_safe": False, "requires": "",
            "unavailable": None,
        }
        for one in host.ops() if op in (None, one.name)
    ]  # fmt: skip
    for kernel in sorted(host.kernels(op), key=lambda one: (one.op, one.name)):
        origin = host.origin(kernel)
        found.append(
            {
                "op": kernel.op, "kernel": kernel.name, "distribution": origin.distribution, "version": origin.version,
                "batch_invariant": kernel.batch_invariant, "graph_safe": kernel.graph_safe,
                "requires": kernel.requires, "unavailable": unmet(kernel.requires),
            }
        )  # fmt: skip
    found.sort(key=lambda one: str(one["op"]))
    if json:
        print_json({"kernels": found})
        return
    rows = [
        (
            str(one["op"]), str(one["kernel"]), f"{one['distribution']} {one['version']}",
            "yes" if one["batch_invariant"] else "no", str(one["unavailable"] or "available"),
        )
        for one in found
    ]  # fmt: skip
    table(("op", "kernel", "from", "batch invariant", "state"), rows)
