"""Runs that are looked at: read into arrays, compared, tracked, and shown on a page."""

import contextlib
import dataclasses
import html.parser
import importlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import types

import numpy as np
import pytest

from experiments.compare import __main__ as compare
from experiments.support import Refusal
from experiments.support.run import configs, plots, runs, tracking


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    rate: float = 0.1
    seed: int = 3
    seeds: int = 2


def finished(root, config=Config(), numbers=None, **options):
    """A run of two seeds with a report and a figure."""
    options = runs.Options(runs=str(root), **options)
    with runs.opened("toy", config, options) as run:
        for step in (1, 2, 3):
            runs.log(run, "fit", step=step, loss=[config.rate / step, 3 * config.rate / step], note="x")
        series = {"loss": {"": plots.logged(runs.read_log(run, "fit"), "loss")}}
        run.write(
            {"loss": {"end": config.rate}} | (numbers or {}), ["a < b & c"], {"curve": plots.curves(series)}
        )
    return run


def test_a_run_is_read_back_into_arrays(tmp_path):
    record = runs.load(finished(tmp_path).path)
    assert (record.name, record.config["rate"], record.numbers) == ("toy", 0.1, {"loss": {"end": 0.1}})
    assert record.about["smoke"] is False
    steps, losses = record.metrics["fit"]["loss"]
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_allclose(losses, [[0.1, 0.3], [0.05, 0.15], [0.1 / 3, 0.1]], rtol=1e-5)
    assert "note" not in record.metrics["fit"]
    with pytest.raises(Refusal, match="is not the folder of a run"):
        runs.load(tmp_path)


def test_a_smoke_run_says_so_wherever_it_is_looked_at(tmp_path, capsys):
    run = finished(tmp_path, smoke=True)
    assert capsys.readouterr().out.startswith("SMOKE: ")
    for name in ("report.txt", "index.html", "curve.svg"):
        assert "SMOKE" in (run.path / name).read_text()
    assert "SMOKE" in compare.label(runs.load(run.path))
    assert run.title.startswith("toy, seeds 3 to 4")


@pytest.mark.parametrize(
    ("config", "seeds"),
    [
        ({"seed": 3, "seeds": 2}, ", seeds 3 to 4"),
        ({"seed": 3}, ", seed 3"),
        ({"seeds": 2}, ", 2 seeds"),
        ({}, ""),
    ],
)
def test_the_title_of_a_figure_has_the_seeds_that_there_are(tmp_path, config, seeds):
    title = runs.Run("toy", tmp_path, config=config).title
    assert title.partition(", commit")[0] == f"toy{seeds}"


def test_runs_are_compared_by_numbers_settings_and_curves(tmp_path, capsys):
    paths = [finished(tmp_path, Config(rate=rate)).path for rate in (0.1, 0.2)]
    capsys.readouterr()
    compare.main(compare.Config(tuple(paths), into=tmp_path / "compared"))
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["loss", "/", "end", "0.1", "0.2"] in out
    assert ["rate", "0.1", "0.2"] in out
    assert not any(line[:1] == ["seed"] for line in out)
    assert [*(tmp_path / "compared").glob("*/curves.png")]
    drawn = compare.curves([runs.load(path) for path in paths])
    assert drawn.keys() == {"fit: loss"}
    assert [curve[1][0] for curve in drawn["fit: loss"].values()] == pytest.approx([0.2, 0.4])
    with pytest.raises(Refusal, match="give two or more runs"):
        compare.main(compare.Config((paths[0],)))


class Tags(html.parser.HTMLParser):
    """The tags that are open, and the images and texts seen."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_of_a_run_holds_all_of_it(tmp_path):
    run = finished(tmp_path, numbers={"long": list(range(9)), "short": [1.0, 2.5]})
    page = Tags()
    page.feed((run.path / "index.html").read_text())
    assert not page.open
    (image,) = page.images
    assert image["alt"] == "curve" and image["src"].startswith("data:image/svg+xml;base64,")
    assert {"rate", "loss / end", "1, 2.5", "a < b & c\n"} <= set(page.texts)
    assert "long" not in page.texts


@pytest.mark.slow
def test_a_browser_shows_the_page_with_its_figure(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = finished(tmp_path).path / "index.html"
    probe = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth)</script>"
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert int(shown.split("<title>")[1].split("<")[0]) > 100


def test_tensorboard_gets_the_means_over_seeds(tmp_path, monkeypatch):
    seen = []
    note = lambda *given: seen.append(given)
    writer = types.SimpleNamespace(
        add_text=lambda *given: None, add_scalar=note, close=lambda: note("", 0, "end")
    )
    module = types.SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    finished(tmp_path, track="tensorboard")
    steps = [(name, step) for name, _, step in seen]
    assert steps == [*(("fit/loss", step) for step in (1, 2, 3)), ("", "end")]
    assert seen[0][1] == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch, kind):
    seen, given = [], {}
    run = types.SimpleNamespace(log=seen.append, finish=lambda: seen.append("end"))
    module = types.SimpleNamespace(init=lambda **options: given.update(options) or run, finish=run.finish)
    monkeypatch.setitem(sys.modules, kind, module)
    path = finished(tmp_path, track=kind).path
    assert given["name"] == f"toy {path.name}" and given.get("id", path.name) == path.name
    assert given["config"]["rate"] == 0.1 and given["resume"] == "allow"
    assert seen[1] == {"fit/loss": pytest.approx(0.1), "fit/step": 2.0} and seen[-1] == "end"


def test_a_tracker_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Refusal, match="track=wandb needs wandb: pip install wandb"):
        finished(tmp_path / "runs", track="wandb")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_tensorboard_reads_its_files(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = finished(tmp_path, track="tensorboard").path
    events = accumulator.EventAccumulator(str(path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("fit/loss")] == pytest.approx([0.2, 0.1, 0.2 / 3])


def tracked_elsewhere(root, kind, **environment):
    """The folder of a run that another process tracks by the library itself."""
    program = "import pathlib; from tests.experiments.test_looking_at_runs import finished as f\n"
    program += f"print('folder', f(pathlib.Path({str(root)!r}), track={kind!r}).path)"
    given = os.environ | {"PYTHONPATH": os.getcwd()} | environment
    done = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("folder "))
    return pathlib.Path(folder)


def frames(content):
    """The records of a log in LevelDB's format: blocks of 32 KiB after W&B's 7 bytes, crc, length, kind."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # no header fits into the block
            place += 2**15 - place % 2**15
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_writes_offline_what_its_messages_read(tmp_path):
    pytest.importorskip("wandb")
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    path = tracked_elsewhere(tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    (file,) = path.glob("wandb/offline-run-*/*.wandb")
    history, configs = [], {}
    for record in map(messages.Record.FromString, frames(file.read_bytes())):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        history += [json.loads(items["fit/loss"])] if "fit/loss" in items else []
        configs |= {item.key: item.value_json for item in record.run.config.update}
    assert history == pytest.approx([0.2, 0.1, 0.2 / 3])
    assert json.loads(configs["rate"]) == 0.1


@pytest.mark.slow
def test_trackio_reads_what_it_was_given(tmp_path):
    pytest.importorskip("trackio")
    folder = str(tmp_path / "trackio")
    path = tracked_elsewhere(tmp_path, "trackio", TRACKIO_DIR=folder)
    program = "import json, trackio; (run,) = trackio.Api().runs('proxlm')\n"
    program += "logs = trackio.SQLiteStorage.get_logs('proxlm', run.name)\n"
    program += "print(json.dumps([run.name, run.config['rate'], [row['fit/loss'] for row in logs]]))"
    reader = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRACKIO_DIR": folder},
        capture_output=True,
        text=True,
    )
    name, rate, losses = json.loads(reader.stdout.splitlines()[-1])
    assert (name, rate) == (f"toy {path.name}", 0.1)
    assert losses == pytest.approx([0.2, 0.1, 0.2 / 3])


def test_json_lines_are_written_whatever_tracks(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "started", lambda *given: contextlib.nullcontext(lambda *numbers: None))
    path = finished(tmp_path, track="tensorboard").path
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((path / "run.json").read_text())["smoke"] is False
