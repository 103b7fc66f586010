"""The page to try a model in, by Gradio. What it asks of the model is in `dformer.apps.interactive`."""

import os

# Before Gradio is imported: no telemetry.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dformer.apps.demo.inputs import read_known
from dformer.apps.interactive import (
    MAX_FRAMES,
    MAX_MEGAPIXELS,
    MAX_SAMPLES,
    MAX_STEPS,
    PAINTS,
    Entry,
    as_json,
    legend,
    load_model,
    make_small,
    open_image,
    painted_segments,
    refine,
    segment,
    segment_video,
)
from dformer.d2.engine.predictor import IdMap
from dformer.d2.engine.result import Result
from dformer.d2.modeling.meta_arch import Request
from dformer.d2.modeling.tracking import trackers_of
from dformer.utils.errors import UserError
from dformer.utils.files import write_json
from dformer.visualize import DEFAULT_STYLE, Style, UInt8, draw_segments, resize
from dformer.visualize.files import save_picture
from dformer.visualize.h264 import has_h264

MAX_UPLOAD = "32mb"
WAITING = 16  # requests in the queue; further ones are turned away
SESSIONS = 64  # whose steps are kept
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
    """Serve the page until the process is interrupted.

    Args:
        weights: checkpoints to choose from; the first is loaded now.
        examples: image files to choose from.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: None: a free one from 7860 on.
        share: let anybody in through a tunnel of Gradio's.
        seconds: for which one request may compute.
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
    """Return the page; its results go to `folder`."""
    results, first = Results(folder), controls(weights[0])
    with gr.Blocks(title="dformer", analytics_enabled=False, delete_cache=(300, 3600)) as page:
        gr.Markdown(f"# Segmentation by diffusion\nImages of up to {MAX_MEGAPIXELS} megapixels, one after another.")
        stages, ids = gr.State([]), gr.State("")
        with gr.Row():
            with gr.Column(scale=2):
                # The path of the file as uploaded: `open_image` reads and checks it.
                image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                image.preprocess = lambda payload: payload.path if payload else None
                if examples:
                    gr.Examples([[file] for file in examples], image)
                checkpoint = gr.Dropdown(list(weights), value=weights[0], label="Checkpoint", visible=len(weights) > 1)
                task = gr.Radio(**first["task"])
                with gr.Row():
                    numbers = [gr.Slider(**first["steps"]), gr.Slider(**first["proposals"])]
                    numbers += [gr.Number(**first["seed"]), gr.Number(**first["samples"])]
                with gr.Accordion("Thresholds and drawing", open=False):
                    thresholds = [gr.Slider(**first["object_threshold"]), gr.Slider(**first["overlap_threshold"])]
                    alpha = gr.Slider(0, 1, DEFAULT_STYLE.alpha, step=0.05, label="Opacity")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Accordion("A short video", open=False, elem_id="videos"):
                    label = f"Video of up to {MAX_FRAMES} frames"
                    video = gr.Video(label=label, sources=["upload"], elem_id="video")
                    video.preprocess = lambda payload: payload.path if payload else None
                    tracker = gr.Radio(**first["tracker"])
                    follow = gr.Button("Follow its objects", elem_id="follow")
                    followed = gr.Video(label="Result", interactive=False, elem_id="followed")
                    tracks = gr.DownloadButton("Segments of all frames (JSON)", interactive=False, elem_id="tracks")
            with gr.Column(scale=3):
                picture = gr.Image(interactive=False, show_label=False, buttons=["fullscreen"], elem_id="picture")
                stage = gr.Slider(1, 2, 1, step=1, label="Result after sampling step", visible=False, elem_id="step")
                entries = gr.HTML(elem_id="legend")
                with gr.Accordion(**first["painting"]) as painting:
                    brush = gr.Brush(colors=[f"rgb{color}" for color in PAINTS], color_mode="fixed")
                    painted = gr.ImageEditor(
                        label="Paint", sources=(), brush=brush, layers=False, transforms=[], elem_id="paint"
                    )
                    with gr.Row():
                        complete = gr.Button("Find anew what is painted over", elem_id="complete")
                        refine_button = gr.Button(**first["refine"])
                with gr.Row():
                    png = gr.DownloadButton("Picture (PNG)", interactive=False, elem_id="png")
                    json = gr.DownloadButton("Segments (JSON)", interactive=False, elem_id="json")
        asked, shown = [task, *numbers, *thresholds], [picture, entries]
        found = [stages, stage, *shown, png, json, ids, painted]
        nothing = gr.State(None)
        for start, function, given in (
            (button, partial(answer, results, seconds), [nothing, nothing]),
            (complete, partial(answer, results, seconds), [ids, painted]),
            (refine_button, partial(answer_refined, results), [painted]),
        ):
            start.click(
                show_errors(function),
                [*given, image, checkpoint, *asked, alpha],
                found,
                show_progress_on=picture,  # and errors: over the editor, they would cover what is painted
                api_name=False,
            )
        image.change(show_errors(to_paint), image, [ids, painted], show_progress="hidden", api_name=False)
        follow.click(
            show_errors(partial(answer_video, results, seconds)),
            [tracker, video, checkpoint, *asked, alpha],
            [followed, tracks],
            api_name=False,
        )
        stage.input(
            show_errors(show), [stages, stage], shown, concurrency_limit=4, trigger_mode="always_last", api_name=False
        )
        changed = [*asked, tracker, painting, refine_button]
        checkpoint.change(show_errors(updated_controls), checkpoint, changed, api_name=False)
    return page


def controls(weights: str) -> dict[str, dict[str, Any]]:
    """Return the arguments of the controls that a checkpoint's model has, first those for `read_settings`."""
    predictor = load_model(weights)
    model = predictor.model
    options, request, trackers = model.options, model.request, trackers_of(model)
    merges = "seed" in options and "panoptic" in model.tasks

    def slider(name: str, label: str, value: int, limit: int | None = None) -> dict[str, Any]:
        low, high = options.get(name, (0, 1))
        high = min(high, limit or high)
        bounds = {"minimum": low, "maximum": high, "value": min(value, high)}
        return {**bounds, "step": 1, "label": label, "visible": name in options}

    share = {"minimum": 0, "maximum": 1, "step": 0.01}
    return {
        "task": {"choices": list(model.tasks), "value": predictor.task, "label": "Task"},
        "steps": slider("steps", "Sampling steps", request.steps, MAX_STEPS),
        "proposals": slider("proposals", "Proposals", request.proposals or options.get("proposals", (0, 0))[1]),
        "seed": {"value": request.seed, "precision": 0, "minimum": 0, "label": "Seed", "visible": "seed" in options},
        "samples": {
            "value": 1,
            "precision": 0,
            "minimum": 1,
            "maximum": MAX_SAMPLES,
            "label": "Answers to merge",
            "visible": merges,
        },
        "object_threshold": {**share, "value": request.object_threshold, "label": "Minimum score"},
        "overlap_threshold": {**share, "value": request.overlap_threshold, "label": "Minimum visible share (panoptic)"},
        "tracker": {
            "choices": trackers,
            "value": predictor.tracker,
            "label": "Tracker",
            "visible": len(trackers) > 1,
            "elem_id": "tracker",
        },
        "painting": {"label": "Paint on the image", "open": False, "visible": model.completes, "elem_id": "painting"},
        "refine": {"value": "Refine what is painted", "visible": model.refines, "elem_id": "refine"},
    }


def updated_controls(weights: str) -> list[Any]:
    """Return the controls of a checkpoint that has just been chosen."""
    kinds = {"task": gr.Radio, "seed": gr.Number, "samples": gr.Number, "tracker": gr.Radio}
    kinds |= {"painting": gr.Accordion, "refine": gr.Button}
    return [kinds.get(name, gr.Slider)(**arguments) for name, arguments in controls(weights).items()]


def to_paint(file: str | None) -> tuple[str, UInt8 | None]:
    """Return no map of segments, and the picture to paint on, for an image that has just been chosen."""
    return "", draw_segments(make_small(open_image(file)), [], []) if file else None


class Results:
    """Keep the files of the last `RESULTS` answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: deque[Path] = deque()

    def new(self) -> Path:
        """Return a new folder for an answer; the oldest one is removed."""
        if len(self._last) == RESULTS:
            shutil.rmtree(self._last.popleft(), ignore_errors=True)
        self._last.append(Path(tempfile.mkdtemp(prefix="result-", dir=self._folder)))
        return self._last[-1]


def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function`, so that its UserErrors are shown on the page."""

    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error

    return wrapped


def answer(
    results: Results,
    seconds: float,
    ids_file: str | None,
    painted: dict[str, Any] | None,
    file: str | None,
    weights: str,
    *settings: Any,
) -> tuple[Any, ...]:
    """Return what is shown after segmentation or completion, see `show_answer`.

    For completion there is the map of the segments that were found (a file), and the editor with what was painted over.
    """
    (stem, image), (request, samples, alpha) = open_upload(file), read_settings(weights, *settings)
    left = None if ids_file is None else not_painted(ids_file, painted)
    stages = segment(load_model(weights), image, request, seconds, left, samples)
    return show_answer(results, stages, stem, Style(alpha), {"weights": weights, **vars(request), "samples": samples})


def answer_refined(
    results: Results, painted: dict[str, Any] | None, file: str | None, weights: str, *settings: Any
) -> tuple[Any, ...]:
    """Return what is shown after refinement of what was painted in the editor, see `show_answer`."""
    (stem, image), (request, _, alpha) = open_upload(file), read_settings(weights, *settings)
    result = refine(load_model(weights), image, painted_segments((painted or {}).get("layers", [])), request.seed)
    asked = {"weights": weights, "tasks": [result.task], "seed": request.seed}
    return show_answer(results, [result], stem, Style(alpha), asked)


def open_upload(file: str | None) -> tuple[str, UInt8]:
    """Return the stem of the name of the image that was chosen, and the image, see `open_image`."""
    if not file:
        raise UserError("drop an image first, or pick an example")
    return Path(file).stem, open_image(file)


def show_answer(
    results: Results, stages: Sequence[Result], stem: str, style: Style, asked: dict[str, Any]
) -> tuple[Any, ...]:
    """Return stages, their slider, picture, legend, both downloads (named by `stem`), map and editor."""
    folder = results.new()
    own = folder / "own"  # the downloads have the upload's name, which may be any
    own.mkdir()
    shown: list[Shown] = []
    for k, stage in enumerate(stages, start=1):
        picture = own / f"{k}.png"
        stage.save(picture, style)
        title = "" if stage.t is None else f"step {k} of {len(stages)}, t = {stage.t:g}"
        if stage.agreement is not None:
            title = f"what most of {asked['samples']} answers agree on; a score says how much they do"
        shown.append((str(picture), title, legend_html(title, legend(stage))))
    last, png, json = stages[-1], folder / f"{stem}.png", folder / f"{stem}.json"
    shutil.copyfile(shown[-1][0], png)
    json.write_text(as_json(last, asked))
    count = len(shown)
    slider = gr.Slider(minimum=1, maximum=max(2, count), value=count, visible=count > 1)
    downloads = (gr.DownloadButton(value=str(path), interactive=True) for path in (png, json))
    save_picture(np.where(last.panoptic > 255, 0, last.panoptic).astype(np.uint8), own / "ids.png")
    drawn = draw_segments(last.image, last.segments, last.class_names, style)
    return shown, slider, *show(shown, count), *downloads, str(own / "ids.png"), drawn


def answer_video(
    results: Results, seconds: float, tracker: str, file: str | None, weights: str, *settings: Any
) -> tuple[str, gr.DownloadButton]:
    """Return what "Follow" shows: the drawn video, and the download of its segments."""
    if not file:
        raise UserError("drop a video first")
    request, _, alpha = read_settings(weights, *settings)
    folder, stem = results.new(), Path(file).stem
    drawn, json = folder / f"{stem}{'.mp4' if has_h264() else '.webm'}", folder / f"{stem}.json"
    found, problem = segment_video(load_model(weights), file, request, seconds, drawn, Style(alpha), tracker)
    if problem:
        gr.Warning(escape(f"{Path(file).name}: {problem}"), duration=None)
    write_json(json, {**found, "weights": weights, "tracker": tracker, **vars(request)})
    return str(drawn), gr.DownloadButton(value=str(json), interactive=True)


def read_settings(weights: str, *settings: Any) -> tuple[Request, int, float]:
    """Return request, number of answers and opacity that the values of the controls are for a checkpoint's model."""
    task, steps, proposals, seed, samples, object_threshold, overlap_threshold, alpha = settings
    known = {"steps": int(steps), "proposals": int(proposals), "seed": int(seed)}
    numbers = {name: value for name, value in known.items() if name in load_model(weights).model.options}
    request = Request((task,), object_threshold=object_threshold, overlap_threshold=overlap_threshold, **numbers)
    return request, int(samples), alpha


def not_painted(ids_file: str, painted: dict[str, Any] | None) -> IdMap:
    """Return the map of segments in a file but for what was painted over in the editor, which is unknown."""
    if not ids_file or not Path(ids_file).is_file():
        raise UserError("segment an image first; then paint over the part that is to be found anew")
    ids = read_known(ids_file)
    for layer in (painted or {}).get("layers", []):
        ids[resize(layer[..., 3] > 0, (ids.shape[0], ids.shape[1]))] = 0
    return ids


def show(stages: list[Shown], number: float) -> tuple[str, str]:
    """Return picture and legend after step `number`, from 1."""
    if not 1 <= number <= len(stages) or not Path(stages[int(number) - 1][0]).is_file():
        raise UserError("this result is no longer kept; segment the image again")
    picture, _, entries = stages[int(number) - 1]
    return picture, entries


def legend_html(title: str, entries: Sequence[Entry]) -> str:
    """Return a table of segments: colour, class, score, share of the image."""
    rows = "".join(
        f"<tr><td><span class=swatch style='background: rgb{entry.color}'></span> {escape(entry.name)}</td>"
        f"<td>{'' if entry.score is None else f'{100 * entry.score:.0f} %'}</td><td>{100 * entry.share:.1f} %</td></tr>"
        for entry in entries
    )
    if not entries:
        return f"<p>{title}</p><p>Nothing was found; a lower minimum score shows more.</p>"
    return f"<p>{title}</p><table><tr><th>segment</th><th>score</th><th>of the image</th></tr>{rows}</table>"


class OwnResourcesOnly:
    """Forbid the browser to fetch anything from elsewhere, which Gradio's page would (ASGI middleware)."""

    POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", self.POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)
