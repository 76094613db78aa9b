import io

from rich.console import Console

from petomo.io.metrics import read_metrics
from petomo.workflow.callbacks import Reporter


def test_a_terminal_sees_a_bar_with_loss_and_time_left():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with Reporter(None, console) as reporter:
        reporter.stage("ptychography")
        for tilt in range(2):
            for iteration in range(1, 4):
                reporter.iteration("ptychography", iteration, 3, 0.5 / iteration, tilt=tilt)
    text = stream.getvalue()
    assert "ptychography tilt 1" in text
    assert "3/3" in text
    assert "loss 0.16667" in text


def test_elsewhere_lines_are_sparse_but_metrics_complete(tmp_path):
    stream = io.StringIO()
    with Reporter(tmp_path, Console(file=stream, width=60), log_every=1e9) as reporter:
        reporter.stage("alignment")
        for iteration in range(1, 51):
            reporter.iteration("alignment", iteration, 50, 1 / iteration, lr=0.1)
        reporter.log("found [bold]no[/bold] markup " + "x" * 80)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "alignment: started"
    assert lines[1].startswith("alignment: iteration 50 of 50, loss 0.02")
    assert lines[2].startswith("found [bold]no[/bold] markup xxx"), "one message, one line"
    assert len(lines) == 3
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert len(metrics) == 50
    assert metrics[3] == {
        "stage": "alignment",
        "iteration": 4,
        "loss": 0.25,
        "lr": 0.1,
        "seconds": metrics[3]["seconds"],
    }
    assert (tmp_path / "run.log").read_text().count("\n") == 3
