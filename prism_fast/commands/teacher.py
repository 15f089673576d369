"""``prism-fast teacher``: export, build, check and bench a teacher's back-ends; import weights."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.commands.subcommands import Subcommands, run_subcommand
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option, Parsed

if TYPE_CHECKING:
    from prism_fast.teachers.eager import EagerTeacher

_NAME = Option(
    name="name", description="built-in name, folder, hf-hub:ORG/NAME, timm name or module:factory", metavar="NAME"
)
_WEIGHTS = Option(
    name="--weights",
    description="random: timm's architecture without its weights; pretrained: with them; FILE of a module:factory",
    metavar="random|pretrained|FILE",
)
_SIZE = Option(name="--size", description="height and width of the images, as 512; default: the network's", kind=int)
_DTYPE = Option(name="--dtype", description="of the network: float32, bfloat16 or float16", default="float32")
_DEVICE = Option(name="--device", description="auto, cpu, cuda or cuda:N", default="cpu")
_BACKENDS = Option(name="--backends", description="which, with commas; default: all that are usable", metavar="A,B")
_PROVIDER = Option(
    name="--provider", description="ONNX Runtime's execution provider; default: the device's own", metavar="NAME"
)
_JSON = Option(name="--json", description="print JSON", kind=bool, default=False)


def run(arguments: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: unknown subcommand, or what the subcommand refuses.
    """
    run_subcommand("teacher", _SUBCOMMANDS, arguments)


def _parse(name: str, description: str, options: Sequence[Option], arguments: Sequence[str]) -> Parsed:
    line = CommandLine(program=f"prism-fast teacher {name}", description=description, options=options)
    parsed = line.parse(arguments)
    if not parsed.options["name"]:
        raise UserError(f"prism-fast teacher {name} needs the teacher's name: prism-fast teacher {name} NAME")
    return parsed


def _teacher(options: dict[str, Any], *, offline: bool = False) -> EagerTeacher:
    """The teacher that the options name; ``offline``: a bare timm name means random weights."""
    from prism_fast.config import resolve_device, resolve_dtype
    from prism_fast.teachers.architectures import is_architecture, random_teacher
    from prism_fast.teachers.load import load_classifier

    name, weights = options["name"], options["weights"]
    device, dtype = resolve_device(options.get("device", "cpu")), resolve_dtype(options.get("dtype", "float32"))
    if weights == "random" or (offline and weights is None and is_architecture(name)):
        return random_teacher(name, device, dtype)
    return load_classifier(name, device, dtype, weights=None if weights in (None, "pretrained") else weights)


def _size(options: dict[str, Any]) -> tuple[int, int] | None:
    side = options["size"]
    if side is not None and side < 1:
        raise UserError(f"--size is {side}: give pixels, as 512")
    return None if side is None else (side, side)


def _positive(options: dict[str, Any], name: str) -> int:
    value = int(options[name])
    if value < 1:
        raise UserError(f"--{name} is {value}; it must be 1 or more")
    return value


def _export(arguments: Sequence[str]) -> None:
    parsed = _parse(
        "export",
        "Writes energy, gradient and logits as one ONNX model, after checking it against fp64.",
        [_NAME, Option(name="--out", description="the file; default: NAME.onnx"), _WEIGHTS, _SIZE, _DTYPE],
        arguments,
    )
    from prism_fast.config import check_new_file
    from prism_fast.teachers.check import self_check
    from prism_fast.teachers.export import export, write

    options = parsed.options
    path = Path(options["out"] or f"{Path(options['name']).name}.onnx")
    check_new_file(path)
    begin = time.perf_counter()
    teacher = _teacher({**options, "dtype": "float32"})
    exported = export(teacher, _size(options), options["dtype"])
    verdict = self_check(exported, teacher)
    write(exported, path)
    print(
        f"{path}: {len(exported.model) / 1e6:.1f} MB, images {exported.size[0]}x{exported.size[1]}, {exported.dtype}; "
        f"gradient within {verdict.median:.1e} of fp64 in the median, {verdict.worst:.1e} at worst "
        f"({time.perf_counter() - begin:.0f} s)"
    )


def _build(arguments: Sequence[str]) -> None:
    parsed = _parse(
        "build",
        "Builds a TensorRT engine. Without --capability for this machine's GPU, into the cache that synthesis uses: it "
        "asks for fp32, its own batch, and --size of its pipeline's images.",
        [
            _NAME,
            Option(name="--out", description="file for the engine; needed with --capability"),
            Option(name="--capability", description="build for another GPU's compute capability, as 12.0"),
            Option(name="--batch", description="images a call: a set's sampler.compute_batch", kind=int, default=64),
            _WEIGHTS,
            _SIZE,
            _DTYPE,
        ],
        arguments,
    )
    from prism_fast.config import check_new_file, replacing
    from prism_fast.teachers import tensorrt
    from prism_fast.teachers.choice import make_backend
    from prism_fast.teachers.export import export

    options = parsed.options
    batch, size, begin = _positive(options, "batch"), _size(options), time.perf_counter()
    if options["capability"] is None:
        if options["out"]:
            raise UserError("--out goes with --capability; an engine for this machine's GPU goes to the cache")
        if options["dtype"] != "float32":
            raise UserError("synthesis asks for engines in float32: --dtype goes with --capability")
        teacher = _teacher({**options, "device": "cuda"})
        made: Any = make_backend(teacher, "tensorrt", batch=batch)
        made.runner(size or teacher.input_size)
        print(f"the engine is in the cache ({time.perf_counter() - begin:.0f} s)")
        return
    capability = _capability(options["capability"])
    path = Path(options["out"] or f"{Path(options['name']).name}-sm{capability[0]}{capability[1]}.engine")
    check_new_file(path)
    library = tensorrt.load_library()
    if reason := tensorrt.refusal(library, capability):
        raise UserError(reason)
    exported = export(_teacher({**options, "dtype": "float32"}), size, options["dtype"])
    engine = tensorrt.build(exported.model, tensorrt.Profile.around(batch), capability)
    with replacing(path) as temporary:
        temporary.write_bytes(engine)
    print(
        f"{path}: {len(engine) / 1e6:.1f} MB for compute capability {options['capability']}, batch {batch}, by "
        f"{library.flavour} {library.version} ({time.perf_counter() - begin:.0f} s); not run"
    )


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise UserError(f"--capability is {text!r}: give a compute capability, as 12.0")
    return int(major), int(minor)


def _check(arguments: Sequence[str]) -> None:
    parsed = _parse(
        "check",
        "Errors of every back-end against fp64 autograd; exit status 2 if one is out of tolerance. A timm name is "
        "checked with random weights, unless --weights pretrained.",
        [
            _NAME,
            Option(name="--images", description="how many random images", kind=int, default=32),
            _BACKENDS,
            _PROVIDER,
            _WEIGHTS,
            _SIZE,
            _DTYPE,
            _DEVICE,
            _JSON,
        ],
        arguments,
    )
    from prism_fast.teachers.check import check_backend
    from prism_fast.teachers.truth import truth

    options = parsed.options
    count = _positive(options, "images")
    teacher = _teacher(options, offline=True)
    names, left_out = _chosen(teacher, options["backends"])
    right = truth(teacher, count, size=_size(options), dtype=options["dtype"])
    verdicts, broken = [], {}
    for name in names:
        try:
            verdicts.append(check_backend(teacher, name, right, provider=options["provider"]))
        except UserError as error:  # the others are still worth knowing
            broken[name] = str(error)
    left_out |= broken
    if options["json"]:
        found = {"teacher": options["name"], "dtype": options["dtype"], "images": count, "not_usable": left_out}
        print(json.dumps({**found, "backends": [asdict(verdict) for verdict in verdicts]}, indent=1))
    else:
        print(_verdict_table([asdict(verdict) for verdict in verdicts], left_out))
    failed = [verdict.name for verdict in verdicts if not verdict.passed]
    if broken:
        raise UserError(f"did not run: {'; '.join(f'{name} ({reason})' for name, reason in broken.items())}")
    if failed:
        raise UserError(f"out of tolerance: {', '.join(failed)}; do not use that back-end for this teacher")


def _chosen(teacher: EagerTeacher, given: str | None) -> tuple[list[str], dict[str, str]]:
    """Back-ends to run, and why others are not: asked for by name, one that is not usable is an error."""
    from prism_fast.teachers.choice import BACKENDS, choose, why_not

    if given is not None:
        return [choose(teacher, name.strip()) for name in given.split(",")], {}
    reasons = {name: why_not(teacher, name) for name in BACKENDS}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in BACKENDS if name not in left_out], left_out


def _verdict_table(verdicts: Sequence[dict[str, Any]], left_out: dict[str, str]) -> str:
    rows = [f"{'back-end':<10}{'energy':>9}{'median':>9}{'worst':>9}{'1 - cosine':>12}  outliers"]
    for found in verdicts:
        outliers = str(found["outliers"])
        if found["explained"] is not None:
            outliers += f", {found['explained']} at a kink of the network"
        rows.append(
            f"{found['name']:<10}{found['energy']:>9.1e}{found['median']:>9.1e}{found['worst']:>9.1e}"
            f"{1 - found['cosine']:>12.1e}  {outliers}{'' if found['passed'] else '  OUT OF TOLERANCE'}"
        )
    return "\n".join([*rows, *(f"{name:<10}not usable: {reason}" for name, reason in left_out.items())])


def _bench(arguments: Sequence[str]) -> None:
    parsed = _parse(
        "bench",
        "Energies and gradients a second by every back-end, side by side. A timm name gets random weights.",
        [
            _NAME,
            Option(name="--batch", description="images a call", kind=int, default=8),
            Option(name="--pipeline", description="also the teacher's share of a step of this pipeline", metavar="P"),
            _BACKENDS,
            _PROVIDER,
            _WEIGHTS,
            _SIZE,
            _DTYPE,
            _DEVICE,
            _JSON,
        ],
        arguments,
    )
    from prism_fast.teachers.timing import time_backends

    options = parsed.options
    batch = _positive(options, "batch")
    teacher = _teacher(options, offline=True)
    names, left_out = _chosen(teacher, options["backends"])
    timings = [asdict(timing) for timing in time_backends(teacher, names, batch, _size(options), options["provider"])]
    if options["pipeline"]:
        from prism_fast.calibration.step_time import step_seconds
        from prism_fast.config import resolve_dtype
        from prism_fast.pipeline.load import load_pipeline

        pipe = load_pipeline(options["pipeline"], teacher.device, resolve_dtype(options["dtype"]))
        step = step_seconds(pipe, batch)
        for timing in timings:
            seconds = batch / timing["images_per_s"]
            timing["share_of_step"] = seconds / step
    if options["json"]:
        found = {"teacher": options["name"], "dtype": options["dtype"], "batch": batch, "not_usable": left_out}
        print(json.dumps({**found, "backends": timings}, indent=1))
        return
    print(f"{'back-end':<10}{'images/s':>10}{'over eager':>12}{'first call':>12}" + _share_heading(timings))
    for timing in timings:
        share = f"{100 * timing['share_of_step']:>14.1f} %" if "share_of_step" in timing else ""
        print(
            f"{timing['name']:<10}{timing['images_per_s']:>10.1f}{timing['ratio_to_eager']:>12.2f}"
            f"{timing['first_s']:>10.1f} s{share}"
        )
    for name, reason in left_out.items():
        print(f"{name:<10}not usable: {reason}")


def _share_heading(timings: Sequence[dict[str, Any]]) -> str:
    return f"{'share of step':>16}" if any("share_of_step" in timing for timing in timings) else ""


def _import(arguments: Sequence[str]) -> None:
    from prism_fast.commands import teacher_import

    teacher_import.run(arguments)


_SUBCOMMANDS: Subcommands = {
    "check": ("errors of every back-end against fp64", _check),
    "bench": ("images a second of every back-end", _bench),
    "export": ("energy and gradient as an ONNX model", _export),
    "build": ("a TensorRT engine", _build),
    "import": ("weights of a .pt file to safetensors", _import),
}
