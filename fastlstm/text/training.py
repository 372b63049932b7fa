"""A language model in training on one text.

Training cuts the text into parallel streams and goes through all of them at once; back-propagation is truncated to a
window, and the state is carried from one window to the next (Williams & Peng 1990; Mikolov et al. 2010).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

from .. import files
from .._backends import choose
from ..corpus import fingerprint, named, side_by_side, vocabulary_of
from ..layout import Array
from ..optim import Optimizer, clip_by_norm
from ..schedules import LambdaLR
from ..spec_layer import State
from ..training import Callback, Checkpoint, Diverged, Evaluation, Loop, Record
from ..validation import flag, positive
from .history import TextHistory, read_history
from .model import TextModel, below, explained, text_model
from .settings import OPTIMIZERS, Settings, changed, fitted, without_effect
from .vocabulary import Characters, Vocabulary, Words

HELD_OUT = 0.05  # share of the text, at its end, that is held out
HEADER = 1 << 16  # approximate bytes of a file's configuration and names


class TextTraining:
    """A language model in training on one text: a `fastlstm.training.Task`, and `run` trains it.

    Parameters
    ----------
    text : str
    settings : Settings
    path : path
        Where `save` writes: a model file that also holds all that is needed to go on.
    model : TextModel, optional
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
    The text's last 5 % are held out. The rest is cut into ``batch`` streams of equal length, which leaves fewer than
    ``batch`` characters out. A stream's last window is shorter if ``seq_len`` does not divide the stream's length.
    """

    def __init__(
        self, text: str, settings: Settings, path: str | os.PathLike[str], model: TextModel | None = None
    ) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}: bytes become one by text.decode('utf-8')")
        self._begin(text, settings if model is None else fitted(settings, model), path, model)
        self._warn(without_effect(self.settings, self.model))

    def _begin(self, text: str, settings: Settings, path: str | os.PathLike[str], model: TextModel | None) -> None:
        self.settings, self.path = settings, path
        tokens = model.tokens if model else vocabulary_for(text, settings)
        ids = tokens.encode(text)
        held_out = int(len(ids) * HELD_OUT)
        kept, window = len(ids) - held_out, settings.seq_len * settings.batch
        if kept <= window or held_out < 2:
            least = math.ceil(max((window + 1) / (1 - HELD_OUT), 2 / HELD_OUT))
            raise ValueError(
                f"the text has {len(ids)} {tokens.unit}s, but batch {settings.batch} times seq_len {settings.seq_len} "
                f"needs at least {least}: give a longer text, or lower batch or seq_len"
            )
        self.fingerprint = fingerprint(text)
        self._inputs, self._targets = side_by_side(ids[:kept], settings.batch)
        # Few evaluation streams: each begins with the zero state, which raises the loss of its first characters.
        self._held_out = side_by_side(ids[kept:], max(1, min(16, held_out // 256)))
        self.model = model or text_model(
            tokens, settings.hidden, settings.layers, backend=settings.backend, seed=settings.seed
        )
        self.model.lstm.dropout = settings.dropout
        self.optimizer: Optimizer = OPTIMIZERS[settings.optimizer](self.model.layers, settings.base_lr)
        self.schedule = LambdaLR(self.optimizer, lambda taken: self.settings.lr_factor(taken))
        self.history = TextHistory()
        self.made_by = ""  # a mark for the file; "": none
        self.position: int = 0  # first step of the next window; `state` is the state there
        self.state: State = None
        self._state_after: State = None  # state after the window whose gradients were computed last
        self._cut(True)

    def _cut(self, short_window: bool) -> None:
        """Without `short_window` leave the steps of a last window below seq_len out, as version 0.1.0 did."""
        S, T = len(self._inputs), self.settings.seq_len
        self.short_window, self._steps_of_text = short_window, S
        if not short_window:
            S = S // T * T
            self._inputs, self._targets = self._inputs[:S], self._targets[:S]
        self.tokens_per_step = round(S * self.settings.batch / math.ceil(S / T))  # mean over a pass through the text

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
        """Set the total number of steps, on which the decay of the learning rate depends."""
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
        """Train up to `steps` steps in all, with evaluations and checkpoints by the settings; then save.

        Parameters
        ----------
        steps : int, optional
            None: the settings' steps.
        callbacks : sequence of Callback
            Further callbacks, beside those that record, evaluate and save.
        evaluate_at_end : bool
            See `training.Evaluation`.
        report : function
            See `training.Checkpoint`.

        Returns
        -------
        loop : Loop
            The loop after the run.
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
        """The steps of each window, from the next window to the last one of the text."""
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
                raise Diverged(
                    f"training diverged at step {self.steps + 1}: loss {loss}, gradients' norm {norm}. Lower lr or clip"
                )
        except BaseException:
            lstm.rng_state = before
            raise
        self._state_after = state
        return {"loss": loss}, grads

    def update(self, gradients: list[dict[str, Any]]) -> None:
        """Take the step, and advance to the next window."""
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
        """Continue a training from the file of `save`; its end has the same bits as an uninterrupted run.

        Parameters
        ----------
        text : str
            The text of the training.
        path : path
        given : dict
            Settings for the rest of the run. Settings that are not in `CHANGEABLE` must have their old values.

        Raises
        ------
        OSError
            The file is missing or cannot be read.
        FileError
            The file is damaged or no checkpoint.
        ValueError
            Another text, or settings that cannot change.
        """
        arrays, config = files.load(path)
        with explained(path):
            training = config["training"] if "training" in config else missing_checkpoint()
            # Earlier versions treated a decay above 1 as 1.
            before = Settings(**training["settings"] | {"decay": min(training["settings"].get("decay", 0.0), 1.0)})
            trained_on, short_window = (
                training["fingerprint"],
                flag(training.get("short_window", False), "short_window"),
            )
        settings = changed(before, given)
        if trained_on != fingerprint(text):
            raise ValueError(
                f"{path} was trained on another text, or on this one in another encoding; going on needs the same. "
                "To train its model on a new text: TextTraining(text, settings, out, model=TextModel.load(path))"
            )
        choose(settings.backend, "float32")  # raises here: the backend's errors are not the file's
        with explained(path):
            model = TextModel.from_arrays(arrays, config, settings.backend)
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


def vocabulary_for(text: str, settings: Settings) -> Vocabulary:
    """The vocabulary of a model that is trained on this text."""
    if settings.level == "word":
        return Words.of(text, settings.words, settings.min_count)
    return Characters(vocabulary_of(text or "\n"))  # an empty text is refused for its length


def arrays_of(job: TextTraining) -> dict[str, Array]:
    """All arrays of a checkpoint: the model's, the optimiser's, the history's and the carried state's."""
    optimizer = {f"optimizer.{name}": a for name, a in job.optimizer.state_dict().items()}
    history = {f"history.{name}": a for name, a in job.history.to_arrays().items()}
    state = {} if job.state is None else {"state.h": job.state[0], "state.c": job.state[1]}
    return job.model.to_arrays() | optimizer | history | state


def size_of_file(job: TextTraining) -> int:
    """Estimate, rather too large, of the bytes of a checkpoint after the last step."""
    s = job.settings
    kept = sum(a.nbytes for a in arrays_of(job).values())
    state = 2 * 4 * s.layers * s.batch * s.hidden
    measurements = s.steps // s.evaluate_every if s.evaluate_every else 0
    return kept + state + 16 * (max(0, s.steps - job.steps) + measurements) + HEADER


def check_numbering(text: str, model: TextModel) -> None:
    """Earlier versions numbered a text by its own characters, whatever model it trained."""
    if vocabulary_of(text) != model.vocabulary:
        missing = "".join(sorted(set(model.vocabulary) - set(text)))
        raise ValueError(
            f"an earlier version trained a model of other characters ({named(missing)}) on this text, and numbered the "
            "text wrongly: train the model anew"
        )


def missing_checkpoint() -> Any:
    raise ValueError("it is a model without the state of its training; only a file written by training can be resumed")
