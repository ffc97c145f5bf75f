"""The commands of `vtfast`: their options, their help, and what can be refused right away.

A command checks its options, then imports what it runs: importing this module is light.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vtfast.errors import InputError
from vtfast.presets import PRESETS, check_name

# The first scene with the commonest outcome: 6, 6 and 5 of 6 answers right in full, at keep 0.75
# and at keep 0.5. 196 of the scenes 0 to 499 come out so; the averages are 5.99, 5.76 and 4.88.
DEFAULT_SCENE = 2

Plan = Annotated[str, typer.Option(metavar="NAME", help=f"What to prune by: {', '.join(PRESETS)}.")]
Seed = Annotated[int, typer.Option(metavar="INT", help="Seed of the random stages.")]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON object on stdout instead of tables.")
]


def demo(
    plan: Plan = "divprune+random",
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Visual tokens to keep, averaged over all layers: a number above 0, up to 1. "
            "Default: columns for 0.75 and 0.5, timings for 0.5 and 0.25.",
        ),
    ] = None,
    scene_seed: Annotated[
        int, typer.Option(min=0, metavar="INT", help="Which scene to draw.")
    ] = DEFAULT_SCENE,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the picture goes.")] = Path(
        "vtfast-demo.png"
    ),
    as_json: AsJson = False,
    no_timing: Annotated[
        bool,
        typer.Option(
            "--no-timing", metavar="", help="Leave out the larger model, and be done sooner."
        ),
    ] = False,
    tiny_timing: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """A tiny LLaVA answers questions about a picture, full and pruned, side by side.

    First the bundled, trained LLaVA looks at a drawn scene and answers six
    questions, with all of its visual tokens and with fewer; wrong answers are
    marked. Then a larger LLaVA with random weights is timed, because only there
    do fewer tokens save time. A PNG shows which patches of the picture each stage
    of the plan kept. It runs on the CPU and needs no network.

    \b
    Examples:
      vtfast demo                          # the default plan at keep 0.75 and 0.5
      vtfast demo --scene-seed 7           # another picture
      vtfast demo --plan random --keep 0.25 --no-timing
      vtfast demo --plan divprune+vtw --keep 0.6 --out kept.png
      vtfast demo --json | jq .columns
    """
    _check_plan(plan, keep)
    check_picture(out)
    from vtfast.cli.demo import ROUNDS, Settings
    from vtfast.cli.demo import run as show_demo

    rounds = 0 if no_timing else ROUNDS
    show_demo(Settings(plan, keep, scene_seed, seed, out, as_json, rounds, tiny_timing))


def run(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A hub id (owner/name), a local checkpoint folder, or a bundled tiny model: "
            "toy-llava, toy-llava-small, toy-qwen.",
        ),
    ],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture. Repeat it for more, in order."),
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A folder of frames, an animated GIF, or, repeated, frame files in order. For "
            "models that take video (Qwen2.5-VL).",
        ),
    ] = None,
    plan: Plan = "divprune+random",
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Visual tokens to keep, averaged over all layers: above 0, up to 1, which keeps "
            "all. Default: 0.5.",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="LAYER",
            help="Layer of a plan's second stage. Default: the checkpoint's own, else the paper's "
            "share of the layers.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", metavar="", help="Ask the unpruned model too, and time both when warm."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="INT", help="Longest answer, in tokens.")
    ] = 64,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Save a picture of what each stage kept."),
    ] = None,
    as_json: AsJson = False,
    max_frames: Annotated[
        int, typer.Option(min=1, metavar="INT", help="Of more frames, take as many, evenly.")
    ] = 16,
    fps: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Frames per second. Default: the GIF's own, else 2."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto (a GPU if there is one), cpu, cuda, cuda:1.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16, float16.",
        ),
    ] = "auto",
    seed: Seed = 0,
    path: Annotated[
        str, typer.Option(metavar="NAME", help="Layout of the pruned batch: auto, packed, padded.")
    ] = "auto",
    impl: Annotated[
        str, typer.Option(metavar="NAME", help="Implementation of the ops: auto, eager, triton.")
    ] = "auto",
) -> None:
    """Ask a model about your pictures with fewer visual tokens.

    The answer is streamed. Then a table says how many visual tokens each stage of
    the plan left, what that saves, and how long it took; with --compare the
    unpruned model answers too, and both are timed when warm. LLaVA and Qwen2.5-VL
    are supported. Decoding is greedy.

    \b
    Examples:
      vtfast run --model toy-llava --image scene.png --prompt "read the code ."
      vtfast run --model llava-hf/llava-1.5-7b-hf --image cat.jpg \\
        --prompt "What is this?" --keep 0.25 --compare --out kept.png
      vtfast run --model Qwen/Qwen2.5-VL-7B-Instruct --video frames/ \\
        --prompt "What happens here?" --plan divprune --max-new-tokens 200
      vtfast run --model ./checkpoint --image old.png --image new.png \\
        --prompt "What has changed?" --json

    \b
    In the JSON object: visual_tokens, text_tokens, layers, plan (stages, horizon
    and where it came from), and runs, one for each way to run the model: answer,
    visual_tokens_per_layer, flops_ratio, seconds_to_first_token,
    ms_per_further_token, kv_cache_bytes, path. With --compare also identical and
    timed_rounds.
    """
    _check_plan(plan, keep)
    for option, value, known in (
        ("--dtype", dtype, ("auto", "float32", "bfloat16", "float16")),
        ("--path", path, ("auto", "packed", "padded")),
        ("--impl", impl, ("auto", "eager", "triton")),
    ):
        if value not in known:
            raise InputError(f"{option} {value}: pass one of {', '.join(known)}")
    if not image and not video:
        raise InputError("there is nothing to look at; pass --image or --video")
    if fps is not None and not 0 < fps < 1000:
        raise InputError(f"--fps {fps:g}: expected a number above 0, such as 2")
    if out:
        check_picture(out)
        _check_is_new(out, [*(image or ()), *(video or ())])
    from vtfast.cli.run import Settings
    from vtfast.cli.run import run as run_model

    patching: dict[str, Any] = {"plan": plan, "seed": seed, "path": path, "impl": impl}
    given = {"keep": keep, "horizon": horizon}
    patching |= {name: value for name, value in given.items() if value is not None}
    run_model(
        Settings(
            model=model,
            prompt=prompt,
            images=tuple(image or ()),
            video=tuple(video or ()),
            patching=patching,
            max_frames=max_frames,
            fps=fps,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
            compare=compare,
            out=out,
            as_json=as_json,
        )
    )


def doctor(as_json: AsJson = False) -> None:
    """Say what vtfast finds on this machine, and what to fix.

    Versions and whether they are supported, devices, which implementation each op
    takes here and why, and a short trial: the bundled models are loaded, one is
    patched and answers. The exit code is 1 where something is broken.

    \b
    Examples:
      vtfast doctor
      vtfast doctor --json | jq .ops
    """
    from vtfast.cli.doctor import run

    raise typer.Exit(run(as_json))


def _check_plan(plan: str, keep: float | None) -> None:
    check_name(plan)
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep:g}: expected a share above 0, up to 1, such as 0.5")


def _check_is_new(out: Path, given: list[Path]) -> None:
    """Refuse to write over what was asked about."""
    seen = [part for path in given for part in (path, *(path.glob("*") if path.is_dir() else ()))]
    if any(path.exists() and out.exists() and out.samefile(path) for path in seen):
        raise InputError(f"--out {out} is one of the pictures asked about; pass another name")


def check_picture(path: Path) -> None:
    """Refuse now what would fail after the work is done."""
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {path}: the picture is a PNG; pass a name that ends in .png")
    try:
        if not path.parent.is_dir():
            raise InputError(f"--out {path}: there is no folder {path.parent}; create it first")
        if path.is_dir():
            raise InputError(f"--out {path} is a folder; pass the name of a file")
        if not path.exists():
            path.touch()
            path.resolve().unlink()
        elif path.is_file():
            path.open("ab").close()
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror}; pass another --out"
        raise InputError(reason) from None
    if find_spec("matplotlib") is None:
        raise InputError("the picture needs matplotlib; pip install 'vtfast[plot]'")
