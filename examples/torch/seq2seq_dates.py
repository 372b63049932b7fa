"""A plain PyTorch training script as it is and accelerated: the same training from the same seed.

An encoder-decoder with attention learns to write dates as people write them ("sunday, 29 november 2026", "11/29/26") in
the form 2026-11-29. The encoder is a bidirectional GRU over a PackedSequence, the decoder a loop over an LSTMCell.

    pip install torch
    python seq2seq_dates.py [--epochs 3] [--threads 1]
"""

import argparse
import datetime

import numpy as np
import torch
from side_by_side import Compared, Trained, compare, timed
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

FORMS = ["%d %B %Y", "%A, %d %B %Y", "%b %d, %Y", "%m/%d/%y", "%d.%m.%Y", "%B %d %Y"]
LETTERS = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 ,./-"))
CODE = {letter: i + 1 for i, letter in enumerate(LETTERS)}  # 0 is padding, and what the decoder begins with
SIZE = len(CODE) + 1
ANSWER = len("2026-11-29")


def pairs(count, seed):
    """(written dates, each a tensor of letters, longest first; answers (count, 10))."""
    rng = np.random.default_rng(seed)
    days = [datetime.date.fromordinal(int(n)) for n in rng.integers(693_596, 767_010, count)]  # 1900 to 2100
    written = [day.strftime(str(rng.choice(FORMS))).lower() for day in days]
    letters = [torch.tensor([CODE[letter] for letter in text]) for text in written]
    answers = torch.tensor([[CODE[letter] for letter in day.isoformat()] for day in days])
    order = sorted(range(count), key=lambda i: -len(letters[i]))
    return [letters[i] for i in order], answers[order]


class Translator(nn.Module):
    """Letters to letters, with attention over the encoder's outputs (Luong et al. 2015)."""

    def __init__(self, size=SIZE, width=32, hidden=96):
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.encoder = nn.GRU(width, hidden, bidirectional=True)
        self.decoder = nn.LSTMCell(width + 2 * hidden, 2 * hidden)
        self.attend = nn.Linear(2 * hidden, 2 * hidden, bias=False)
        self.write = nn.Linear(4 * hidden, size)

    def forward(self, letters, answers=None):
        """Scores (B, 10, size) of the answers' letters; without answers each step takes the last step's best letter."""
        lengths = torch.tensor([len(one) for one in letters])
        packed = pack_padded_sequence(self.embed(pad_sequence(letters)), lengths)
        outputs, final = self.encoder(packed)
        outputs = pad_packed_sequence(outputs)[0].transpose(0, 1)  # (B, T, 2H)
        padding = torch.arange(outputs.shape[1]) >= lengths[:, None]
        h = torch.cat([final[0], final[1]], dim=1)
        c, context = torch.zeros_like(h), torch.zeros_like(h)
        letter, scores = torch.zeros(len(letters), dtype=torch.int64), []
        for t in range(ANSWER):
            h, c = self.decoder(torch.cat([self.embed(letter), context], dim=1), (h, c))
            weights = (outputs @ self.attend(h)[:, :, None])[:, :, 0].masked_fill(padding, -1e9).softmax(dim=1)
            context = (weights[:, None] @ outputs)[:, 0]
            scores.append(self.write(torch.cat([h, context], dim=1)))
            letter = scores[-1].argmax(dim=1) if answers is None else answers[:, t]
        return torch.stack(scores, dim=1)


def run(prepare, epochs=3, count=4000, batch=50) -> Trained:
    torch.manual_seed(0)
    model = Translator()
    prepare(model)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = [pairs(batch, seed) for seed in range(count // batch)]

    def train():
        losses = []
        for _ in range(epochs):
            for letters, answers in batches:
                loss = nn.functional.cross_entropy(model(letters, answers).flatten(0, 1), answers.flatten())
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                losses.append(float(loss.detach()))
        return losses

    trained = timed(train, model)
    letters, answers = pairs(200, 1_000_000)
    with torch.no_grad():
        right = (model(letters).argmax(dim=2) == answers).all(dim=1)
    print(f"{100 * float(right.float().mean()):.1f} % of unseen dates are written rightly")
    return trained


def main(arguments=None) -> Compared:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return compare(lambda prepare: run(prepare, given.epochs))


if __name__ == "__main__":
    main()
