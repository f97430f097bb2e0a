"""The commands for what is done with a result: export, serve, chat."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

Trained = Literal["sft", "sdft"]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its recipe.")]
MethodOption = Annotated[Trained, typer.Option(help="Which of the run's tuned models.")]


def export(
    run: RunArgument,
    method: MethodOption = "sdft",
    merge: Annotated[bool, typer.Option("--merge", help="A whole model, as transformers and vLLM load it.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="A GGUF file; needs llama.cpp's converter.")] = False,
    dataset: Annotated[bool, typer.Option("--dataset", help="The distilled dataset in place of a model.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to. Default: export/ in the run's folder.")
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Upload it to the hub, privately.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for all to see.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The licence for the card, such as apache-2.0.")
    ] = None,
) -> None:
    """Make a result ready for use elsewhere.

    A run's adapter, whole model, GGUF file or distilled dataset, each with a card. Nothing is uploaded unasked.
    """
    from sdft import export as exporting
    from sdft.errors import RunError

    if merge + gguf + dataset > 1:
        raise RunError("--merge, --gguf and --dataset are three things to export: name one")
    if public and push is None:
        raise RunError("--public is for what is uploaded; name the repository with --push USER/NAME")
    if push is not None:
        exporting.check_hub_name(push)
    if dataset:
        folder = exporting.export_dataset(run, out, licence)
    elif gguf:
        folder = exporting.export_gguf(run, method, out, licence)
    elif merge:
        folder = exporting.export_merged(run, method, out, licence)
    else:
        folder = exporting.export_adapter(run, method, out, licence)
    print(f"export: {folder}")
    if push is not None:
        print(f"pushed: {exporting.push(folder, push, 'dataset' if dataset else 'model', public)}")


def serve(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run's folder with its adapters.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]... [-- OPTION]...", help="Settings of the recipe; after -- options of `vllm serve`."
        ),
    ] = None,
    method: Annotated[Trained | None, typer.Option(help="This tuned model alone, not all of the run's.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="On 127.0.0.1. Default: a free one.")] = None,
) -> None:
    """Serve a recipe's model, or a run's adapters, with vLLM.

    Prints what a recipe has to say to use the server. Ctrl-C stops it.

    The command `vllm` is taken from SDFT_VLLM, such as /opt/vllm/bin/vllm, else from the PATH.
    """
    from sdft import serving
    from sdft.console import Console

    console = Console()
    words = overrides or []
    first = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the server may end by itself, as on Ctrl-C
        signal.signal(number, _leave)
    with serving.serve(
        recipe, words[:first], method=method, port=port, arguments=words[first:], console=console
    ) as server:
        print(server.lines(), end="", flush=True)
        console.say(f"serving at {server.base_url}; Ctrl-C stops it")
        server.wait()


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def chat(
    run: RunArgument,
    method: MethodOption = "sdft",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply, in tokens.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the draws, where the temperature is above 0.")] = 0,
) -> None:
    """Try a tuned model against its seed.

    Side by side, as they write. `/new` begins anew, Ctrl-D ends.

    Without a terminal: a question a line on stdin, the replies below one another.
    """
    from sdft.chat import Speaker, answers
    from sdft.console import Console
    from sdft.engines import Sampling
    from sdft.export import open_run, trained_model

    recipe, folder = open_run(run)
    tuned = trained_model(recipe, folder, method)
    console = Console()
    console.say(f"loading {recipe.model.name}, and the same with {method} of {folder}")
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    speakers = {
        name: Speaker(config, recipe.prompt, sampling, seed)
        for name, config in (("seed", recipe.model), (method, tuned))
    }
    asking = sys.stdin.isatty()
    console.say("ask; /new begins a new conversation, Ctrl-D or /quit ends, Ctrl-C breaks a reply off")
    while True:
        try:
            text = input("> " if asking else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/new":
            for speaker in speakers.values():
                speaker.forget()
        elif text:
            try:
                console.side_by_side(answers(speakers, text))
            except KeyboardInterrupt:
                if not asking:
                    raise
