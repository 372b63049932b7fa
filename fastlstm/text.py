"""A character-level language model: an LSTM on token ids and a softmax over the next character.

Training cuts the text into parallel streams and walks along all of them at once; back-propagation is truncated to a
window, and the state is carried from one window to the next (Williams & Peng 1990; Mikolov et al. 2010).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np

from . import files
from ._backends import choose
from .corpus import check_characters, encode, fingerprint, named, side_by_side, vocabulary_of
from .dense import Dense
from .layout import Array
from .losses import softmax_cross_entropy
from .optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, clip_by_norm
from .recurrent import LSTM
from .schedules import LambdaLR
from .spec_layer import State
from .training import Callback, Checkpoint, Diverged, Evaluation, History, Loop, Record
from .validation import flag, number, positive, probability
from .weighting import IGNORE_INDEX

KIND = "character model"  # in the configuration of a model file
HELD_OUT = 0.05  # share of the text, at its end, that is not trained on
HEADER = 1 << 16  # bytes, about, of a file's configuration and names
EVALUATION_STEPS = 128  # steps of one call in evaluation: bounds its memory


# --------------------------------------------------------------------------------------------------------------- model
class CharModel:
    """An LSTM over characters and a dense head that tells the next one.

    Parameters
    ----------
    vocabulary : str
        Of `corpus.vocabulary_of`.
    hidden_size, num_layers : int
    dropout : float
        Between the layers, while training.
    backend : str
    seed : int, optional
        Of the initial weights and the dropout.

    Raises
    ------
    ValueError
        The vocabulary is empty, unsorted, or has a character twice.
    """

    def __init__(
        self,
        vocabulary: str,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        backend: str = "auto",
        seed: int | None = None,
    ) -> None:
        check_characters(vocabulary)
        if not vocabulary or vocabulary_of(vocabulary) != vocabulary:
            raise ValueError(
                f"a vocabulary has every character once, sorted, got {vocabulary[:40]!r}: give vocabulary_of(text)"
            )
        self.vocabulary = vocabulary
        V = len(vocabulary)
        lstm_seed, head_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        self.lstm = LSTM(V, hidden_size, num_layers, dropout=dropout, backend=backend, seed=lstm_seed)
        self.head = Dense(hidden_size, V, backend=backend, seed=head_seed)

    @property
    def layers(self) -> list[LSTM | Dense]:
        """In the order in which optimisers take them."""
        return [self.lstm, self.head]

    # ------------------------------------------------------------------------------------------------------- training
    def gradients(self, x: Array, targets: Array, state: State) -> tuple[float, State, list[dict[str, Any]]]:
        """(mean loss, state after the window, gradients of `layers`) of a window: ids and targets (T, B)."""
        y, state, tape = self.lstm.forward(x, state)
        loss, dy, of_head = self.head.cross_entropy(y, targets)
        _, _, of_lstm = self.lstm.backward(tape, dy, sparse=True)
        return loss, state, [of_lstm, of_head]

    def loss(self, x: Array, targets: Array) -> float:
        """Mean loss in nats of streams (S, B), walked from a zero state; targets of `IGNORE_INDEX` do not count."""
        total, state = 0.0, None
        for at in range(0, len(x), EVALUATION_STEPS):
            piece = slice(at, at + EVALUATION_STEPS)
            y, state = self.lstm(x[piece], state)
            total += softmax_cross_entropy(self.head(y), targets[piece], "sum")[0]
        counted = np.count_nonzero(targets != IGNORE_INDEX)
        return total / counted if counted else math.nan

    # ------------------------------------------------------------------------------------------------------- sampling
    def sample(self, prefix: str, length: int, temperature: float = 1.0, seed: int | None = None) -> Iterator[str]:
        """Characters that may follow `prefix`, one by one, each drawn from what the model expects after all before it.

        Parameters
        ----------
        prefix : str
            May be empty; the text then begins as after a line's end, where the vocabulary has one.
        length : int
            How many characters to give; the prefix is not among them.
        temperature : float
            Divides the logits: below 1 bolder, above 1 wilder. 0 always takes the likeliest.
        seed : int, optional

        Raises
        ------
        ValueError, TypeError
            At once: the prefix has characters outside the vocabulary, or a number is out of its range.
        """
        ids = encode(prefix or ("\n" if "\n" in self.vocabulary else ""), self.vocabulary)
        length, temperature = positive(length, "length", 0), number(temperature, "temperature")
        rng = np.random.default_rng(None if seed is None else positive(seed, "seed", 0))
        return self._draw(ids, length, temperature, rng)

    def _draw(self, ids: Array, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        stream = self.lstm.stream()
        # Before the first character the output is that of the zero state: zeros.
        y = stream.run(ids)[-1] if len(ids) else np.zeros(self.lstm.hidden_size, self.lstm.dtype)
        for _ in range(length):
            token = choose_token(self.head(y), temperature, rng)
            yield self.vocabulary[token]
            y = stream.step(token)

    # ---------------------------------------------------------------------------------------------------------- files
    def to_arrays(self) -> dict[str, Array]:
        """All parameters, ``lstm.`` or ``head.`` before their names."""
        parts = {"lstm": self.lstm, "head": self.head}
        return {f"{part}.{name}": p for part, layer in parts.items() for name, p in layer.state_dict().items()}

    def to_config(self) -> dict[str, Any]:
        """What `to_arrays` does not tell."""
        return {"kind": KIND, "vocabulary": self.vocabulary, "dropout": self.lstm.dropout}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], config: Mapping[str, Any], backend: str = "auto") -> CharModel:
        """A model from what `to_arrays` and `to_config` gave.

        Raises
        ------
        KeyError, ValueError, TypeError, RuntimeError
            They do not make a model. Sizes come from the arrays, so that no false number can claim memory.
        """
        vocabulary = config.get("vocabulary")
        if config.get("kind") != KIND or not isinstance(vocabulary, str) or vocabulary_of(vocabulary) != vocabulary:
            raise ValueError("it holds no character model")
        lstm, head = below(arrays, "lstm."), below(arrays, "head.")
        V, H = len(vocabulary), lstm["weight_hh_l0"].shape[-1]
        if lstm["weight_hh_l0"].shape != (4 * H, H) or lstm["weight_ih_l0"].shape != (4 * H, V):
            raise ValueError(f"the matrices of its first layer do not fit {V} characters and {H} hidden units")
        layers = sum(name.startswith("weight_hh_l") and a.shape == (4 * H, H) for name, a in lstm.items())
        model = cls(vocabulary, H, layers, backend=backend, seed=0)
        model.lstm.dropout = probability(config["dropout"], "dropout")
        model.lstm.load_state_dict(lstm)
        model.head.load_state_dict(head)
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file, atomically."""
        files.save(path, self.to_arrays(), self.to_config())

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "auto") -> CharModel:
        """Read a model, or the model of a checkpoint.

        Raises
        ------
        OSError
            The file is missing or cannot be read.
        FileError
            It is damaged, or holds no character model.
        """
        choose(backend, "float32")  # its errors are not the file's
        arrays, config = files.load(path)
        with explained(path):
            return cls.from_arrays(arrays, config, backend)


def choose_token(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature), (V,); the likeliest one at temperature 0."""
    if temperature == 0:
        return int(np.argmax(logits))
    shifted = logits.astype(np.float64) - logits.max()
    with np.errstate(over="ignore", under="ignore"):  # towards temperature 0: -inf, and so probability 0
        cumulated = np.cumsum(np.exp(shifted / temperature))
    drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
    return min(int(drawn), len(logits) - 1)  # the product may round up to the whole


def below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever the wrong content of a file causes into a `FileError` that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise files.FileError(f"{path} does not fit: {files.one_line(error)}") from error


# ------------------------------------------------------------------------------------------------------------ training
OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "adagrad": Adagrad, "sgd": SGD}
LEARNING_RATES = {"adam": 2e-3, "adamw": 2e-3, "rmsprop": 2e-3, "adagrad": 2e-2, "sgd": 1.0}


def setting(default: Any, meaning: str, kind: type | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "type": kind or type(default)})


@dataclass(frozen=True)
class Settings:
    """All choices of a training; the command's options and their defaults are these.

    Raises
    ------
    ValueError, TypeError
        A value is out of its range; the message names it.
    """

    hidden: int = setting(256, "hidden units of each layer")
    layers: int = setting(1, "layers")
    dropout: float = setting(0.0, "share of outputs dropped between layers")
    seq_len: int = setting(64, "characters through which gradients flow back")
    batch: int = setting(32, "streams into which the text is cut")
    optimizer: str = setting("adam", f"one of {', '.join(OPTIMIZERS)}")
    lr: float | None = setting(None, f"learning rate; by optimizer {LEARNING_RATES} unless given", float)
    decay: float = setting(0.0, "share of the steps, the last ones, in which lr falls in a straight line towards 0")
    clip: float = setting(1.0, "largest norm of all gradients together; 0 for no clipping")
    steps: int = setting(2000, "steps in all, those before --resume included")
    seed: int = setting(0, "seed of weights and dropout")
    backend: str = setting("auto", "backend; see `fastlstm config`")
    evaluate_every: int = setting(250, "steps between measurements of held-out perplexity; 0 for none")
    checkpoint_every: int = setting(500, "steps between checkpoints; 0 for one at the end")

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "seq_len", "batch", "steps"):
            positive(getattr(self, name), name)
        for name in ("seed", "evaluate_every", "checkpoint_every"):
            positive(getattr(self, name), name, 0)
        number(self.clip, "clip")
        for name in ("dropout", "decay"):
            probability(getattr(self, name), name)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.lr is not None:
            number(self.lr, "lr")

    @property
    def base_lr(self) -> float:
        """The learning rate before it falls."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def lr_factor(self, taken: int) -> float:
        """By what the learning rate is multiplied after so many steps, for `schedules.LambdaLR`."""
        falling = self.steps * self.decay
        return min(1.0, max(0, self.steps - taken) / falling) if falling else 1.0


# These may differ between a run and its continuation; the others make the model and its place in the text.
CHANGEABLE = frozenset({"lr", "decay", "clip", "steps", "backend", "evaluate_every", "checkpoint_every"})


class Losses(list[float]):
    """The losses of all steps, as version 0.1.0 had them."""

    def append(self, value: float) -> None:
        """Do nothing: a step records its loss itself, which programs for version 0.1.0 did by this call."""


class TextHistory(History):
    """A history whose columns are ``loss`` of every step and ``held_out``, both in nats."""

    @property
    def losses(self) -> Losses:
        """The column ``loss``, by its name in version 0.1.0."""
        return Losses(value for _, value in self.points("loss"))


class TextTraining:
    """A character model in training on one text: a `fastlstm.training.Task`, and `run` trains it.

    Parameters
    ----------
    text : str
    settings : Settings
    path : path
        Where `save` writes: a model file that also holds all that is needed to go on.
    model : CharModel, optional
        To be trained; a fresh one unless given. Its vocabulary numbers the text; its sizes and backend count where the
        settings have their defaults, and so does its dropout.

    Raises
    ------
    TypeError
        The text is no string.
    ValueError
        The text is too short for the settings, the model does not know all of its characters, or has other sizes.

    Warns
    -----
    UserWarning
        A setting has no effect.

    Notes
    -----
    The text's last 5 % are held out. Of the others, all are trained on but fewer than ``batch`` at their end: the text
    is cut into ``batch`` streams of equal length, and a stream's last window is shorter where ``seq_len`` does not
    divide its length.
    """

    def __init__(
        self, text: str, settings: Settings, path: str | os.PathLike[str], model: CharModel | None = None
    ) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}: bytes become one by text.decode('utf-8')")
        self._begin(text, settings if model is None else fitted(settings, model), path, model)
        self._warn(without_effect(self.settings, self.model))

    def _begin(self, text: str, settings: Settings, path: str | os.PathLike[str], model: CharModel | None) -> None:
        self.settings, self.path = settings, path
        held_out = int(len(text) * HELD_OUT)
        kept, window = len(text) - held_out, settings.seq_len * settings.batch
        if kept <= window or held_out < 2:
            least = math.ceil(max((window + 1) / (1 - HELD_OUT), 2 / HELD_OUT))
            raise ValueError(
                f"the text has {len(text)} characters, but batch {settings.batch} times seq_len {settings.seq_len} "
                f"needs at least {least}: give a longer text, or lower batch or seq_len"
            )
        vocabulary = model.vocabulary if model else vocabulary_of(text)
        ids = encode(text, vocabulary)
        self.fingerprint = fingerprint(text)
        self._inputs, self._targets = side_by_side(ids[:kept], settings.batch)
        # Few streams there, for each begins without memory.
        self._held_out = side_by_side(ids[kept:], max(1, min(16, held_out // 256)))
        self.model = model or CharModel(
            vocabulary, settings.hidden, settings.layers, backend=settings.backend, seed=settings.seed
        )
        self.model.lstm.dropout = settings.dropout
        self.optimizer: Optimizer = OPTIMIZERS[settings.optimizer](self.model.layers, settings.base_lr)
        self.schedule = LambdaLR(self.optimizer, lambda taken: self.settings.lr_factor(taken))
        self.history = TextHistory()
        self.made_by = ""  # written into the file, where not empty
        self.position: int = 0  # where the next window begins, and in which state
        self.state: State = None
        self._state_after: State = None  # of the window whose gradients were computed last
        self._cut(True)

    def _cut(self, short_window: bool) -> None:
        """Whether a stream's last window may be shorter than seq_len; version 0.1.0 left such windows out."""
        S, T = len(self._inputs), self.settings.seq_len
        self.short_window, self._steps_of_text = short_window, S
        if not short_window:
            S = S // T * T
            self._inputs, self._targets = self._inputs[:S], self._targets[:S]
        self.tokens_per_step = round(S * self.settings.batch / math.ceil(S / T))  # the mean over the text

    def _left_out(self) -> Iterator[str]:
        if missing := self._steps_of_text - len(self._inputs):
            yield (
                f"an earlier version began {self.path}, which leaves the last {missing / self._steps_of_text:.0%} of "
                "every stream out, and so does its continuation: a new training takes all"
            )

    @staticmethod
    def _warn(notes: Iterable[str]) -> None:
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=3)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.schedule.steps

    def plan(self, steps: int) -> None:
        """Set the number of steps in all, from which a falling learning rate follows."""
        self.settings = replace(self.settings, steps=steps)
        self.schedule.load_state_dict({"steps": self.steps, "base_lr": self.settings.base_lr})

    def run(
        self,
        steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        evaluate_at_end: bool = False,
        report: Callable[[str], None] = warnings.warn,
    ) -> Loop:
        """Train until so many steps have been taken in all, evaluating and saving as the settings say; then save.

        Parameters
        ----------
        steps : int, optional
            Those of the settings unless given.
        callbacks : sequence of Callback
            Beside those that record, evaluate and save.
        evaluate_at_end : bool
            See `training.Evaluation`.
        report : function
            See `training.Checkpoint`.

        Returns
        -------
        loop : Loop
            As the run left it.
        """
        s = self.settings
        own = [
            Evaluation(lambda: {"held_out": self.evaluate()}, s.evaluate_every, evaluate_at_end),
            Checkpoint(self.save, self.path, s.checkpoint_every, report),
        ]
        loop = Loop(self, [Record(), *callbacks, *own], self.history, steps=self.steps)
        return loop.run(steps=s.steps if steps is None else steps)

    def step(self) -> float:
        """Train on the next window of every stream, outside any loop; its mean loss goes into the history too."""
        figures, gradients = self.gradients(next(self.batches()))
        self.update(gradients)
        self.history.record(self.steps, **figures)
        return figures["loss"]

    def batches(self) -> Iterator[slice]:
        """Where the windows lie, from the next one to the last one of the text."""
        while True:
            yield slice(self.position, self.position + self.settings.seq_len)
            if self.position == 0:  # the text begins again
                return

    def gradients(self, window: slice) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Mean loss of a window, and the clipped gradients of the model's layers."""
        lstm = self.model.lstm
        before = lstm.rng_state
        try:
            loss, state, grads = self.model.gradients(self._inputs[window], self._targets[window], self.state)
            norm = clip_by_norm(grads, self.settings.clip or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(f"training diverged at step {self.steps + 1}: loss {loss}, gradients' norm {norm}")
        except BaseException:
            lstm.rng_state = before
            raise
        self._state_after = state
        return {"loss": loss}, grads

    def update(self, gradients: list[dict[str, Any]]) -> None:
        """Take the step, and go on to the next window."""
        self.optimizer.step(gradients)
        self.schedule.step()
        self.position, self.state = self.position + self.settings.seq_len, self._state_after
        if self.position >= len(self._inputs):  # the text begins again
            self.position, self.state = 0, None

    def evaluate(self) -> float:
        """Mean loss on the held-out end of the text."""
        return self.model.loss(*self._held_out)

    def save(self) -> None:
        """Write model and checkpoint, one file, atomically."""
        training = {
            "settings": asdict(self.settings),
            "position": self.position,
            "rng": self.model.lstm.rng_state,
            "fingerprint": self.fingerprint,
        }
        training |= {"short_window": True} if self.short_window else {}
        training |= {"made_by": self.made_by} if self.made_by else {}
        files.save(self.path, arrays_of(self), self.model.to_config() | {"training": training})

    @classmethod
    def resume(cls, text: str, path: str | os.PathLike[str], given: Mapping[str, Any]) -> TextTraining:
        """Go on where `save` left off; the end is bit for bit that of a run that was never interrupted.

        Parameters
        ----------
        text : str
            The one that was trained on.
        path : path
        given : dict
            Settings for the rest of the run. Those not in `CHANGEABLE` must be as they were.

        Raises
        ------
        OSError, FileError
            The file is missing, damaged or no checkpoint.
        ValueError
            Another text, or settings that cannot change.
        """
        arrays, config = files.load(path)
        with explained(path):
            training = config["training"] if "training" in config else missing_checkpoint()
            # Earlier versions took a decay above 1 for 1.
            before = Settings(**training["settings"] | {"decay": min(training["settings"].get("decay", 0.0), 1.0)})
            trained_on, short_window = (
                training["fingerprint"],
                flag(training.get("short_window", False), "short_window"),
            )
        settings = changed(before, given)
        if trained_on != fingerprint(text):
            raise ValueError(
                f"{path} was trained on another text, or on this one in another encoding; going on needs the same. "
                "To train its model on a new text: TextTraining(text, settings, out, model=CharModel.load(path))"
            )
        choose(settings.backend, "float32")  # its errors are not the file's
        with explained(path):
            model = CharModel.from_arrays(arrays, config, settings.backend)
            if not short_window:
                check_numbering(text, model)
            job = cls.__new__(cls)
            job._begin(text, settings, path, model)
            job._cut(short_window)
            job._restore(arrays, training)
        cls._warn(chain(job._left_out(), without_effect(settings, model, job.steps)))
        return job

    def _restore(self, arrays: Mapping[str, Array], training: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(below(arrays, "optimizer."))
        self.history = read_history(below(arrays, "history."))
        losses, taken = self.history.length("loss"), self.optimizer.steps
        if losses != taken:
            raise ValueError(f"its history has the losses of {losses} steps, but its optimizer has taken {taken}")
        self.schedule.load_state_dict({"steps": taken, "base_lr": self.settings.base_lr})
        self.position = positive(training["position"], "position", 0)
        if self.position >= len(self._inputs):
            raise ValueError(f"position {self.position} lies outside the text")
        self.state = (arrays["state.h"], arrays["state.c"]) if "state.h" in arrays else None
        self.model.lstm(self._inputs[:0], self.state)  # raises unless the state fits
        self.model.lstm.rng_state = training["rng"]


def arrays_of(job: TextTraining) -> dict[str, Array]:
    """All arrays of a checkpoint: the model's, the optimiser's, the history's and the carried state's."""
    optimizer = {f"optimizer.{name}": a for name, a in job.optimizer.state_dict().items()}
    history = {f"history.{name}": a for name, a in job.history.to_arrays().items()}
    state = {} if job.state is None else {"state.h": job.state[0], "state.c": job.state[1]}
    return job.model.to_arrays() | optimizer | history | state


def size_of_file(job: TextTraining) -> int:
    """About how many bytes a checkpoint will have after the last step; rather too many."""
    s = job.settings
    kept = sum(a.nbytes for a in arrays_of(job).values())
    state = 2 * 4 * s.layers * s.batch * s.hidden
    measurements = s.steps // s.evaluate_every if s.evaluate_every else 0
    return kept + state + 16 * (max(0, s.steps - job.steps) + measurements) + HEADER


def read_history(arrays: Mapping[str, Array]) -> TextHistory:
    """The history of a file. Version 0.1.0 wrote the losses of all steps as ``losses`` (steps,)."""
    columns = dict(arrays)
    if "losses" in columns:
        losses = columns.pop("losses")
        columns = {"loss": np.column_stack([np.arange(1, len(losses) + 1), losses])} | columns
    return TextHistory.from_arrays(columns)


def fitted(settings: Settings, model: CharModel) -> Settings:
    """The settings of the training of a model that exists, or ValueError where they ask for another one."""
    default = {f.name: f.default for f in fields(Settings)}
    has = {"hidden": model.lstm.hidden_size, "layers": model.lstm.num_layers, "backend": model.lstm.backend}
    for name, value in has.items():
        if getattr(settings, name) not in (default[name], value):
            raise ValueError(
                f"the settings have {name} {getattr(settings, name)}, but the model has {value}: "
                f"leave {name} out of the settings, or give no model"
            )
    if settings.seed != default["seed"]:
        raise ValueError(f"seed {settings.seed} has no effect on a model that exists: give it to CharModel instead")
    sizes = replace(settings, hidden=model.lstm.hidden_size, layers=model.lstm.num_layers)
    return sizes if settings.dropout != default["dropout"] else replace(sizes, dropout=model.lstm.dropout)


def without_effect(s: Settings, model: CharModel, taken: int = 0) -> Iterator[str]:
    """A sentence for each setting that has no effect on the steps that follow so many taken."""
    if taken >= s.steps:
        yield f"nothing was left to do: {taken} steps have been taken, and steps is {s.steps}. Give more to go on"
        return
    if s.dropout and s.layers == 1:
        yield (
            f"dropout {s.dropout:g} has no effect: it drops outputs between layers, and layers is 1. "
            "Give layers 2 or more, or dropout 0"
        )
    if s.lr == 0:
        yield "lr is 0, so that nothing is learnt"
    if s.decay > 0 and s.steps * s.decay <= 1:
        yield f"decay {s.decay:g} has no effect: of {s.steps} steps that is one at most. Give more of either"
    for name in ("evaluate_every", "checkpoint_every"):
        every = getattr(s, name)
        chosen = every and every != Settings.__dataclass_fields__[name].default
        if chosen and s.steps // every == taken // every:
            yield f"{name} {every} has no effect: no such step lies between steps {taken} and {s.steps}"
    if len(model.vocabulary) == 1:
        yield f"the text has only the character {model.vocabulary!r}, so that there is nothing to learn"


def check_numbering(text: str, model: CharModel) -> None:
    """Earlier versions numbered a text by its own characters, whatever model it trained."""
    if vocabulary_of(text) != model.vocabulary:
        missing = "".join(sorted(set(model.vocabulary) - set(text)))
        raise ValueError(
            f"an earlier version trained a model of other characters ({named(missing)}) on this text, and numbered the "
            "text wrongly: train the model anew"
        )


def missing_checkpoint() -> Any:
    raise ValueError("it is a model without the state of its training; only a file written by training can be resumed")


def changed(before: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings of a continued run, or ValueError."""
    fixed = {name: value for name, value in given.items() if name not in CHANGEABLE and value != getattr(before, name)}
    if fixed:
        asked = ", ".join(f"{name} {value}" for name, value in fixed.items())
        had = ", ".join(f"{name} {getattr(before, name)}" for name in fixed)
        raise ValueError(f"a resumed run cannot have {asked}: it began with {had}")
    return replace(before, **given)
