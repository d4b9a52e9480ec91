"""06: what the file to use says of single photos, one's own or validation photos, and where it looked."""

import json
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fruitlib.core.errors import InputError
from fruitlib.data import dataset, photo_checks, photo_square
from fruitlib.deploy import model_files, predict, verify
from fruitlib.evaluation.answering import NONE
from fruitlib.explain import gradcam
from fruitlib.reporting import gradcam_sheets, photo_sheets
from fruitlib.reporting.labels import label
from fruitlib.reporting.style import drawing
from fruitlib.runs.run import Run

COLUMNS = ["photo", "where it looked"]


@dataclass(frozen=True)
class Answer:
    """What the file says of a photo: the class in words, with its probability; photo and heat are uint8 (S, S, 3)."""

    text: str
    photo: np.ndarray
    heat: np.ndarray  # over the photo in grey; the photo itself where the file does not say where it looked


class PhotoTrial:
    """The file to use of an exported run, asked about photos."""

    def __init__(self, run: Run):
        """`run` was exported; its shipped file is opened.

        Raises:
            InputError: it was not exported, or its file is gone.
        """
        shipped = verify.load_export_record(run).shipped
        path = run.path / model_files.FILES[shipped]
        self.run, self.session, self.metadata = run, predict.open_session(path), predict.read_metadata(path)
        self.class_names = json.loads(self.metadata["class_names"])
        self.outputs = [output.name for output in self.session.get_outputs() if output.name != "logits"]

    def answers(self, photos: np.ndarray) -> list[Answer]:
        """The answers for prepared photos uint8 (n, S, S, 3)."""
        found = dict(zip(self.outputs, predict.outputs(self.session, photos, self.outputs), strict=True))
        answers = []
        for place, (photo, probs) in enumerate(zip(photos, found["probabilities"], strict=True)):
            heat = self._heat(photo, found["heat"][place], probs) if "heat" in found else photo
            answers.append(Answer(self._in_words(probs), photo, heat))
        return answers

    def of_file(self, name: str, content: bytes) -> Answer:
        """The answer for a photo file's bytes, prepared as the training photos were.

        Raises:
            InputError: not a photo that can be used; the line says why.
        """
        config = photo_checks.with_bits(self.run.config, self.run.manifest)
        try:
            square, _ = photo_square.read(content, config, config.max_megapixels)
            return self.answers(square[None])[0]
        except InputError as problem:
            raise InputError(f"{name}: {problem}; choose another photo") from None

    def _in_words(self, probs: np.ndarray) -> str:
        """`apple (93%)`, or what a person who looks should know of it.

        `unsure, most likely apple (58%)` where the model may not answer alone, `apple (93%); a person should look`
        where nothing is proven.
        """
        best, above = int(probs.argmax()), self.metadata.get("answer_above", "")
        text = f"{label(self.class_names[best])} ({probs[best]:.0%})"
        if above == NONE:
            return f"{text}; a person should look"
        return f"unsure, most likely {text}" if above and probs[best] <= float(above) else text

    def _heat(self, photo: np.ndarray, maps: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """The heat (C, h, w) of the class predicted, or (1, h, w), over the photo."""
        own = np.maximum(maps[int(probs.argmax()) if len(maps) == len(probs) else 0], 0)
        return gradcam.overlay(photo / 255, own / max(own.max(), 1e-12))

    @drawing
    def examples(self) -> Figure:
        """A photo of each class that the file was tried on in 05, its answer and its heat; no test photo is opened."""
        photos, on_validation = verify.photos_to_try(self.run)
        names = [self.class_names[i] for i in photos.labels.tolist()]
        chosen = gradcam_sheets.one_of_each(names)
        found = self.answers(dataset.to_pictures(photos.images)[chosen])
        rows = [[answer.photo, answer.heat] for answer in found]
        words = [f"{label(names[place])}:\n{answer.text}" for place, answer in zip(chosen, found, strict=True)]
        kind = "Validation" if on_validation else "Training"
        return photo_sheets.picture_table(rows, words, COLUMNS, f"{kind} photos, and what the file answers")
