"""The page to try a model in, by Gradio. What it asks of the model is in `dformer.apps.interactive`."""

import os

# Before Gradio is imported: it reports nothing to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dformer.apps.interactive import (
    MAX_MEGAPIXELS,
    MAX_STEPS,
    Entry,
    Request,
    as_json,
    legend,
    load_model,
    open_image,
    segment,
)
from dformer.postprocess import TASKS
from dformer.utils.errors import UserError
from dformer.visualize.files import save_picture

MAX_UPLOAD = "32mb"
WAITING = 16  # requests in the queue; further ones are turned away
SESSIONS = 64  # whose sampling steps are remembered
RESULTS = 32  # that are kept on disk, to look at their steps and to download
STYLE = ".swatch { display: inline-block; width: 1em; height: 1em; border-radius: 3px; vertical-align: -0.15em }"

Shown = tuple[str, str, str]  # a sampling step: picture file, title, legend as HTML


def serve(
    weights: Sequence[str],
    examples: Sequence[str],
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    seconds: float = 60,
) -> None:
    """Show the page until the process is interrupted.

    Args:
        weights: checkpoints to choose from; the first is loaded now.
        examples: image files to choose from.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: None: a free one from 7860 on.
        share: let anybody in through a tunnel of Gradio's.
        seconds: for which one request may compute.

    Raises:
        UserError: the first checkpoint cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="dformer-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(weights, examples, Path(folder), seconds)
        page.queue(max_size=WAITING, default_concurrency_limit=1)
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=MAX_UPLOAD,
            state_session_capacity=SESSIONS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no font is fetched
            css=STYLE,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(OwnResourcesOnly)]},
        )


def build(weights: Sequence[str], examples: Sequence[str], folder: Path, seconds: float) -> gr.Blocks:
    """The page; its results go to `folder`."""
    first = load_model(weights[0])
    default, results = first.request, Results(folder)
    with gr.Blocks(title="dformer", analytics_enabled=False, delete_cache=(300, 3600)) as page:
        gr.Markdown(f"# Segmentation by diffusion\nImages of up to {MAX_MEGAPIXELS} megapixels, one after another.")
        steps = gr.State([])
        with gr.Row():
            with gr.Column(scale=2):
                # The file as it is: what is wrong with it, `open_image` tells.
                image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                image.preprocess = lambda payload: payload.path if payload else None
                if examples:
                    gr.Examples([[file] for file in examples], image)
                checkpoint = gr.Dropdown(list(weights), value=weights[0], label="Checkpoint", visible=len(weights) > 1)
                task = gr.Radio(list(TASKS), value=default.task, label="Task")
                with gr.Row():
                    sampling = gr.Slider(1, MAX_STEPS, default.steps, step=1, label="Sampling steps")
                    masks = gr.Slider(1, default.masks, default.masks, step=1, label="Masks")
                    seed = gr.Number(default.seed, precision=0, minimum=0, label="Seed")
                with gr.Accordion("Thresholds and drawing", open=False):
                    confidence = gr.Slider(0, 1, default.confidence, step=0.01, label="Least score")
                    overlap = gr.Slider(0, 1, default.overlap, step=0.01, label="Least visible share (panoptic)")
                    alpha = gr.Slider(0, 1, default.alpha, step=0.05, label="Opacity")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column(scale=3):
                picture = gr.Image(label="Result", interactive=False, buttons=["fullscreen"], elem_id="picture")
                step = gr.Slider(1, 2, 1, step=1, label="Result after sampling step", visible=False, elem_id="step")
                entries = gr.HTML(elem_id="legend")
                with gr.Row():
                    png = gr.DownloadButton("Picture (PNG)", interactive=False, elem_id="png")
                    json = gr.DownloadButton("Segments (JSON)", interactive=False, elem_id="json")
        settings = [checkpoint, task, masks, sampling, seed, confidence, overlap, alpha]
        shown = [picture, entries]
        button.click(
            told(partial(answer, results, seconds)),
            [image, *settings],
            [steps, step, *shown, png, json],
            api_name=False,
        )
        step.input(told(show), [steps, step], shown, concurrency_limit=4, trigger_mode="always_last", api_name=False)
        checkpoint.change(told(defaults), checkpoint, [task, masks, sampling, confidence, overlap], api_name=False)
    return page


class Results:
    """Files of the last `RESULTS` answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: deque[Path] = deque()

    def new(self) -> Path:
        """A folder for an answer; the oldest makes room for it."""
        if len(self._last) == RESULTS:
            shutil.rmtree(self._last.popleft(), ignore_errors=True)
        self._last.append(Path(tempfile.mkdtemp(prefix="result-", dir=self._folder)))
        return self._last[-1]


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its UserErrors shown on the page."""

    def telling(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error

    return telling


def answer(results: Results, seconds: float, file: str | None, weights: str, *settings: Any) -> tuple[Any, ...]:
    """What "Segment" shows: values of the steps, their slider, the picture, the legend and both downloads."""
    if not file:
        raise UserError("drop an image first, or pick an example")
    image = open_image(file)
    task, masks, steps, seed, *thresholds = settings
    request = Request(task, int(masks), int(steps), int(seed), *thresholds)
    predictor = load_model(weights).predictor
    request = replace(request, masks=min(request.masks, predictor.num_masks))  # of another checkpoint
    found = segment(predictor, image, request, seconds)
    folder = results.new()
    shown: list[Shown] = []
    for k, result in enumerate(found.steps, start=1):
        picture = folder / f"step-{k}.png"
        save_picture(result.picture, picture)
        title = "" if result.t is None else f"step {k} of {len(found.steps)}, t = {result.t}"
        shown.append((str(picture), title, legend_html(title, legend(result, found.class_names))))
    stem = Path(file).stem
    png, json = folder / f"{stem}.png", folder / f"{stem}.json"
    shutil.copyfile(shown[-1][0], png)
    json.write_text(as_json(found, request, weights))
    count = len(shown)
    slider = gr.Slider(minimum=1, maximum=max(2, count), value=count, visible=count > 1)
    downloads = (gr.DownloadButton(value=str(path), interactive=True) for path in (png, json))
    return shown, slider, *show(shown, count), *downloads


def show(steps: list[Shown], number: float) -> tuple[str, str]:
    """Picture and legend after sampling step `number`, from 1."""
    if not 1 <= number <= len(steps) or not Path(steps[int(number) - 1][0]).is_file():
        raise UserError("this result is no longer kept; segment the image again")
    picture, _, entries = steps[int(number) - 1]
    return picture, entries


def defaults(weights: str) -> tuple[Any, ...]:
    """The settings of a checkpoint that has just been chosen."""
    request = load_model(weights).request
    masks = gr.Slider(maximum=request.masks, value=request.masks)
    return request.task, masks, request.steps, request.confidence, request.overlap


def legend_html(title: str, entries: Sequence[Entry]) -> str:
    """A table of segments: colour, class, score, share of the image."""
    rows = "".join(
        f"<tr><td><span class=swatch style='background: rgb{entry.color}'></span> {escape(entry.name)}</td>"
        f"<td>{'' if entry.score is None else f'{100 * entry.score:.0f} %'}</td><td>{100 * entry.share:.1f} %</td></tr>"
        for entry in entries
    )
    if not entries:
        return f"<p>{title}</p><p>Nothing was found; a lower least score shows more.</p>"
    return f"<p>{title}</p><table><tr><th>segment</th><th>score</th><th>of the image</th></tr>{rows}</table>"


class OwnResourcesOnly:
    """ASGI middleware that forbids the browser to fetch anything from elsewhere, which Gradio's page would."""

    POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", self.POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)
