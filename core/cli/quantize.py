"""``bestiary quantize``: a checkpoint to a quantized one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Json, Overwrite, print_json

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost


def quantize(
    ctx: typer.Context,
    ckpt: Annotated[Path | None, typer.Argument(help="The checkpoint.")] = None,
    out: Annotated[Path | None, typer.Argument(help="The quantized checkpoint to make.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="RULES", help="Which method weights get, such as 'int4:quantizer=gptq, lm_head=int8, *.down=none'."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text, or JSON lines, that stands for the model's use.")
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Calibrate scales for a KV cache of this kind: int8, fp8 or int4."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most sequences of the calibration file.")] = 128,
    length: Annotated[int, typer.Option(min=1, help="Most tokens of a sequence.")] = 512,
    listed: Annotated[bool, typer.Option("--list", help="List the methods and their options instead.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Quantize a checkpoint's weights, and calibrate its cache."""
    from bestiary.converters.quantize import Calibration
    from bestiary.converters.quantize import quantize as quantize_to
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import UsageError
    from bestiary.core.source import recognise

    host = session_of(ctx).host
    if listed:
        _list(host, json)
        return
    needed = (("CKPT", ckpt), ("OUT", out), ("--method or --kv-dtype", method or kv_dtype))
    if ckpt is None or out is None or not (method or kv_dtype):
        missing = [name for name, value in needed if not value]
        raise UsageError(
            "E-CLI-QUANTIZE", ", ".join(missing), "missing", expected="bestiary quantize CKPT OUT --method RULES",
            hint="'bestiary quantize --list' shows the methods",
        )  # fmt: skip
    source = recognise(ckpt, host)
    if source.kind != "checkpoint":
        hint = "'bestiary convert' makes a checkpoint, and with --quantize a quantized one at once"
        raise UsageError("E-CLI-CHECKPOINT", source.name, "not a checkpoint", hint=hint)
    text = None if calibration is None else Calibration(calibration, samples, length)
    with progress(silent=json) as steps:
        report = quantize_to(
            ckpt, out, host=host, rules=method, calibration=text, kv_dtype=kv_dtype, overwrite=overwrite, progress=steps
        )  # fmt: skip
    if json:
        print_json(report.as_dict())


def _list(host: PluginHost, json: bool) -> None:
    from bestiary.core.cli.report import table
    from bestiary.core.quant.listing import methods_report

    report = methods_report(host)
    if json:
        print_json(report.as_dict())
        return
    for number, one in enumerate(report.methods):
        print(f"{chr(10) if number else ''}{one.name} ({one.distribution} {one.version}, bound {one.bound:g})")
        print(f"  {one.meaning}")
        rows = [(f"  {each.name}", each.default, each.values, each.meaning) for each in one.options]
        if rows:
            table(("  option", "default", "values", ""), rows)
