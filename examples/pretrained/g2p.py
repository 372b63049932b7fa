"""Words to phonemes by g2p-en: a GRU reads the letters, another writes the phonemes. The package computes in NumPy.

The weights have PyTorch's layout, so that `load_state_dict` takes them as they are. The encoder reads all words in one
call, the decoder writes all of them side by side.

    pip install --no-deps g2p-en==2.1.0
    python g2p.py

The package's module fetches data when it is imported; its class G2p is taken from the source instead, and compared with
on words that its dictionary does not have. Expected output (times vary):

    30 words, 264 letters: the same phonemes
    transformer: T R AE0 N S F AO1 R M ER0
    blockchain: B L AA1 K HH EY2 N
    hashtag: HH AE1 SH T AH0 G
    the package word by word ... ms, with fastlstm ... ms: ... times as fast; all words at once ... ms
"""

import os
import time
import warnings
from types import SimpleNamespace

import numpy as np
from source import class_of, folder_of

import fastlstm as fl

WORDS = [
    "transformer",
    "blockchain",
    "hashtag",
    "podcast",
    "emoji",
    "selfie",
    "backpropagation",
    "quantised",
    "fastlstm",
    "hyperparameter",
    "webinar",
    "cryptocoin",
    "chatbot",
    "tokenizer",
    "unfollow",
    "photobomb",
    "vlogger",
    "crowdfunding",
    "geotag",
    "microservice",
    "kubernetes",
    "pythonic",
    "workaholism",
    "flumoxed",
    "brexiteer",
    "snarfle",
    "quizzify",
    "zorbing",
    "nanobot",
    "defragment",
]
BEGIN, END, LONGEST = 2, 3, 20  # the phonemes "<s>" and "</s>", and how many are written at most
ROUNDS = 5


def package():
    """The package's G2p, made without its dictionary, or an exit that says what to install."""
    folder = folder_of("g2p_en")
    if folder is None:
        raise SystemExit("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    names = {"np": np, "os": os, "dirname": str(folder)}
    names |= {"cmudict": SimpleNamespace(dict=dict), "construct_homograph_dictionary": dict}
    return class_of(folder / "g2p.py", "G2p", **names)()


class Translator:
    """The package's networks on fastlstm's layers.

    Parameters
    ----------
    g2p : G2p
        Of the package: its weights and its tables of letters and phonemes.
    """

    def __init__(self, g2p):
        self.g2p = g2p
        self.encoder, self.decoder = self.layer("enc"), self.layer("dec")

    def layer(self, name):
        """The GRU (64, 128) of the weights enc_w_ih, enc_w_hh, enc_b_ih, enc_b_hh; or dec_..."""
        w_ih, w_hh = (getattr(self.g2p, f"{name}_w_{part}") for part in ("ih", "hh"))
        gru = fl.GRU(w_ih.shape[1], w_hh.shape[1], reset_after=True)
        state = {f"weight_{part}_l0": getattr(self.g2p, f"{name}_w_{part}") for part in ("ih", "hh")}
        state |= {f"bias_{part}_l0": getattr(self.g2p, f"{name}_b_{part}") for part in ("ih", "hh")}
        gru.load_state_dict(state)
        return gru

    def __call__(self, words):
        """The phonemes of each word."""
        g2p, B = self.g2p, len(words)
        letters = [g2p.encode(word)[0] for word in words]  # (letters + 1, 64) each
        lengths = np.array([len(one) for one in letters])
        x = np.zeros((lengths.max(), B, g2p.enc_emb.shape[1]), np.float32)
        for b, one in enumerate(letters):
            x[: len(one), b] = one
        _, h = self.encoder(x, lengths=lengths)
        stream = self.decoder.stream(batch_size=B)
        stream.state = h
        written, last, going = [], np.full(B, BEGIN), np.ones(B, bool)
        for _ in range(LONGEST):
            y = stream.step(g2p.dec_emb[last])
            last = (y @ g2p.fc_w.T + g2p.fc_b).argmax(axis=1)
            going &= last != END
            if not going.any():
                break
            written.append(np.where(going, last, END))
        rows = np.array(written, int).reshape(-1, B).T
        return [[g2p.idx2p[i] for i in row if i != END] for row in rows]


def milliseconds(call, rounds):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def main(words=WORDS, rounds=ROUNDS):
    g2p = package()
    translator = Translator(g2p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package: exp overflows to infinity, and 1 / (1 + inf) is 0
        expected = [g2p.predict(word) for word in words]
    together, alone = translator(words), [translator([word])[0] for word in words]
    for word, right, *found in zip(words, expected, together, alone, strict=True):
        if any(one != right for one in found):
            raise SystemExit(f"{word}: the phonemes differ: {right}, {found}")
    print(f"{len(words)} words, {sum(map(len, words))} letters: the same phonemes")
    for word, phonemes in list(zip(words, together, strict=True))[:3]:
        print(f"{word}: {' '.join(phonemes)}")
    theirs = milliseconds(lambda: [g2p.predict(word) for word in words], rounds)
    ours = milliseconds(lambda: [translator([word]) for word in words], rounds)
    at_once = milliseconds(lambda: translator(words), rounds)
    print(
        f"the package word by word {theirs:.1f} ms, with fastlstm {ours:.1f} ms: {theirs / ours:.1f} times as fast; "
        f"all words at once {at_once:.1f} ms"
    )


if __name__ == "__main__":
    main()
