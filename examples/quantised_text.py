"""What reduced storage costs on a real task: perplexity of a character model in every storage, on held-out text.

An LSTM of 256 units learns the bundled Shakespeare (fastlstm.text, 3000 steps); its last 5 % are held out. Then the
same weights are kept in every reduced storage, and each model reads the held-out text.

    python quantised_text.py [--steps 3000] [--hidden 256] [--model FILE]

With --model the trained model is kept in FILE, and read from it the next time.

Expected output, after some two minutes on two cores:

    storage  bytes of LSTM  mean change of h   99.9 %  largest  perplexity  change
    float32      1,384,448                 0        0        0      4.5882 +0.000%
    float16        696,320           5.2e-05  0.00062   0.0016      4.5882 -0.000%
    int16          704,512           3.4e-05  0.00041   0.0013      4.5882 -0.000%
    int8           360,448            0.0026     0.03     0.11      4.5908 +0.057%
"""

import argparse
import importlib.resources
import os
import tempfile
import warnings
from pathlib import Path

from fastlstm.metrics import perplexity
from fastlstm.quantise import REDUCED
from fastlstm.text import Settings, TextModel, TextTraining

SAMPLE = 20_000  # characters of the held-out text on which outputs are compared


def read_text():
    """The bundled plays."""
    return (importlib.resources.files("fastlstm") / "data" / "shakespeare.txt").read_text(encoding="utf-8")


def trained(text, settings, path=None):
    """A training at its end: from its file or, where there is none, trained now."""
    if path is not None and os.path.exists(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no step is left to do
            return TextTraining.resume(text, path, {})
    with tempfile.TemporaryDirectory() as folder:
        job = TextTraining(text, settings, path or Path(folder) / "model")
        job.run()
    return job


def measured(job, sample):
    """Rows (storage, bytes of the LSTM, mean, 99.9 % quantile and largest change of h, held-out perplexity)."""
    model: TextModel = job.model
    size = sum(p.nbytes for p in model.lstm.parameters().values())
    rows = [("float32", size, 0.0, 0.0, 0.0, perplexity(job.evaluate()))]
    for storage in REDUCED[::-1]:
        job.model = model.quantize(storage, sample)
        end = job.model.lstm.report.end
        rows.append((storage, end.after, end.mean, end.quantile, end.largest, perplexity(job.evaluate())))
    job.model = model
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--model", help="a file that keeps the trained model")
    options = parser.parse_args()
    text = read_text()
    settings = Settings(hidden=options.hidden, steps=options.steps, evaluate_every=0, checkpoint_every=0)
    rows = measured(trained(text, settings, options.model), text[-len(text) // 20 :][:SAMPLE])
    print("storage  bytes of LSTM  mean change of h   99.9 %  largest  perplexity  change")
    for storage, size, mean, quantile, largest, found in rows:
        share = found / rows[0][-1] - 1
        print(f"{storage:8}{size:14,}{mean:18.2g}{quantile:9.2g}{largest:9.2g}{found:12.4f}{share:+8.3%}")


if __name__ == "__main__":
    main()
