"""The demo's model: token ids of a context become a softmax over the next token, from weights that a trainer moves.

The context is read token by token (`Reader`): where in the answer the next token stands (a row of a table of logits) and,
where a number is due, what the tokens say about it (the range, the hints, the guesses so far, a helper's proposal). So the
model sees exactly the ids that the engine was given and nothing else. Pure numpy, float32.

Invariant: sampling and training share `log_softmax_rows` and `Reader`; with equal weights and ids they give equal log-probs.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from claw_r1.demo import tokens

Floats = npt.NDArray[np.float32]

FLOOR: Final = np.float32(-30.0)  # the logit of what the model never says: finite, so that any id has a log-prob

# Where in an answer the next token stands: the rows of the table.
PLAN, PLAY, ADVISE, OVER, NAME_PLAY, NAME_ADVISE, NUMBER, CLOSING, CLOSED, TEXT_1, TEXT_2, TEXT_3 = range(12)
PLACES: Final = 12
_TEXT: Final = (TEXT_1, TEXT_2, TEXT_3)

FEATURES: Final = ("stated", "guessed", "open", "centre", "near", "middle", "far", "edge", "proposed")
_NUMBERS: Final = slice(tokens.FIRST_NUMBER, tokens.HEAD)
_BETWEEN, _AND, _HIGHER, _LOWER, _PLAN, _GAME, _OVER, _ADVISE, _PROPOSES = (
    tokens.id_of(word)
    for word in (" between", " and", " higher", " lower", " plan", " Game", " over", " advise", " proposes")
)


class Due(NamedTuple):
    """What the context says about the number that is due: the stated range, the range still open, and so on."""

    first: int
    last: int
    low: int
    high: int
    guessed: frozenset[int]
    proposed: int | None


@dataclass(slots=True)
class Reader:
    """Reads a context token by token; `place` and `due` say what the model knows about the next token."""

    role: int = tokens.END
    place: int = PLAY
    first: int = 0
    last: int = tokens.MAX_NUMBER
    low: int = 0
    high: int = tokens.MAX_NUMBER
    guess: int | None = None
    guessed: frozenset[int] = frozenset()
    proposed: int | None = None
    advising: bool = False
    planning: bool = False
    over: bool = False
    _before: tuple[int, int, int] = (-1, -1, -1)

    def feed(self, ids: Iterable[int]) -> None:
        for token in ids:
            self.read(token)

    def read(self, token: int) -> None:
        if tokens.SYSTEM <= token <= tokens.TOOL:
            self._open(token)
        elif self.role == tokens.ASSISTANT:
            self._advance(token)
        elif self._before[2] != -1:
            self._listen(token)
        self._before = (self._before[1], self._before[2], token)

    def due(self) -> Due:
        return Due(self.first, self.last, self.low, self.high, self.guessed, self.proposed)

    def _open(self, role: int) -> None:
        self.role = role
        if role != tokens.ASSISTANT:
            self.planning = self.over = False
        elif self.over:
            self.place = OVER
        elif self.planning:
            self.place = PLAN
        else:
            self.place = ADVISE if self.advising else PLAY

    def _advance(self, token: int) -> None:
        """The next place in the assistant's answer after `token`."""
        place, number = self.place, token - tokens.FIRST_NUMBER
        if token == tokens.CALL:
            self.place = NAME_ADVISE if self.advising else NAME_PLAY
        elif place in (NAME_PLAY, NAME_ADVISE) and token < tokens.FIRST_NUMBER:
            self.place = NUMBER
        elif place == NUMBER and 0 <= number <= tokens.MAX_NUMBER:
            self.place, self.guess, self.guessed = CLOSING, number, self.guessed | {number}
        elif token == tokens.CLOSE:
            self.place = CLOSED
        else:
            self.place = _TEXT[min(_TEXT.index(place) + 1, 2)] if place in _TEXT else TEXT_1

    def _listen(self, token: int) -> None:
        """What the system, the user or a tool says."""
        older, old, previous = self._before
        number = token - tokens.FIRST_NUMBER
        spoken = 0 <= number <= tokens.MAX_NUMBER
        if spoken and previous == _AND and older == _BETWEEN and old >= tokens.FIRST_NUMBER:
            self.first = self.low = old - tokens.FIRST_NUMBER
            self.last = self.high = number
        elif spoken and previous == _PROPOSES:
            self.proposed = number
        elif token == _OVER and previous == _GAME:
            self.over = True
        elif token == _PLAN and self.role == tokens.USER:
            self.planning = True
        elif token == _ADVISE and self.role == tokens.SYSTEM:
            self.advising = True
        elif self.role == tokens.TOOL and self.guess is not None:
            if token == _HIGHER:
                self.low = max(self.low, self.guess + 1)
            elif token == _LOWER:
                self.high = min(self.high, self.guess - 1)


@lru_cache(maxsize=4096)
def number_features(due: Due) -> Floats:
    """[MAX_NUMBER + 1, len(FEATURES)] float32: what speaks for each number. Read only: it is shared."""
    numbers = np.arange(tokens.MAX_NUMBER + 1)
    open_ = (numbers >= due.low) & (numbers <= due.high)
    half = max((due.high - due.low + 1) / 2, 0.5)
    offset = numbers - (due.low + due.high) / 2
    distance = np.abs(offset) / half  # in [0, 1) where open
    columns = [
        (numbers >= due.first) & (numbers <= due.last),
        np.isin(numbers, list(due.guessed)),
        open_,
        open_ & (np.abs(offset) <= 0.5),
        open_ & (distance < 0.3),
        open_ & (distance >= 0.3) & (distance < 0.6),
        open_ & (distance >= 0.6),
        open_ & ((numbers == due.low) | (numbers == due.high)),
        numbers == (-1 if due.proposed is None else due.proposed),
    ]
    features = np.stack(columns, axis=1).astype(np.float32)
    features.flags.writeable = False
    return features


@dataclass(frozen=True, slots=True)
class Weights:
    """One immutable version of the model: `table` [PLACES, HEAD], `taste` [len(FEATURES)], both float32."""

    version: int
    table: Floats
    taste: Floats


def initial_weights() -> Weights:
    """A model that writes well-formed answers nearly always and guesses blindly within the stated range."""
    name, likely, unlikely, never = tokens.id_of, 7.0, 0.0, -6.0
    table = np.full((PLACES, tokens.HEAD), unlikely, np.float32)
    table[:, _NUMBERS] = never
    words = [name(word) for word in (" I", " halve", " the", " range")]
    for place, good in {
        PLAN: words,
        PLAY: [tokens.CALL],
        ADVISE: [tokens.CALL],
        OVER: [name(" done"), name(" thanks")],
        NAME_PLAY: [name(" guess")],
        NAME_ADVISE: [name(" propose")],
        CLOSING: [tokens.CLOSE],
        CLOSED: [tokens.END],
        TEXT_1: [*words, tokens.END],
        TEXT_2: [tokens.END],
        TEXT_3: [tokens.END],
    }.items():
        table[place, good] = likely
    table[NUMBER] = never
    table[NUMBER, _NUMBERS] = 0.0
    taste = np.zeros(len(FEATURES), np.float32)
    taste[FEATURES.index("stated")] = 5.0
    return Weights(0, table, taste)


def weights_to_bytes(weights: Weights) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, version=np.int64(weights.version), table=weights.table, taste=weights.taste)
    return buffer.getvalue()


def weights_from_bytes(data: bytes) -> Weights:
    """Raises ValueError when the bytes are no weights of this model."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            version, table, taste = int(stored["version"]), stored["table"], stored["taste"]
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"these bytes hold no weights: {error}") from error
    if table.shape != (PLACES, tokens.HEAD) or taste.shape != (len(FEATURES),):
        raise ValueError(f"weights of another model: table {table.shape}, taste {taste.shape}")
    if not (np.isfinite(table).all() and np.isfinite(taste).all()):
        raise ValueError("weights that are not finite")
    return Weights(version, table.astype(np.float32), taste.astype(np.float32))


def log_softmax_rows(logits: Floats) -> Floats:
    """[n, SIZE] float32 logits -> log-probs, each row by itself."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def logits_rows(weights: Weights, places: npt.NDArray[np.intp], dues: Sequence[Due | None]) -> Floats:
    """[n, SIZE] float32 logits of the next token; `dues[i]` is given where `places[i]` is NUMBER."""
    logits = np.full((len(places), tokens.SIZE), FLOOR, np.float32)
    logits[:, : tokens.HEAD] = weights.table[places]
    for row, due in enumerate(dues):
        if due is not None:
            logits[row, _NUMBERS] += number_features(due) @ weights.taste
    return logits


def next_log_probs(weights: Weights, reader: Reader, temperature: float = 1.0) -> Floats:
    """[SIZE] float32 log-probs of the token after what `reader` has read (temperature > 0)."""
    due = reader.due() if reader.place == NUMBER else None
    logits = logits_rows(weights, np.array([reader.place]), [due])
    if temperature != 1.0:
        logits /= np.float32(temperature)
    row: Floats = log_softmax_rows(logits)[0]
    return row


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token: its log-prob as sampled, the version that sampled it, and the whole distribution."""

    token: int
    log_prob: float
    version: int
    log_probs: Floats


def sample(weights: Weights, reader: Reader, rng: np.random.Generator, temperature: float) -> Sampled:
    """Draw the next token and read it. Temperature 0 takes the likeliest and reports its log-prob at temperature 1."""
    log_probs = next_log_probs(weights, reader, temperature or 1.0)
    if temperature == 0.0:
        token = int(log_probs.argmax())
    else:
        cumulated = np.exp(log_probs.astype(np.float64)).cumsum()
        token = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
    reader.read(token)
    return Sampled(token, float(log_probs[token]), weights.version, log_probs)


def places_of(ids: Sequence[int]) -> Iterator[tuple[int, Due | None]]:
    """For every position of a sequence: the place of that token, and what is due there if it is a number."""
    reader = Reader()
    for token in ids:
        yield reader.place, reader.due() if reader.place == NUMBER else None
        reader.read(token)
