"""One render function for every prompt, and its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer

from puma_edge.errors import InputError, PumaError

RET = "[RET]"
IMAGE_PAD = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
PAD = "<|endoftext|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, RET)

# No token of Qwen2's vocabulary is longer than 128 characters: what lies beyond this many for each
# token of the limit cannot come into the cut, and a book need not be tokenised to be cut.
_LONGEST_TOKEN = 256


class Modality(str, Enum):
    """What an item consists of, in M-BEIR's words."""

    TEXT = "text"
    IMAGE = "image"
    IMAGE_TEXT = "image,text"

    @property
    def letters(self) -> str:
        """The short form of task names: t, i or it."""
        return {"text": "t", "image": "i", "image,text": "it"}[self.value]

    @classmethod
    def of(cls, *, has_text: bool, has_image: bool) -> Modality:
        """Return the modality of an item that has these parts (at least one of them)."""
        if has_image:
            return cls.IMAGE_TEXT if has_text else cls.IMAGE
        return cls.TEXT


_SUBJECT = {
    Modality.TEXT: "sentence",
    Modality.IMAGE: "image",
    Modality.IMAGE_TEXT: "image and sentence",
}


@dataclass(frozen=True)
class PromptFormat:
    """How an item becomes a prompt.

    The instruction, the text and "Summarize above ...: " stand on lines of their own in the user's
    turn; the assistant's turn is `[RET]`.

    Attributes:
        system: the system turn, None for no such turn.
        max_text_tokens: the user's own text is cut to this many tokens; nothing else ever is.

    """

    system: str | None = "You are a helpful assistant."
    max_text_tokens: int = 450


def render(
    prompt: PromptFormat,
    instruction: str | None,
    text: str | None,
    image_tokens: tuple[int, ...] = (),
) -> list[str]:
    """Return the prompt's pieces: special tokens stand alone, all between them is ordinary text.

    Args:
        prompt: the format.
        instruction: what is searched for; queries have one, candidates None.
        text: the user's text, already cut.
        image_tokens: tokens each image takes, one entry per image.

    """
    modality = Modality.of(has_text=bool(text), has_image=bool(image_tokens))
    pieces: list[str] = []
    if prompt.system is not None:
        pieces += [TURN_START, f"system\n{prompt.system}", TURN_END, "\n"]
    pieces += [TURN_START, "user\n"]
    for count in image_tokens:
        pieces += [VISION_START, *[IMAGE_PAD] * count, VISION_END]
    summarize = f"Summarize above {_SUBJECT[modality]} in one word: "
    pieces.append("\n".join(part for part in (instruction, text, summarize) if part))
    return [*pieces, TURN_END, "\n", TURN_START, "assistant\n", RET]


def golden(prompt: PromptFormat) -> dict[str, str]:
    """Render what a bundle records, so that a changed template cannot go unnoticed."""
    cases = {
        "text query": ("INSTRUCTION", "TEXT", ()),
        "text": (None, "TEXT", ()),
        "image": (None, None, (2,)),
        "image,text": (None, "TEXT", (2,)),
    }
    return {name: "".join(render(prompt, *case)) for name, case in cases.items()}


class PromptTokenizer:
    """Tokens of rendered prompts.

    What a user typed is never read as a special token: `[RET]` in a text is five ordinary
    characters.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: PromptFormat) -> None:
        """Take a copy of `tokenizer`, which must know every one of `SPECIAL_TOKENS`.

        Raises:
            PumaError: it lacks some.

        """
        self.prompt = prompt
        self._special: dict[str, int] = {}
        for token in SPECIAL_TOKENS:
            number = tokenizer.token_to_id(token)
            if number is None:
                raise PumaError(
                    f"the tokenizer does not know {token}; expected all of "
                    f"{' '.join(SPECIAL_TOKENS)}: add it as a special token"
                )
            self._special[token] = number
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # A token that was added as an ordinary one ([RET], in some checkpoints) would be found in
        # a user's text in spite of the line after this; its id stays as it is.
        self.tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
        )
        self.tokenizer.encode_special_tokens = True
        self.image_pad_id: int = self._special[IMAGE_PAD]
        self.pad_id: int = self._special[PAD]

    def encode(
        self, instruction: str | None, text: str | None, image_tokens: tuple[int, ...] = ()
    ) -> NDArray[np.int64]:
        """Token ids [sequence] of one item; the last one is `[RET]`.

        Raises:
            InputError: the text or the instruction is no valid Unicode.

        """
        if text:
            text = self._cut(text)
        ids: list[int] = []
        for piece in render(self.prompt, instruction, text, image_tokens):
            special = self._special.get(piece)
            # A user's whole text could spell a special token, but it never is a piece of its own:
            # the body always ends in "Summarize above ...".
            ids += [special] if special is not None else self._encode_text(piece).ids
        return np.asarray(ids, np.int64)

    def _cut(self, text: str) -> str:
        limit = self.prompt.max_text_tokens
        text = text[: limit * _LONGEST_TOKEN]
        while len((encoding := self._encode_text(text)).ids) > limit:
            # Where the first token left out begins. A character of several tokens is kept or left
            # out as a whole, and so are a letter and the accents it is composed with; and some
            # tokenizers leave a space out of the offsets, so that the rest is still too long.
            text = text[: min(encoding.offsets[limit][0], len(text) - 1)]
        return text

    def _encode_text(self, piece: str) -> Encoding:
        try:
            return self.tokenizer.encode(piece, add_special_tokens=False)
        except TypeError as error:
            # All the tokenizer says is that this must be a str; the reason it was refused:
            try:
                piece.encode()
            except UnicodeEncodeError as reason:
                raise InputError(
                    f"the text is no valid Unicode (half a surrogate pair, "
                    f"{piece[reason.start]!a}, at character {reason.start}); write it as UTF-8"
                ) from error
            raise
